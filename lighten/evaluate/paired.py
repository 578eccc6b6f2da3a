"""Two networks on the same examples: the drop, how sure it is, and whether a tolerance holds.

Dimension key: N examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from lighten.core.errors import InputError
from lighten.evaluate import metrics
from lighten.evaluate.flips import Flips, find_flips
from lighten.evaluate.intervals import bootstrap_interval, paired_score_interval
from lighten.evaluate.metrics import Metric, metric_named, require_suited
from lighten.evaluate.predictions import Array, Predictions

Decision = Literal["holds", "broken", "undecided"]
_MOST_EXAMPLES = 10**8  # beyond this no set decides: the drop lies on the tolerance


@dataclass(frozen=True)
class Comparison:
    """original_score, compressed_score: in the metric's unit. drop: positive when the compressed network is worse; see
    Metric.drop. drop_interval: (low, high) at 95 %, paired. method: how the interval was made. lost, gained: examples only
    the original, only the compressed network has right; None where examples are not right or wrong. mean_kl: mean
    KL(original || compressed) in nats for classifiers, else None (for language models `collect_pair` gives it).
    """

    metric: str
    original_score: float
    compressed_score: float
    drop: float
    drop_interval: tuple[float, float]
    num_examples: int
    method: str
    flips: Flips
    lost: int | None = None
    gained: int | None = None
    mean_kl: float | None = None

    def decides(self, max_drop: float) -> Decision:
        """Whether the drop is at most `max_drop`: "holds" or "broken" when the whole interval says so, else "undecided"."""
        return _decide(self.drop_interval, max_drop)

    def needed_examples(self, max_drop: float) -> int | None:
        """About how many examples would decide `max_drop` if the rates seen here persist; num_examples where it is decided,
        None where the drop lies so near the tolerance that no practical set decides.
        """
        if self.decides(max_drop) != "undecided":
            return self.num_examples
        if self.lost is not None and self.gained is not None:
            return _needed_pairs(self.lost, self.gained, self.num_examples, max_drop=max_drop)
        gap = max_drop - self.drop
        low, high = self.drop_interval
        reach = high - self.drop if gap > 0 else self.drop - low
        needed = np.inf if gap == 0 else self.num_examples * (reach / gap) ** 2  # an interval narrows as 1 / sqrt(n)
        return None if needed > _MOST_EXAMPLES else int(np.ceil(needed))

    def explain(self, max_drop: float) -> str:
        """One sentence: whether `max_drop` holds, and when the set is too small, how many examples it would take."""
        low, high = self.drop_interval
        seen = f"The drop in {self.metric} is {_percent(self.drop)} (95 % interval {_percent(low)} to {_percent(high)})"
        seen += f" on {self.num_examples:,} examples"
        decision = self.decides(max_drop)
        if decision != "undecided":
            return f"{seen}, so the tolerance of {_percent(max_drop)} {'holds' if decision == 'holds' else 'is broken'}."
        needed = self.needed_examples(max_drop)
        cure = "it lies on the tolerance itself" if needed is None else f"about {needed:,} would be needed"
        return f"{seen}, too few to decide a tolerance of {_percent(max_drop)}: {cure}."

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "drop_interval": list(self.drop_interval), "flips": self.flips.to_dict()}


def compare(
    original: Predictions, compressed: Predictions, *, metric: str, seed: int = 0, labels: Sequence[str] = ()
) -> Comparison:
    """Scores both networks and the drop between them. labels: class names in output order, for the flips.

    Raises InputError when the two did not see the same examples, or the metric is undefined on them or does not suit the task.
    """
    chosen = metric_named(metric)
    require_suited(metric, original.task)
    _require_same_examples(original, compressed)
    targets = original.targets if chosen.against_original is None else chosen.against_original(original.values)
    scores = [metrics.score(metric, one.values, targets) for one in (original, compressed)]
    # Labels that the metric ignores may number other classes than the network's; then the flips must ignore them too.
    labelled = original if chosen.against_original is None else replace(original, targets=None)
    drop = float(chosen.drop(*scores))
    if not np.isfinite(drop):
        raise InputError(f"The original's {metric} is 0, so a relative drop is undefined.")
    lost, gained = _right_by_one(original.values, compressed.values, metric=chosen, targets=targets)
    if lost is not None and gained is not None:
        interval, method = paired_score_interval(lost, gained, len(original)), "paired score interval (Tango 1998)"
    else:
        kept = np.zeros(len(original)) if targets is None else targets
        low, high, num_resamples = bootstrap_interval(chosen, original.values, compressed.values, targets=kept, seed=seed)
        interval, method = (low, high), f"paired bootstrap, {num_resamples} resamples, seed {seed}"
    return Comparison(
        metric=metric,
        original_score=scores[0],
        compressed_score=scores[1],
        drop=drop,
        drop_interval=interval,
        num_examples=len(original),
        method=method,
        flips=find_flips(_one_value(labelled), _one_value(compressed), labels=labels),
        lost=lost,
        gained=gained,
        mean_kl=metrics.score("mean_kl", compressed.values, original.values) if original.are_classes else None,
    )


def _one_value(predictions: Predictions) -> Predictions:
    """A recording's wrong words and spoken words as its own word error rate, so that recordings can be compared."""
    if predictions.task != "speech-recognition":
        return predictions
    return replace(predictions, values=predictions.values[:, 0] / predictions.values[:, 1])


def _require_same_examples(original: Predictions, compressed: Predictions) -> None:
    if not np.array_equal(original.index, compressed.index):
        raise InputError(
            f"A paired comparison needs the same examples. Got {len(original)} and {len(compressed)}, not all the same.",
            hint="Collect both with one Pass.",
        )
    if original.values.shape != compressed.values.shape:
        raise InputError(f"The outputs differ in shape: {original.values.shape} and {compressed.values.shape}.")


def _right_by_one(
    original: Array, compressed: Array, *, metric: Metric, targets: Array | None
) -> tuple[int, int] | tuple[None, None]:
    if metric.hits is None or targets is None:
        return None, None
    before_N, after_N = metric.hits(original, targets), metric.hits(compressed, targets)
    return int((before_N & ~after_N).sum()), int((~before_N & after_N).sum())


def _decide(interval: tuple[float, float], max_drop: float) -> Decision:
    low, high = interval
    if high <= max_drop:
        return "holds"
    return "broken" if low > max_drop else "undecided"


def _needed_pairs(lost: int, gained: int, num_examples: int, *, max_drop: float) -> int | None:
    """The smallest set with the same rates of disagreement whose interval decides; by doubling, then bisection."""

    def decided(size: int) -> bool:
        grown = size / num_examples
        return _decide(paired_score_interval(lost * grown, gained * grown, size), max_drop) != "undecided"

    enough = num_examples
    while not decided(enough):
        enough *= 2
        if enough > _MOST_EXAMPLES:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decided(middle) else (middle, enough)
    return enough


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
