"""From what a tensor was seen to hold, to the range [low, high] that its grid should cover.

Dimension key: N bins of a histogram, C candidate ranges.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 2048


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
    spread_N = torch.where(kept_N, mass_L[level_N] / bins_L[level_N].clamp_min(1), torch.full_like(counts_N, 1e-3))
    filled_N = counts_N > 0
    p_N, q_N = counts_N[filled_N] / counts_N.sum(), spread_N[filled_N] / spread_N[filled_N].sum()
    return float((p_N * (p_N / q_N).log()).sum())
