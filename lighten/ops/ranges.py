"""From what a tensor was seen to hold, to the range [low, high] that its grid should cover.

Dimension key: N bins of a histogram, C candidate ranges, R rows that have a range of their own, M values of a row, L steps of a
grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 2048
_ROW_BINS = 512  # of a row of weights, which has fewer values
_ROW_CELLS = 2**22  # bins that are worked on at once: 16 MB each of a handful of arrays
_KEPT_PERCENT = 99.9  # of a row of weights; the activations' 99.99 would leave out none of a thousand
_EMPTY = 1e-3  # of a count: what a clipped bin keeps, so that its divergence stays finite


@dataclass(frozen=True)
class Seen:
    """What calibration saw of one tensor.

    low, high: the extremes over all values. average_low, average_high: moving averages of the batches' extremes.
    counts_N: a histogram of a sample over [low, high], float64.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    counts_N: Tensor


def minmax(seen: Seen) -> tuple[float, float]:
    """Everything that was seen: no clipping, the coarsest step."""
    return seen.low, seen.high


def moving_average(seen: Seen) -> tuple[float, float]:
    """Extremes averaged over batches with decay 0.9 (Jacob et al. 2018, arXiv:1712.05877, section 3.1)."""
    return seen.average_low, seen.average_high


def percentile(seen: Seen, percent: float = 99.99) -> tuple[float, float]:
    """The central range that leaves out (100 - percent) % of values, half on each side.

    percent: in (50, 100]. A side whose extreme is zero stays at zero.
    """
    tail = (1 - percent / 100) / 2 * float(seen.counts_N.sum())
    cumulative_N = seen.counts_N.cumsum(0)
    first = int(torch.searchsorted(cumulative_N, tail, right=True))
    last = int(torch.searchsorted(cumulative_N, float(cumulative_N[-1]) - tail))
    edges = _edges(seen)
    return float(edges[min(first, NUM_BINS - 1)]), float(edges[min(last + 1, NUM_BINS)])


def mean_squared_error(seen: Seen, bits: int = 8) -> tuple[float, float]:
    """The range of least expected squared error, rounding and clipping together (arXiv:2106.08295, section 3.1).

    Both ends shrink by one factor, then each end alone: 2 x 64 + 64 candidates, evaluated on the histogram's centres.
    """
    factors_C = torch.linspace(1.0, 0.2 if bits >= 7 else 0.02, 64, dtype=torch.float64)  # few levels clip more
    low, high = _least(seen, factors_C * seen.low, factors_C * seen.high, bits)
    low, high = _least(seen, factors_C * seen.low, torch.full_like(factors_C, high), bits)
    return _least(seen, torch.full_like(factors_C, low), factors_C * seen.high, bits)


def entropy(seen: Seen, bits: int = 8) -> tuple[float, float]:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the original one (Migacz 2017).

    differs from the source: values beyond the range are counted where they land, on the outermost step, in the quantized
    distribution only. The source moves them there in both, so that clipping costs nothing and long tails are always cut.
    """
    factors = torch.linspace(1.0, 0.2, 64, dtype=torch.float64).tolist()
    divergences = [_divergence(seen, factor, 2**bits) for factor in factors]
    factor = factors[min(range(len(factors)), key=divergences.__getitem__)]
    return seen.low * factor, seen.high * factor


RANGES: dict[str, Callable[..., tuple[float, float]]] = {
    "minmax": lambda seen, bits=8: minmax(seen),
    "moving_average": lambda seen, bits=8: moving_average(seen),
    "percentile": lambda seen, bits=8: percentile(seen),
    "mse": mean_squared_error,
    "entropy": entropy,
}


def percentile_rows(values_RM: Tensor, low_R1: Tensor, high_R1: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The ends of each row without 0.1 % of its values, interpolated between them: of the largest magnitudes for a symmetric
    grid, else half on each side. Rows of a few values, depthwise kernels, keep all but a little of their largest.

    low_R1 <= 0 <= high_R1: the row's extremes; no end is moved beyond them.
    """
    share = _KEPT_PERCENT / 100
    if symmetric:
        top_R1 = _quantile(values_RM.abs(), share)
        return torch.maximum(low_R1, -top_R1), torch.minimum(high_R1, top_R1)
    tail = (1 - share) / 2
    return _quantile(values_RM, tail).clamp(low_R1, low_R1 * 0), _quantile(values_RM, 1 - tail).clamp(high_R1 * 0, high_R1)


def entropy_rows(values_RM: Tensor, low_R1: Tensor, high_R1: Tensor, *, levels: int) -> tuple[Tensor, Tensor]:
    """For each row what `entropy` does for one tensor: both ends shrunk by the factor of least divergence, 32 of 1 to 0.2.

    low_R1 <= 0 <= high_R1: the row's extremes. A row of fewer values than the grid has levels mostly keeps its ends: each value
    then has a level to itself.
    """
    num_rows = max(_ROW_CELLS // _ROW_BINS, 1)
    parts = [slice(start, start + num_rows) for start in range(0, len(values_RM), num_rows)]
    factors = [_least_divergent(values_RM[part], low_R1[part], high_R1[part], levels=levels) for part in parts]
    factor_R1 = torch.cat(factors)
    return low_R1 * factor_R1, high_R1 * factor_R1


def _least_divergent(values_RM: Tensor, low_R1: Tensor, high_R1: Tensor, *, levels: int) -> Tensor:
    """The best factor of each row, R x 1."""
    width_R1 = (high_R1 - low_R1).clamp_min(1e-30)
    bin_RM = ((values_RM - low_R1) / width_R1 * _ROW_BINS).long().clamp_(0, _ROW_BINS - 1)
    counts_RN = torch.zeros(len(values_RM), _ROW_BINS, device=values_RM.device)
    counts_RN.scatter_add_(1, bin_RM, torch.ones_like(values_RM))
    position_N = (torch.arange(_ROW_BINS, device=values_RM.device) + 0.5) / _ROW_BINS
    centres_RN = low_R1 + width_R1 * position_N
    best_R1, least_R1 = torch.ones_like(width_R1), torch.full_like(width_R1, float("inf"))
    for factor in torch.linspace(1.0, 0.2, 32).tolist():
        divergence_R1 = _row_divergence(centres_RN, counts_RN, low_R1 * factor, high_R1 * factor, levels=levels)
        is_better_R1 = divergence_R1 < least_R1
        best_R1 = torch.where(is_better_R1, factor, best_R1)
        least_R1 = torch.where(is_better_R1, divergence_R1, least_R1)
    return best_R1


def _row_divergence(centres_RN: Tensor, counts_RN: Tensor, low_R1: Tensor, high_R1: Tensor, *, levels: int) -> Tensor:
    """`_divergence` of every row, R x 1."""
    step_R1 = ((high_R1 - low_R1) / (levels - 1)).clamp_min(1e-30)
    kept_RN = (counts_RN > 0) & (centres_RN >= low_R1 - step_R1 / 2) & (centres_RN <= high_R1 + step_R1 / 2)
    level_RN = ((centres_RN.clamp(low_R1, high_R1) - low_R1) / step_R1).round_().long().clamp_(0, levels - 1)
    mass_RL, bins_RL = (torch.zeros(len(counts_RN), levels, device=counts_RN.device) for _ in range(2))
    mass_RL.scatter_add_(1, level_RN, counts_RN)
    bins_RL.scatter_add_(1, level_RN, kept_RN.to(counts_RN.dtype))
    spread_RN = (mass_RL / bins_RL.clamp_min(1)).gather(1, level_RN)
    q_RN = torch.where(kept_RN, spread_RN, _EMPTY) * (counts_RN > 0)
    p_RN, q_RN = (value_RN / value_RN.sum(1, keepdim=True) for value_RN in (counts_RN, q_RN))
    terms_RN = torch.where(counts_RN > 0, p_RN * (p_RN / q_RN.clamp_min(1e-30)).clamp_min(1e-30).log(), 0.0)
    return terms_RN.sum(1, keepdim=True)


def _quantile(values_RM: Tensor, share: float) -> Tensor:
    """R x 1, interpolated between neighbours. torch.quantile takes no more than 2^24 values."""
    place = share * (values_RM.shape[1] - 1)
    below, part = int(place), place - int(place)
    sorted_RM = values_RM.sort(1).values
    above = min(below + 1, values_RM.shape[1] - 1)
    return torch.lerp(sorted_RM[:, below : below + 1], sorted_RM[:, above : above + 1], part)


def _edges(seen: Seen) -> Tensor:
    return torch.linspace(seen.low, seen.high, NUM_BINS + 1, dtype=torch.float64)


def _centres(seen: Seen) -> Tensor:
    edges = _edges(seen)
    return (edges[1:] + edges[:-1]) / 2


def _least(seen: Seen, low_C: Tensor, high_C: Tensor, bits: int) -> tuple[float, float]:
    low_C1, high_C1 = low_C.clamp(max=0.0)[:, None], high_C.clamp(min=0.0)[:, None]
    levels = 2**bits - 1
    scale_C1 = ((high_C1 - low_C1) / levels).clamp_min(1e-30)
    zero_C1 = (-low_C1 / scale_C1).round().clamp(0, levels)
    centres_N = _centres(seen)
    codes_CN = (centres_N / scale_C1).round_().add_(zero_C1).clamp_(0, levels)
    error_CN = codes_CN.sub_(zero_C1).mul_(scale_C1).sub_(centres_N).square_()
    best = int((error_CN @ seen.counts_N).argmin())
    return float(low_C[best]), float(high_C[best])


def _divergence(seen: Seen, factor: float, levels: int) -> float:
    """KL(original || quantized) over the histogram's bins. A step's mass is spread evenly over its bins that were not empty;
    the bins beyond the range keep a thousandth of a count, so that cutting them costs their mass times a finite number.
    """
    low, high = min(seen.low, 0.0) * factor, max(seen.high, 0.0) * factor
    step = max((high - low) / (levels - 1), 1e-30)
    centres_N, counts_N = _centres(seen), seen.counts_N
    kept_N = (counts_N > 0) & (centres_N >= low - step / 2) & (centres_N <= high + step / 2)
    level_N = ((centres_N.clamp(low, high) - low) / step).round().long().clamp(0, levels - 1)
    mass_L = torch.zeros(levels, dtype=torch.float64).index_add_(0, level_N, counts_N)
    bins_L = torch.zeros(levels, dtype=torch.float64).index_add_(0, level_N, kept_N.double())
    spread_N = torch.where(kept_N, mass_L[level_N] / bins_L[level_N].clamp_min(1), torch.full_like(counts_N, _EMPTY))
    filled_N = counts_N > 0
    p_N, q_N = counts_N[filled_N] / counts_N.sum(), spread_N[filled_N] / spread_N[filled_N].sum()
    return float((p_N * (p_N / q_N).log()).sum())
