"""Dimension key: O output channels, K everything else, G groups."""

import itertools

import pytest
import torch
from torch import Tensor

from lighten.ops.grids import Grid, affine, decode, encode, fit, nearest, ternary, with_scales

WIDTHS = range(2, 9)
KNOBS = [{}, {"group": 16}, {"per": "tensor"}]


def normal(rows: int, columns: int, *, power: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) ** power


def rounded(x: Tensor, low: float, high: float) -> Tensor:
    grid = affine(low, high)
    return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero, grid.low, grid.high)


def errors(w_OK: Tensor, grid: Grid) -> Tensor:
    return (decode(encode(w_OK, grid), grid) - w_OK).square().sum(1)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (-1.0, 0.0), (2.0, 4.0)])
def test_rounding_error_inside_the_range_is_at_most_half_a_step(low: float, high: float) -> None:
    x = torch.linspace(low, high, 10_001)
    # one float32 rounding of the product beside the half step
    assert (rounded(x, low, high) - x).abs().max() <= affine(low, high).scale / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (2.0, 4.0), (-7.0, -1.0)])
def test_zero_is_exact_even_when_the_range_leaves_it_out(low: float, high: float) -> None:
    assert rounded(torch.zeros(1), low, high).item() == 0.0


def test_relu6_range_puts_six_on_the_grid() -> None:
    assert affine(0.0, 6.0).zero == 0
    assert rounded(torch.tensor([6.0]), 0.0, 6.0).item() == pytest.approx(6.0, abs=1e-6)


def test_a_tensor_of_zeros_has_a_usable_grid() -> None:
    assert affine(0.0, 0.0).scale > 0
    assert rounded(torch.zeros(3), 0.0, 0.0).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("knobs", KNOBS)
def test_minmax_grids_are_off_by_half_a_step_at_most_and_codes_fit_their_bits(bits: int, symmetric: bool, knobs: dict) -> None:
    w_OK = normal(8, 64) + 0.5
    grid = fit(w_OK, bits=bits, symmetric=symmetric, **knobs)
    codes_OK = encode(w_OK, grid)
    assert codes_OK.dtype == torch.int8
    assert grid.bits == bits
    assert grid.low <= codes_OK.min() <= codes_OK.max() <= grid.high
    error_OGK = (decode(codes_OK, grid) - w_OK).abs().reshape(8, grid.scale.shape[1], -1)
    assert (error_OGK <= grid.scale / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_zero_stays_zero_and_a_second_rounding_changes_nothing(bits: int, symmetric: bool, ranges: str) -> None:
    w_OK = normal(8, 64) + 0.5
    w_OK[:, ::3] = 0
    grid = fit(w_OK, bits=bits, group=16, symmetric=symmetric, ranges=ranges)
    once_OK = decode(encode(w_OK, grid), grid)
    assert (once_OK[:, ::3] == 0).all()
    assert torch.equal(decode(encode(once_OK, grid), grid), once_OK)


def test_minmax_sends_the_largest_magnitude_to_127() -> None:
    w_OK = torch.tensor([[0.5, -2.54], [1.27, 0.1]])
    grid = fit(w_OK, bits=8)
    torch.testing.assert_close(grid.scale, torch.tensor([0.02, 0.01]).reshape(2, 1, 1))
    assert encode(w_OK, grid).tolist() == [[25, -127], [127, 10]]


def test_shapes_of_scales_are_one_a_tensor_a_row_or_a_group() -> None:
    w_OK = normal(6, 32)
    assert fit(w_OK, bits=4, per="tensor").scale.shape == (1, 1, 1)
    assert fit(w_OK, bits=4).scale.shape == (6, 1, 1)
    assert fit(w_OK, bits=4, group=8).scale.shape == (6, 4, 1)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_those_of_torch_fake_quantization(bits: int) -> None:
    w_OK = normal(8, 300)
    grid = fit(w_OK, bits=bits, symmetric=False)
    scale_O, zero_O = grid.scale.flatten(), grid.zero.flatten().int()
    expected_OK = torch.fake_quantize_per_channel_affine(w_OK, scale_O, zero_O, 0, grid.low, grid.high)
    torch.testing.assert_close(decode(encode(w_OK, grid), grid), expected_OK)


def test_ties_go_to_the_even_step_before_the_zero_point_is_added() -> None:
    grid = Grid(torch.ones(1, 1, 1), torch.ones(1, 1, 1), -8, 7)
    assert encode(torch.tensor([[0.5, 1.5, 2.5, -0.5]]), grid).tolist() == [[1, 3, 3, 1]]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [9, 400, 40_000])
def test_mse_ranges_never_have_more_error_than_minmax_on_any_row(bits: int, symmetric: bool, columns: int) -> None:
    w_OK = normal(16, columns, power=3)  # heavy tails, where clipping pays
    plain_O = errors(w_OK, fit(w_OK, bits=bits, symmetric=symmetric))
    # float32 sums of so many terms are exact to a few parts in 10^6
    assert (errors(w_OK, fit(w_OK, bits=bits, symmetric=symmetric, ranges="mse")) <= plain_O * (1 + 1e-5)).all()


def test_mse_ranges_halve_the_error_of_three_bits_on_normal_weights() -> None:
    w_OK = normal(32, 4096)
    assert errors(w_OK, fit(w_OK, bits=3, ranges="mse")).sum() < 0.5 * errors(w_OK, fit(w_OK, bits=3)).sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_small_symmetric_tensors_get_the_scale_of_least_error(bits: int) -> None:
    w_OK = normal(32, 9)
    found_O = errors(w_OK, fit(w_OK, bits=bits, ranges="mse"))
    plain = fit(w_OK, bits=bits)
    for factor in torch.linspace(0.02, 1.2, 2000):
        tried = Grid(plain.scale * factor, plain.zero, plain.low, plain.high)
        assert (found_O <= errors(w_OK, tried) * (1 + 1e-5)).all()


def test_large_symmetric_tensors_come_within_a_few_percent_of_the_least_error() -> None:
    w_OK = normal(64, 6000)
    # the rows of a small tensor get the least error: the same rows, one at a time
    least_O = torch.cat([errors(row_1K, fit(row_1K, bits=4, ranges="mse")) for row_1K in w_OK.split(1)])
    assert (errors(w_OK, fit(w_OK, bits=4, ranges="mse")) <= 1.02 * least_O).all()


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    w_OK = normal(4, 50)
    expected_OK = w_OK.sign() * w_OK.abs().mean(1, keepdim=True)
    torch.testing.assert_close(nearest(w_OK, bits=1), expected_OK)
    assert fit(w_OK, bits=1).bits == 1


def test_ternary_has_the_least_error_of_all_choices_of_signs_and_zeros() -> None:
    w_OK = normal(5, 7)
    grid = ternary(w_OK)
    signs_CK = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=7))[1:])
    signs_CK = signs_CK[signs_CK.any(1)]
    fitted_OC = (w_OK @ signs_CK.t()).square() / signs_CK.square().sum(1)
    least_O = w_OK.square().sum(1) - fitted_OC.amax(1)
    torch.testing.assert_close(errors(w_OK, grid), least_O)
    assert set(encode(w_OK, grid).unique().tolist()) == {-1, 0, 1}


def test_ternary_is_no_worse_than_the_threshold_of_the_paper() -> None:
    w_OK = normal(8, 500)
    kept_OK = w_OK.abs() > 0.7 * w_OK.abs().mean(1, keepdim=True)
    scale_O1 = (w_OK.abs() * kept_OK).sum(1, keepdim=True) / kept_OK.sum(1, keepdim=True)
    paper_O = (scale_O1 * kept_OK * w_OK.sign() - w_OK).square().sum(1)
    assert (errors(w_OK, ternary(w_OK)) <= paper_O).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_make_up_for_scales_stored_in_half_precision(dtype: torch.dtype) -> None:
    w_OK = normal(16, 256)
    grid = fit(w_OK, bits=8)
    half = with_scales(grid, dtype)
    assert half.scale.dtype == dtype
    unaware_OK = decode(encode(w_OK, grid), half)
    assert errors(w_OK, half).sum() < (unaware_OK - w_OK).square().sum()
    assert (errors(w_OK, half) <= 1.1 * errors(w_OK, grid)).all()


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_zeros_stay_zero(ranges: str, symmetric: bool) -> None:
    assert nearest(torch.zeros(2, 3), bits=4, symmetric=symmetric, ranges=ranges).abs().sum() == 0


def test_a_scale_too_small_for_half_precision_stays_above_zero() -> None:
    assert with_scales(fit(torch.full((1, 4), 1e-9), bits=4), torch.float16).scale.item() > 0


def test_stored_bytes_count_scales_and_zero_points() -> None:
    w_OK = normal(32, 128) + 1
    symmetric = with_scales(fit(w_OK, bits=4, group=64), torch.float16)
    affine_grid = with_scales(fit(w_OK, bits=4, group=64, symmetric=False), torch.float16)
    # 4 + 16 / 64 bits a weight, and 4 / 64 more for the zero points
    assert symmetric.stored_bytes(w_OK.numel()) * 8 == 4.25 * w_OK.numel()
    assert affine_grid.stored_bytes(w_OK.numel()) * 8 == 4.3125 * w_OK.numel()
    assert fit(w_OK, bits=1).stored_bytes(w_OK.numel()) == 32 * 128 // 8 + 32 * 4


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"bits": 4, "group": 7}, "64 columns do not split into groups of 7"),
        ({"bits": 4, "group": 8, "per": "tensor"}, "no groups"),
        ({"bits": 9}, "1 to 8 bits. Got 9"),
        ({"bits": 4, "ranges": "best"}, "minmax, percentile, entropy, mse. Got 'best'"),
        ({"bits": 4, "per": "row"}, "channel, tensor. Got 'row'"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(normal(2, 64), **knobs)
