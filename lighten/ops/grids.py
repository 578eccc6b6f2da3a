"""Uniform integer grids: x' = scale * (q - zero), q = clamp(round(x / scale) + zero, low, high), round half to even.

Zero is always on the grid, so padding and ReLU stay exact (Jacob et al. 2018, arXiv:1712.05877, section 2.1).
Dimension key: O output channels (rows), K everything else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-120
"""Below this, a float32 scale's reciprocal is no longer finite in the runtimes."""


@dataclass(frozen=True)
class Affine:
    """One scale for a tensor. zero: the integer that stands for 0.0. low, high: the integer range."""

    scale: float
    zero: int
    low: int = 0
    high: int = 255


def affine(low: float, high: float, bits: int = 8) -> Affine:
    """The unsigned grid that covers [low, high], widened to hold zero.

    The largest rounding error inside the range is scale / 2.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = max((high - low) / levels, SMALLEST_SCALE)
    zero = min(max(round(-low / scale), 0), levels)
    return Affine(scale, zero, 0, levels)


def fake_quantize(x: Tensor, grid: Affine) -> Tensor:
    """x rounded to the grid and back, float."""
    codes: Tensor = ((x / grid.scale).round() + grid.zero).clamp(grid.low, grid.high)
    rounded: Tensor = (codes - grid.zero) * grid.scale
    return rounded


def symmetric_scale(weight_OK: Tensor, bits: int = 8, *, ranges: str = "minmax") -> Tensor:
    """One scale a row, zero point 0, integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1]: shape O.

    ranges: "minmax" covers the largest magnitude; "mse" shrinks it to the least squared error among 32 factors in [0.5, 1]
    (the search of Nagel et al. 2021, arXiv:2106.08295, section 3.1), never worse than "minmax" on any row.
    """
    high = 2 ** (bits - 1) - 1
    peak_O = weight_OK.abs().amax(1)
    full_O: Tensor = (peak_O / high).clamp_min(SMALLEST_SCALE)
    if ranges == "minmax":
        return full_O
    best_O: Tensor = full_O
    least_O = _row_error(weight_OK, full_O, high)
    for factor in torch.linspace(1.0, 0.5, 32)[1:].tolist():
        scale_O = (full_O * factor).clamp_min(SMALLEST_SCALE)
        error_O = _row_error(weight_OK, scale_O, high)
        best_O = torch.where(error_O < least_O, scale_O, best_O)
        least_O = torch.minimum(error_O, least_O)
    return best_O


def quantize_rows(weight_OK: Tensor, scale_O: Tensor, bits: int = 8) -> Tensor:
    """int8 codes of a symmetric grid, shape of the weight."""
    high = 2 ** (bits - 1) - 1
    return (weight_OK / scale_O[:, None]).round().clamp(-high, high).to(torch.int8)


def _row_error(weight_OK: Tensor, scale_O: Tensor, high: int) -> Tensor:
    scale_O1 = scale_O[:, None]
    rounded_OK = (weight_OK / scale_O1).round_().clamp_(-high, high).mul_(scale_O1)
    return rounded_OK.sub_(weight_OK).square_().sum(1)
