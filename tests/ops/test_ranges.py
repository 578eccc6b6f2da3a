import pytest
import torch

from lighten.ops.grids import affine
from lighten.ops.ranges import NUM_BINS, RANGES, Seen, entropy, mean_squared_error, minmax, moving_average, percentile


def seen_of(values: torch.Tensor) -> Seen:
    low, high = values.min().item(), values.max().item()
    return Seen(low, high, low / 2, high / 2, torch.histc(values, NUM_BINS, min=low, max=high).double())


def long_tailed() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=generator)
    values[:10] *= 20
    return values


def error(values: torch.Tensor, ends: tuple[float, float]) -> float:
    grid = affine(*ends)
    rounded = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero, grid.low, grid.high)
    return (rounded - values).square().mean().item()


def test_minmax_and_moving_average_give_what_was_recorded() -> None:
    seen = Seen(-1.0, 3.0, -0.5, 2.0, torch.ones(NUM_BINS, dtype=torch.float64))
    assert minmax(seen) == (-1.0, 3.0)
    assert moving_average(seen) == (-0.5, 2.0)


def test_percentile_of_a_uniform_tensor_cuts_the_same_share_off_both_ends() -> None:
    seen = seen_of(torch.linspace(0, 1, 100_001))
    low, high = percentile(seen, 90)
    assert (low, high) == pytest.approx((0.05, 0.95), abs=2 / NUM_BINS)


def test_percentile_100_is_minmax() -> None:
    seen = seen_of(long_tailed())
    assert percentile(seen, 100) == pytest.approx(minmax(seen), abs=(seen.high - seen.low) / NUM_BINS)


def test_mse_ranges_have_less_error_than_minmax_on_a_long_tail() -> None:
    values = long_tailed()
    seen = seen_of(values)
    assert error(values, mean_squared_error(seen)) < error(values, minmax(seen))


def test_mse_ranges_keep_a_uniform_tensor_whole() -> None:
    low, high = mean_squared_error(seen_of(torch.linspace(-1, 1, 100_001)))
    # clipping a share p of a uniform tensor costs p^3; nothing beyond a couple of rounding steps can pay
    assert (low, high) == pytest.approx((-1, 1), abs=0.03)


def test_entropy_cuts_a_long_tail_and_keeps_the_bulk() -> None:
    values = long_tailed()
    low, high = entropy(seen_of(values))
    assert high < values.max()
    assert high > values.quantile(0.99)
    assert low < values.quantile(0.01)


def test_entropy_keeps_a_uniform_tensor_whole() -> None:
    assert entropy(seen_of(torch.linspace(0, 1, 100_001))) == pytest.approx((0, 1), abs=0.03)


@pytest.mark.parametrize("name", RANGES)
def test_a_side_that_is_zero_stays_zero(name: str) -> None:
    low, high = RANGES[name](seen_of(long_tailed().abs() - long_tailed().abs().min()))
    assert low == pytest.approx(0, abs=(high - low) / 1000 + 0.05)
    assert high > 1
