"""Dimension key: O output channels, K everything else."""

import pytest
import torch

from lighten.ops.grids import affine, fake_quantize, quantize_rows, symmetric_scale


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (-1.0, 0.0), (2.0, 4.0)])
def test_rounding_error_inside_the_range_is_at_most_half_a_step(low: float, high: float) -> None:
    grid = affine(low, high)
    x = torch.linspace(low, high, 10_001)
    # one float32 rounding of the product beside the half step
    assert (fake_quantize(x, grid) - x).abs().max() <= grid.scale / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (2.0, 4.0), (-7.0, -1.0)])
def test_zero_is_exact_even_when_the_range_leaves_it_out(low: float, high: float) -> None:
    assert fake_quantize(torch.zeros(1), affine(low, high)).item() == 0.0


def test_relu6_range_puts_six_on_the_grid() -> None:
    grid = affine(0.0, 6.0)
    assert grid.zero == 0
    assert fake_quantize(torch.tensor([6.0]), grid).item() == pytest.approx(6.0, abs=1e-6)


def test_a_tensor_of_zeros_has_a_usable_grid() -> None:
    grid = affine(0.0, 0.0)
    assert grid.scale > 0
    assert fake_quantize(torch.zeros(3), grid).tolist() == [0.0, 0.0, 0.0]


def test_minmax_scale_sends_the_largest_magnitude_to_127() -> None:
    weight_OK = torch.tensor([[0.5, -2.54], [1.27, 0.1]])
    scale_O = symmetric_scale(weight_OK)
    torch.testing.assert_close(scale_O, torch.tensor([0.02, 0.01]))
    assert quantize_rows(weight_OK, scale_O).abs().amax(1).tolist() == [127, 127]


def test_mse_ranges_never_have_more_error_than_minmax_on_any_row() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OK = torch.randn(32, 400, generator=generator) ** 3  # heavy tails, where clipping pays

    def error_O(ranges: str) -> torch.Tensor:
        scale_O = symmetric_scale(weight_OK, bits=4, ranges=ranges)
        return (quantize_rows(weight_OK, scale_O, bits=4) * scale_O[:, None] - weight_OK).square().sum(1)

    assert (error_O("mse") <= error_O("minmax")).all()
    assert error_O("mse").sum() < 0.9 * error_O("minmax").sum()


def test_rows_of_zeros_stay_zero() -> None:
    weight_OK = torch.zeros(2, 3)
    assert quantize_rows(weight_OK, symmetric_scale(weight_OK, ranges="mse")).abs().sum() == 0
