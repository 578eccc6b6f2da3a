"""Grids without data. Dimension key: O outputs, K input columns."""

import pytest
import torch
from torch import Tensor

from lighten.ops.grids import decode, encode, fit
from lighten.ops.hqq import hqq, shrink


def heavy_tailed(num_rows: int, num_columns: int) -> Tensor:
    """Normal weights times the square of another normal: a few are far larger than the rest."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, num_rows, num_columns, generator=generator)
    return 0.02 * normal[0] * (0.3 + normal[1].abs()) ** 2


def error_OG(w_OK: Tensor, codes_OK: Tensor, grid: object, *, power: float, group: int) -> Tensor:
    return (w_OK - decode(codes_OK, grid)).abs().pow(power).reshape(len(w_OK), -1, group).sum(2)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_group_is_worse_than_on_the_minmax_grid_and_all_together_are_far_better(bits: int) -> None:
    w_OK = heavy_tailed(32, 256)
    codes_OK, grid = hqq(w_OK, bits=bits, group=64)
    widest = fit(w_OK, bits=bits, group=64, symmetric=False)
    ours = error_OG(w_OK, codes_OK, grid, power=0.7, group=64)
    theirs = error_OG(w_OK, encode(w_OK, widest), widest, power=0.7, group=64)
    assert (ours <= theirs * (1 + 1e-6)).all()  # the same sums in another order
    assert ours.sum() < 0.97 * theirs.sum()


def test_outliers_weigh_less_than_in_the_least_squared_error() -> None:
    w_OK = heavy_tailed(32, 256)
    codes_OK, grid = hqq(w_OK, bits=3, group=64)
    squared = fit(w_OK, bits=3, group=64, symmetric=False, ranges="mse")
    ours, theirs = (w_OK - decode(codes_OK, grid)).abs(), (w_OK - decode(encode(w_OK, squared), squared)).abs()
    assert ours.pow(0.7).sum() < theirs.pow(0.7).sum()
    assert ours.square().sum() > theirs.square().sum()


def test_grids_do_not_depend_on_the_size_of_the_weights() -> None:
    w_OK = heavy_tailed(8, 64)
    codes_OK, grid = hqq(w_OK, bits=3, group=32)
    same_OK, larger = hqq(w_OK * 1024, bits=3, group=32)
    assert torch.equal(codes_OK, same_OK)
    assert torch.equal(grid.scale * 1024, larger.scale)


def test_zero_points_are_whole_numbers_on_the_grid() -> None:
    codes_OK, grid = hqq(heavy_tailed(8, 64), bits=3, group=16)
    assert torch.equal(grid.zero, grid.zero.round())
    assert grid.low <= grid.zero.min() <= grid.zero.max() <= grid.high
    assert grid.low <= codes_OK.min() <= codes_OK.max() <= grid.high


def test_weights_that_are_on_a_grid_are_left_as_they_are() -> None:
    w_OK = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]])
    codes_OK, grid = hqq(w_OK, bits=2)
    torch.testing.assert_close(decode(codes_OK, grid), w_OK)


def test_shrinking_with_power_one_is_the_soft_threshold() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.3, 1.0])
    torch.testing.assert_close(shrink(x, 1.0, 5.0), torch.tensor([-1.8, 0.0, 0.0, 0.1, 0.8]))


def test_shrinking_solves_its_problem_where_the_error_is_large() -> None:
    # stationary: E = x - p E^(p-1) / beta; shrink takes x for E on the right, off by p (1-p) x^(p-2) (p x^(p-1) / beta) / beta
    x, power, beta = torch.tensor([2.0, 5.0, 20.0]), 0.7, 10.0
    found = shrink(x, power, beta)
    slope = power * found.pow(power - 1) + beta * (found - x)
    assert (slope.abs() <= 1.2 * power**2 * (1 - power) * x.pow(2 * power - 3) / beta + 1e-5).all()
