"""How many zeros each layer gets, and how many there are at each moment of a training.

Dimension key: L layers.
"""

import math
from collections.abc import Sequence

from torch import Tensor

_BISECTIONS = 100
_TINY = 1e-9
_OUTLIER = 5.0  # times the layer's mean score, arXiv:2310.05175, section 4.1 ("M")
_SPREAD = 0.08  # largest distance of a layer's ratio from the mean, ibid. ("lambda")


def cubic(progress: float, *, start: float, end: float, first: float = 0.0) -> float:
    """The share of zeros s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1).

    progress: in [0, 1], 0 where the pruning begins, 1 where it ends; outside it the ends hold. start, end: s_i and s_f in
    [0, 1). first: no less than this.
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return max(end + (start - end) * left**3, first)


def cosine(progress: float, *, share: float) -> float:
    """The share of weights that move, share / 2 (1 + cos(pi t / T)) (RigL, arXiv:1911.11134, section 3). progress: t / T in
    [0, 1]; 0 behind it.
    """
    return 0.0 if progress >= 1 else share / 2 * (1 + math.cos(math.pi * progress))


def erk(shapes: Sequence[tuple[int, ...]], ratio: float) -> list[float]:
    """The share of zeros of each layer by Erdos-Renyi-kernel: densities in proportion to the sum of a weight's sizes over their
    product, (O + I + h + w) / (O I h w), dense where that exceeds 1 (RigL, arXiv:1911.11134, section 3).

    shapes: of the weights, outputs and inputs first. The share over all weights is `ratio`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    return scaled(raw, sizes, ratio)


def outlier_share(score_OK: Tensor) -> float:
    """The share of scores above five times their mean; for `outliers`, of Wanda's |w| ||x||."""
    return float((score_OK > _OUTLIER * score_OK.mean()).double().mean())


def outliers(shares: Sequence[float], sizes: Sequence[int], ratio: float) -> list[float]:
    """The share of zeros of each layer by OWL (Yin et al. 2023, arXiv:2310.05175): fewer where more weights have
    scores far above the layer's mean, within 0.08 of `ratio`. shares: of `outlier_share`. Over all weights it is `ratio`.
    """
    low, high = min(shares), max(shares)
    lift = [2 * _SPREAD * (share - low) / (high - low) if high > low else 0.0 for share in shares]
    mean = sum(one * size for one, size in zip(lift, sizes, strict=True)) / sum(sizes)
    # a density above 1 is none; what it would have kept the others keep, in proportion
    return scaled([max(1 - ratio + one - mean, 0.0) for one in lift], sizes, ratio)


def scaled(raw: Sequence[float], sizes: Sequence[int], ratio: float) -> list[float]:
    """Ratios whose densities are min(1, scale * raw), with the scale that makes the share of zeros `ratio` over all weights."""
    wanted = (1 - ratio) * sum(sizes)
    low, high = 0.0, 1 / max(min(raw), _TINY)
    for _ in range(_BISECTIONS):
        scale = (low + high) / 2
        stays = sum(size * min(1.0, scale * one) for one, size in zip(raw, sizes, strict=True))
        low, high = (scale, high) if stays < wanted else (low, scale)
    return [1 - min(1.0, low * one) for one in raw]
