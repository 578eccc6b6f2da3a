"""HQQ: a grid fitted to the weights alone by half-quadratic splitting, no data needed.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog). The error
counts as |w - w'|^p with p < 1, so that a few large errors (outliers, clipped) cost little beside many small ones; an
auxiliary E splits the problem into steps with closed forms, beta rising by a factor from turn to turn:

    min over s, z, E of  sum |E|^p + beta / 2 sum (w - s (q - z) - E)^2
    E <- shrink(w - w'),   shrink(x) = sign(x) max(|x| - p |x|^(p-1) / beta, 0)
    z <- mean(q - (w - E) / s)

differs from the source: (1) errors are in units of the scale, else what counts as large depends on the size of a network's
weights (at the usual 0.01 to 0.1 the source's E is zero everywhere); (2) the scale is refitted too, by least squares;
(3) zero points stay whole numbers, as the integer runtimes want them; (4) each group keeps the best grid it has seen.

Dimension key: O output channels (rows), K everything else, G groups of a row.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lighten.ops.grids import SMALLEST_SCALE, Grid, decode, encode, fit, in_groups

POWER = 0.7
TURNS = 20
_FIRST_BETA, _BETA_GROWTH = 5.0, 1.05
_TINY = 1e-8


def hqq(w_OK: Tensor, *, bits: int, group: int | None = None, power: float = POWER, turns: int = TURNS) -> tuple[Tensor, Grid]:
    """int8 codes, shape O x K, and their affine grid; no group has a larger sum |w - w'|^power than on the min-max grid.

    power: in (0, 1]. group: columns that share a scale and a zero point. Cost: O K for each turn.
    Raises ValueError as `fit` does.
    """
    grid = best = fit(w_OK, bits=bits, group=group, symmetric=False)
    w_OGK = in_groups(w_OK, grid.scale)
    least_OG1 = _lp_error(w_OGK, grid, power)
    for turn in range(turns):
        grid = _turn(w_OGK, grid, power, beta=_FIRST_BETA * _BETA_GROWTH**turn)
        error_OG1 = _lp_error(w_OGK, grid, power)
        is_better_OG1 = error_OG1 < least_OG1
        least_OG1 = torch.minimum(error_OG1, least_OG1)
        scale_OG1 = torch.where(is_better_OG1, grid.scale, best.scale)
        best = replace(best, scale=scale_OG1, zero=torch.where(is_better_OG1, grid.zero, best.zero))
    return encode(w_OK, best), best


def shrink(x: Tensor, power: float, beta: float) -> Tensor:
    """The E of sum |E|^p + beta / 2 (x - E)^2 to first order about x: exact for p = 1."""
    magnitude = x.abs()
    return x.sign() * (magnitude - power * magnitude.clamp_min(_TINY) ** (power - 1) / beta).clamp_min(0)


def _turn(w_OGK: Tensor, grid: Grid, power: float, *, beta: float) -> Grid:
    codes_OGK = encode(w_OGK.flatten(1), grid).reshape(w_OGK.shape).float()
    error_OGK = w_OGK - (codes_OGK - grid.zero) * grid.scale
    wanted_OGK = w_OGK - shrink(error_OGK / grid.scale, power, beta) * grid.scale
    zero_OG1 = (codes_OGK - wanted_OGK / grid.scale).mean(2, keepdim=True).round().clamp(grid.low, grid.high)
    steps_OGK = codes_OGK - zero_OG1
    squares_OG1 = steps_OGK.square().sum(2, keepdim=True).clamp_min(1)
    scale_OG1 = (wanted_OGK * steps_OGK).sum(2, keepdim=True) / squares_OG1
    return replace(grid, scale=scale_OG1.clamp_min(SMALLEST_SCALE), zero=zero_OG1)


def _lp_error(w_OGK: Tensor, grid: Grid, power: float) -> Tensor:
    rounded_OGK = decode(encode(w_OGK.flatten(1), grid), grid).reshape(w_OGK.shape)
    return (w_OGK - rounded_OGK).abs().pow(power).sum(2, keepdim=True)
