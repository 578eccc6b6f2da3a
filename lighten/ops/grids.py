"""Uniform integer grids: x' = scale * (q - zero), q = clamp(round(x / scale) + zero, low, high), round half to even.

Zero is always on the grid, so padding and ReLU stay exact (Jacob et al. 2018, arXiv:1712.05877, section 2.1); the binary
grid {-s, s} is the one exception. Texts that write y = Q(gamma x + beta) + alpha have gamma = 1 / scale, beta = 0 and
alpha = zero; docs/methods/grids.md relates the two.
Dimension key: O output channels or tokens (rows), K everything else, G groups of a row, R rows that have a scale of their own,
M values of such a row, L codes above zero, N = M L breaks.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lighten.ops.packing import packed_bytes
from lighten.ops.ranges import entropy_rows, percentile_rows

SMALLEST_SCALE = 2.0**-120
"""Below this, a float32 scale's reciprocal is no longer finite in the runtimes."""

PER = ("channel", "tensor")
WEIGHT_RANGES = ("minmax", "percentile", "entropy", "mse")
_COARSE = tuple(0.02 ** (index / 15) for index in range(1, 16))
_FINE = (0.88, 0.94, 1.06, 1.14)
_TURNS = 4
_MOST_BREAKS = 2**20  # of the exact search: a quarter of a second, fifty megabytes


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


@dataclass(frozen=True)
class Grid:
    """Many uniform grids of one width, for values of shape O x K seen as O x G x K/G.

    scale, zero: shape (1, 1, 1) for a tensor, (O, 1, 1) for rows (channels, tokens), (O, G, 1) for groups of a row. scale: in
    the type it is stored in; arithmetic is float32. zero: float32, whole numbers (-1/2 in a binary grid).
    low, high: the integer range, within int8. group: the K/G columns that share a scale; None for whole rows or tensors.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int
    group: int | None = None

    @property
    def bits(self) -> int:
        """The width of a code: 1 to 8."""
        return (self.high - self.low).bit_length()

    def stored_bytes(self, num_values: int) -> int:
        """Packed codes, scales in their own type, and zero points as packed codes unless all are the same and go without
        saying: zero, or a binary grid's -1/2.
        """
        num_zeros = 0 if (self.zero == 0).all() or self.bits == 1 else self.zero.numel()
        scale_bytes = self.scale.numel() * self.scale.element_size()
        return packed_bytes(num_values, self.bits) + scale_bytes + packed_bytes(num_zeros, self.bits)


def fit(
    w_OK: Tensor,
    *,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    per: str = "channel",
    ranges: str = "minmax",
) -> Grid:
    """The grid for a matrix of weights, or for activations with a scale for each token.

    bits: 1 to 8; codes are -2^(bits-1) .. 2^(bits-1) - 1. group: columns that share a scale. symmetric: zero points are 0, and
    8 bits leave out -128, so that two int8 products sum within the kernels' 16 bits (arXiv:1712.05877, appendix B).
    per: "channel" (a scale or more for each row) or "tensor". ranges: "minmax" covers all values, with an error of scale / 2 at
    most; "percentile" 99.9 % of them; "entropy" clips to the least divergence of distributions (ops.ranges); "mse" clips where
    that lowers the squared error of a scale's values, to the least one where a tensor is small enough (depthwise kernels, above
    all), else within a few percent, and never above that of "minmax".
    bits=1 is {-s, s} with s = mean |w|, the least squared error (XNOR-Net, arXiv:1603.05279, equation 6), by any ranges.
    Raises ValueError when the columns do not split into groups, or on a knob that is not one of these.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"A grid has 1 to 8 bits. Got {bits}.")
    if ranges not in WEIGHT_RANGES:
        raise ValueError(f"ranges must be one of {', '.join(WEIGHT_RANGES)}. Got {ranges!r}.")
    values_RM = sharing_rows(w_OK, group, per)
    if bits == 1:
        found = _binary(values_RM)
        levels = _Levels(-1, 0, symmetric=True)
    else:
        low = -127 if symmetric and bits == 8 else -(2 ** (bits - 1))
        levels = _Levels(low, 2 ** (bits - 1) - 1, symmetric)
        found = _found(values_RM, levels, ranges)
    return _shaped(found, levels, rows=1 if per == "tensor" else len(w_OK), group=group)


def ternary(w_OK: Tensor, *, group: int | None = None, per: str = "channel") -> Grid:
    """The grid {-s, 0, s} of least squared error.

    s is the mean of the n largest magnitudes, n where their sum^2 / n is largest (TWN, arXiv:1605.04711, equation 5).
    differs from the source: n comes from sorting, exactly; the source takes all that exceed 0.7 mean |w|, which is near the
    best for uniform and normal weights. Raises ValueError as `fit` does.
    """
    levels = _Levels(-1, 1, symmetric=True)
    found = _least_squares_exactly(sharing_rows(w_OK, group, per), levels)
    return _shaped(found, levels, rows=1 if per == "tensor" else len(w_OK), group=group)


def with_scales(grid: Grid, dtype: torch.dtype) -> Grid:
    """The grid with its scales rounded to `dtype`, as they will be stored. Encode with this one, so that the codes make up for
    the rounding. A scale too small for the type becomes its smallest normal number.
    """
    return replace(grid, scale=grid.scale.clamp_min(torch.finfo(dtype).tiny).to(dtype))


def encode(w_OK: Tensor, grid: Grid) -> Tensor:
    """int8 codes in [grid.low, grid.high], shape O x K."""
    codes_OGK = _steps(in_groups(w_OK, grid.scale), grid.scale.float(), grid.zero, grid.low, grid.high).add_(grid.zero)
    return codes_OGK.to(torch.int8).reshape(w_OK.shape)


def decode(codes_OK: Tensor, grid: Grid) -> Tensor:
    """scale * (codes - zero), float32, shape O x K."""
    return ((in_groups(codes_OK, grid.scale) - grid.zero) * grid.scale.float()).reshape(codes_OK.shape)


def nearest(
    w_OK: Tensor,
    *,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    per: str = "channel",
    ranges: str = "minmax",
) -> Tensor:
    """w_OK rounded to the nearest values of the grid that `fit` gives for the same knobs, float32."""
    grid = fit(w_OK, bits=bits, group=group, symmetric=symmetric, per=per, ranges=ranges)
    return decode(encode(w_OK, grid), grid)


def sharing_rows(w_OK: Tensor, group: int | None, per: str) -> Tensor:
    """The values that share a scale, a row each: shape R x M, float32. Raises ValueError as `fit` does."""
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(PER)}. Got {per!r}.")
    if per == "tensor" and group is not None:
        raise ValueError(f"per='tensor' has one scale and no groups. Got group={group}.")
    columns = w_OK.shape[1]
    if group is not None and (group < 1 or columns % group):
        raise ValueError(f"{columns} columns do not split into groups of {group}.")
    return w_OK.detach().float().reshape(1 if per == "tensor" else -1, w_OK.numel() if per == "tensor" else group or columns)


def in_groups(values_OK: Tensor, scale: Tensor) -> Tensor:
    """The values beside their scales of shape (O or 1, G, 1): shape (O, G, K/G), float32."""
    return values_OK.float().reshape(len(values_OK), scale.shape[1], -1)


class _Levels(NamedTuple):
    low: int
    high: int
    symmetric: bool


class _Steps(NamedTuple):
    scale_R1: Tensor
    zero_R1: Tensor


def _shaped(found: _Steps, levels: _Levels, *, rows: int, group: int | None) -> Grid:
    scale, zero = (value_R1.reshape(rows, -1, 1) for value_R1 in found)
    return Grid(scale, zero, levels.low, levels.high, group)


def _steps(values: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """The nearest q - zero. Only the fraction of a zero point is inside the rounding: a whole one is added afterwards, as the
    runtimes do, so that ties go to the same side.
    """
    whole = zero.floor()
    return (values / scale).add_(zero - whole).round_().add_(whole).clamp_(low, high).sub_(zero)


def _binary(values_RM: Tensor) -> _Steps:
    scale_R1 = (2 * values_RM.abs().mean(1, keepdim=True)).clamp_min(SMALLEST_SCALE)
    return _Steps(scale_R1, torch.full_like(scale_R1, -0.5))


def _ends(values_RM: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of each row, zero included."""
    lowest_R1, highest_R1 = torch.aminmax(values_RM, dim=1, keepdim=True)
    return lowest_R1.clamp_max(0), highest_R1.clamp_min(0)


def _between(lowest_R1: Tensor, highest_R1: Tensor, levels: _Levels) -> _Steps:
    """The finest grid that covers [lowest, highest]."""
    low, high, symmetric = levels
    if symmetric:
        scale_R1 = torch.maximum(highest_R1 / high, lowest_R1 / low).clamp_min(SMALLEST_SCALE)
        return _Steps(scale_R1, torch.zeros_like(scale_R1))
    scale_R1 = ((highest_R1 - lowest_R1) / (high - low)).clamp_min(SMALLEST_SCALE)
    return _Steps(scale_R1, (low - lowest_R1 / scale_R1).round().clamp(low, high))


def _found(values_RM: Tensor, levels: _Levels, ranges: str) -> _Steps:
    if ranges == "mse":
        return _least_squares(values_RM, levels)
    ends = _ends(values_RM)
    if ranges == "percentile":
        ends = percentile_rows(values_RM, *ends, symmetric=levels.symmetric)
    elif ranges == "entropy":
        ends = entropy_rows(values_RM, *ends, levels=levels.high - levels.low + 1)
    return _between(*ends, levels)


def _least_squares(values_RM: Tensor, levels: _Levels) -> _Steps:
    is_small = values_RM.numel() * (levels.high - levels.low) <= _MOST_BREAKS
    return (_least_squares_exactly if levels.symmetric and is_small else _least_squares_nearly)(values_RM, levels)


def _least_squares_exactly(values_RM: Tensor, levels: _Levels) -> _Steps:
    """The symmetric grid of least squared error.

    As the scale falls, the code of w steps from k - 1 to k at |w| / (k - 1/2). Between two such breaks no code q changes, and
    the best scale A / B, with A = sum |w q| and B = sum q^2, leaves sum w^2 - A^2 / B. So sort the breaks; A and B are
    running sums.
    """
    magnitude_RM1 = values_RM.abs()[:, :, None]
    last_RM1 = torch.where(values_RM < 0, -levels.low, levels.high)[:, :, None]
    code_L = torch.arange(1, max(-levels.low, levels.high) + 1, device=values_RM.device)
    exists_RML = code_L <= last_RM1
    order_RN = (magnitude_RM1 / (code_L - 0.5) * exists_RML).flatten(1).argsort(1, descending=True)
    product_RN = (magnitude_RM1 * exists_RML).flatten(1).gather(1, order_RN).cumsum(1, dtype=torch.float64)
    square_RN = ((2 * code_L - 1) * exists_RML).flatten(1).gather(1, order_RN).cumsum(1).clamp_min(1)
    best_R1 = (product_RN.square() / square_RN).argmax(1, keepdim=True)
    scale_R1 = (product_RN.gather(1, best_R1) / square_RN.gather(1, best_R1)).float().clamp_min(SMALLEST_SCALE)
    return _Steps(scale_R1, torch.zeros_like(scale_R1))


def _least_squares_nearly(values_RM: Tensor, levels: _Levels) -> _Steps:
    """Ends shrunk to the least squared error of each row (arXiv:2106.08295, section 3.1): coarsely, to a fiftieth; finely, each
    end of an affine grid also by itself; then codes and scale in turns, each the best for the other.
    """
    ends = _ends(values_RM)
    best = _between(*ends, levels)
    least_R1 = _error(values_RM, best, levels)
    alone = () if levels.symmetric else tuple((a, b) for factor in _FINE for a, b in ((factor, 1.0), (1.0, factor)))
    for factors in (_both(_COARSE), _both(_FINE) + alone):
        start = ends
        for low_factor, high_factor in factors:
            tried = (start[0] * low_factor, start[1] * high_factor)
            steps = _between(*tried, levels)
            error_R1 = _error(values_RM, steps, levels)
            is_better_R1 = error_R1 < least_R1
            least_R1 = torch.where(is_better_R1, error_R1, least_R1)
            ends = _better(is_better_R1, tried, ends)
            best = _Steps(*_better(is_better_R1, steps, best))
    for _ in range(_TURNS):
        steps = _refitted(values_RM, best, levels)
        error_R1 = _error(values_RM, steps, levels)
        best = _Steps(*_better(error_R1 < least_R1, steps, best))
        least_R1 = torch.minimum(error_R1, least_R1)
    return best


def _both(factors: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    return tuple((factor, factor) for factor in factors)


def _better(is_better_R1: Tensor, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.where(is_better_R1, new[0], old[0]), torch.where(is_better_R1, new[1], old[1])


def _refitted(values_RM: Tensor, found: _Steps, levels: _Levels) -> _Steps:
    """The same zero points; the scale of least squared error for the codes that the present scale gives."""
    steps_RM = _steps(values_RM, *found, levels.low, levels.high)
    scale_R1 = (values_RM * steps_RM).sum(1, keepdim=True) / steps_RM.square().sum(1, keepdim=True).clamp_min(1)
    return _Steps(scale_R1.clamp_min(SMALLEST_SCALE), found.zero_R1)


def _error(values_RM: Tensor, found: _Steps, levels: _Levels) -> Tensor:
    steps_RM = _steps(values_RM, *found, levels.low, levels.high)
    return steps_RM.mul_(found.scale_R1).sub_(values_RM).square_().sum(1, keepdim=True)
