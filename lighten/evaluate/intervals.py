"""95 % intervals for the drop between two networks scored on the same examples.

Dimension key: N examples, R resamples.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from lighten.core.errors import InputError
from lighten.evaluate.metrics import Metric
from lighten.evaluate.predictions import Array

NUM_RESAMPLES = 10_000

# Tango's interval at a nominal 95 % covers as little as 92.9 %. At a nominal 97 % its coverage, enumerated over every
# outcome for n = 10 to 5,000, up to 80 expected disagreements from evenly split to all lost, is never below 95 %
# (tests/evaluate/test_intervals.py repeats this up to 18).
_TANGO_Z = NormalDist().inv_cdf(0.985)

_CHUNK_CELLS = 2**21  # resample counts held at once: 16 MiB of float64
# Examples x columns x resamples: AUC over 10 classes of 10,000 examples takes about 20 s on one core. Above it there are fewer
# resamples, though never fewer than 1,000.
_WORK_CELLS = 500_000_000


def paired_score_interval(lost: float, gained: float, num_examples: float) -> tuple[float, float]:
    """Interval for the difference of two proportions of right answers on the same examples.

    lost: examples only the original has right; gained: only the compressed network; not necessarily whole numbers.
    Returns (low, high) of (lost - gained) / num_examples in [-1, 1]; it covers the true drop at least 95 % of the time from 10
    examples on. Without any disagreement it is about +-4.7 / num_examples, not zero.

    Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17:891, equations for the score statistic. The conditional exact interval (Clopper and Pearson on
    the split of the disagreements, Newcombe 1998, Statistics in Medicine 17:2635) is not used: it takes their number as
    known, so where nearly all of them are losses it covers the drop as little as 26 % of the time.
    """
    observed = (lost - gained) / num_examples

    def statistic(drop: float) -> float:
        return _tango_statistic(lost, gained, num_examples, drop=drop)

    low = _crossing(lambda drop: statistic(drop) > _TANGO_Z, -1.0, observed)
    high = _crossing(lambda drop: statistic(drop) >= -_TANGO_Z, observed, 1.0)
    return low, high


def _tango_statistic(lost: float, gained: float, num_examples: float, *, drop: float) -> float:
    """Standard deviations between the observed drop and `drop`, the variance taken at the likelihood's best fit under
    `drop`.
    """
    b = (2 * num_examples - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    gained_rate = (math.sqrt(max(b * b - 8 * num_examples * c, 0.0)) - b) / (4 * num_examples)
    variance = num_examples * (2 * gained_rate + drop * (1 - drop))
    distance = lost - gained - num_examples * drop
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds` turns from True to False between low and high, by bisection to the last bit."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def bootstrap_interval(
    metric: Metric, original: Array, compressed: Array, *, targets: Array, seed: int
) -> tuple[float, float, int]:
    """Paired bootstrap of the drop: (low, high, number of resamples).

    The same examples are drawn, with replacement, for both networks. The percentiles are widened for small sets, 2.5 %
    becoming Phi(-sqrt(n / (n - 1)) t), t of n - 1 degrees of freedom (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", doi 10.1080/00031305.2015.1089789, section 5.3). Resamples on which the metric is undefined are left out.
    Known limits: where every example gives both networks the same value the interval has no width; neighbouring windows of
    one text are not independent, so a perplexity's interval is somewhat too narrow. Raises InputError for fewer than two
    examples or where fewer than half of the resamples define the metric.
    """
    num_examples = len(original)
    if num_examples < 2:
        raise InputError("An interval needs at least two examples.", hint="Give a larger evaluation set.")
    drops_R = _resampled_drops(metric, original, compressed, targets=targets, seed=seed)
    defined = drops_R[np.isfinite(drops_R)]
    if len(defined) < len(drops_R) / 2:
        raise InputError(
            f"{metric.name} is undefined on most resamples of these {num_examples} examples.",
            hint="Give more examples of each class.",
        )
    tail = NormalDist().cdf(-math.sqrt(num_examples / (num_examples - 1)) * _student_t(num_examples - 1))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high), len(defined)


def _num_resamples(values: Array) -> int:
    return int(np.clip(_WORK_CELLS // values.size, 1_000, NUM_RESAMPLES))


def _resampled_drops(metric: Metric, original: Array, compressed: Array, *, targets: Array, seed: int) -> Array:
    """The drop on each resample, drawn in chunks so that memory stays bounded."""
    generator = np.random.default_rng(seed)
    num_examples, remaining, drops = len(original), _num_resamples(original), []
    while remaining > 0:
        num_rows = min(remaining, max(1, _CHUNK_CELLS // num_examples))
        counts_RN = _draw_counts(generator, num_rows, num_examples)
        drops.append(metric.drop(metric.score(original, targets, counts_RN), metric.score(compressed, targets, counts_RN)))
        remaining -= num_rows
    return np.concatenate(drops)


def _draw_counts(generator: np.random.Generator, num_rows: int, num_examples: int) -> Array:
    """How often each example is drawn, N draws a row."""
    drawn_RN = generator.integers(num_examples, size=(num_rows, num_examples))
    drawn_RN += np.arange(num_rows)[:, None] * num_examples
    counts = np.bincount(drawn_RN.ravel(), minlength=num_rows * num_examples)
    return counts.reshape(num_rows, num_examples).astype(np.float64)


def _student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t. Exact for 1 and 2 degrees of freedom, otherwise the expansion about the normal point
    (Abramowitz and Stegun 26.7.5), within 0.3 % from 3 degrees of freedom on.
    """
    if freedom <= 2:
        return (12.7062, 4.3027)[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))
