import pytest
import torch

from lighten.ops.grids import affine, fit, nearest
from lighten.ops.ranges import (
    NUM_BINS,
    RANGES,
    Seen,
    entropy,
    entropy_rows,
    mean_squared_error,
    minmax,
    moving_average,
    percentile,
    percentile_rows,
)


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


def rows(spread: float = 10.0) -> torch.Tensor:
    """Three rows of different scales, each with two values `spread` deviations out, shape 3 x 4000."""
    generator = torch.Generator().manual_seed(1)
    values_RM = torch.randn(3, 4000, generator=generator)
    values_RM[:, :2] = torch.tensor([-spread, spread])
    return values_RM * torch.tensor([[1.0], [0.01], [30.0]])


def ends(values_RM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values_RM.amin(1, keepdim=True).clamp_max(0), values_RM.amax(1, keepdim=True).clamp_min(0)


def test_rows_without_a_thousandth_of_their_values_end_where_torch_says() -> None:
    values_RM = rows()
    low_R1, high_R1 = percentile_rows(values_RM, *ends(values_RM), symmetric=True)
    top_R1 = torch.quantile(values_RM.abs(), 0.999, dim=1, keepdim=True)
    torch.testing.assert_close(torch.maximum(high_R1, -low_R1), top_R1)
    low_R1, high_R1 = percentile_rows(values_RM, *ends(values_RM), symmetric=False)
    torch.testing.assert_close(low_R1, torch.quantile(values_RM, 0.0005, dim=1, keepdim=True))
    torch.testing.assert_close(high_R1, torch.quantile(values_RM, 0.9995, dim=1, keepdim=True))


def test_a_row_of_one_sign_keeps_zero_at_its_end() -> None:
    values_RM = rows().abs() + 0.1
    low_R1, high_R1 = percentile_rows(values_RM, *ends(values_RM), symmetric=False)
    assert bool((low_R1 == 0).all())
    assert bool((high_R1 <= values_RM.amax(1, keepdim=True)).all())


def test_the_divergence_of_rows_cuts_long_tails_whatever_their_scale_and_keeps_uniform_rows() -> None:
    values_RM = rows(spread=30.0)
    _, high_R1 = entropy_rows(values_RM, *ends(values_RM), levels=16)
    factor_R1 = high_R1 / ends(values_RM)[1]
    assert bool((factor_R1 < 0.7).all())
    scaled = entropy_rows(7 * values_RM, *ends(7 * values_RM), levels=16)
    torch.testing.assert_close(scaled[1], 7 * high_R1)
    uniform_RM = torch.linspace(-1, 1, 4001)[None]  # whose outermost steps, half beyond the ends, are worth half a step at most
    torch.testing.assert_close(entropy_rows(uniform_RM, *ends(uniform_RM), levels=16)[1], torch.ones(1, 1), rtol=0, atol=1 / 15)


def test_a_kernel_of_nine_values_is_not_clipped_by_divergence_at_eight_bits() -> None:
    kernel_RM = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    for found, kept in zip(entropy_rows(kernel_RM, *ends(kernel_RM), levels=255), ends(kernel_RM), strict=True):
        torch.testing.assert_close(found, kept)


@pytest.mark.parametrize("ranges", ["percentile", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipped_weights_of_four_bits_have_less_error_than_whole_ones_on_a_long_tail(ranges: str, symmetric: bool) -> None:
    values_RM = rows(spread=30.0)

    def bulk_error(ranges: str) -> torch.Tensor:
        made = nearest(values_RM, bits=4, symmetric=symmetric, ranges=ranges)
        return (made - values_RM)[:, 2:].square().mean(1)

    assert bool((bulk_error(ranges) < 0.5 * bulk_error("minmax")).all())
    whole = fit(values_RM, bits=4, symmetric=symmetric, ranges=ranges, per="tensor")
    assert whole.scale.shape == (1, 1, 1)
