"""Scores as plain functions on arrays, and the table that names them.

Dimension key: N examples, C classes, K columns, R resamples, G groups of tied values.

Every score takes `counts_RN`: how often each example counts in each of R resamples. A plain score is one row of ones; the
bootstrap draws many rows. So one definition serves both, and the two networks of a comparison see the same draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lighten.core.errors import InputError
from lighten.core.recipe import refuse_unknown
from lighten.evaluate.predictions import Array

Score = Callable[[Array, Array, Array], Array]
Hits = Callable[[Array, Array], Array]

_ONLY = {"language-model": "perplexity", "speech-recognition": "word_error_rate"}
_BLOCK_CELLS = 2**21  # 16 MiB of float64


@dataclass(frozen=True)
class Metric:
    """name: the catalog key. score: (values, targets, counts_RN) -> scores_R. hits: where the score is the mean of a 0 or 1 per
    example, (values, targets) -> bool (N,), else None. against_original: derives the targets from the original's values
    instead of labels. needs_targets: False where the values alone give the score.

    scale: how `drop` is measured. "absolute": on the score's own scale, 0.01 is one point in percent. "relative": as a
    fraction of the original's score, for scores without an upper end (perplexity, mse).
    """

    name: str
    higher_is_better: bool
    scale: Literal["absolute", "relative"]
    score: Score
    hits: Hits | None = None
    against_original: Callable[[Array], Array] | None = None
    needs_targets: bool = True

    @property
    def per_example(self) -> bool:
        """True when the score is the mean of a 0 or 1 per example."""
        return self.hits is not None

    def drop(self, original: Any, compressed: Any) -> Any:
        """Positive when the compressed network is worse, for scores or arrays of scores.

        absolute: original - compressed (compressed - original where lower is better). relative: compressed / original - 1.
        """
        if self.scale == "relative":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.divide(compressed, original) - 1
        return original - compressed if self.higher_is_better else compressed - original


def metric_named(name: str) -> Metric:
    """The metric. Raises InputError with the nearest known name."""
    refuse_unknown("metric", name, METRICS)
    return METRICS[name]


def require_suited(name: str, task: str) -> None:
    """Raises InputError where the metric does not read what is kept of the task's outputs: totals of a window or recording are
    no logits, and logits are no totals.
    """
    metric_named(name)
    own = _ONLY.get(task)
    if name != own and (own is not None or name in _ONLY.values()):
        hint = f"It is scored by {own}." if own else "It needs totals, as of a language model or a speech recognizer."
        raise InputError(f"The metric {name!r} does not suit the task {task}.", hint=hint)


def score(name: str, values: Array, targets: Array | None = None) -> float:
    """One network's score by metric `name`. Raises InputError where the metric is undefined on these examples."""
    metric = metric_named(name)
    if targets is None and metric.against_original is not None:
        targets = metric.against_original(values)
    if targets is None and metric.needs_targets:
        raise InputError(f"The metric {name!r} needs labels, and the data has none.", hint="Use agreement.")
    result = float(metric.score(values, np.zeros(len(values)) if targets is None else targets, np.ones((1, len(values))))[0])
    if not np.isfinite(result):
        raise InputError(f"The metric {name!r} is undefined on these {len(values)} examples.", hint="Are all targets the same?")
    return result


def accuracy_hits(values_NC: Array, targets_N: Array) -> Array:
    """True where the largest logit is the target's."""
    _require_labels(values_NC, targets_N)
    hits: Array = values_NC.argmax(axis=1) == targets_N
    return hits


def top_5_hits(values_NC: Array, targets_N: Array) -> Array:
    """True where the target is among the 5 largest logits. Ties count against it, so constant logits never hit."""
    _require_labels(values_NC, targets_N)
    if values_NC.shape[1] <= 5:
        raise InputError(f"top_5 needs more than 5 classes. Got {values_NC.shape[1]}.", hint="Use accuracy.")
    target_N1 = np.take_along_axis(values_NC, targets_N[:, None], axis=1)
    hits: Array = (values_NC >= target_N1).sum(axis=1) <= 5
    return hits


def f1_macro(values_NC: Array, targets_N: Array, counts_RN: Array) -> Array:
    """Unweighted mean of the classes' F1, over the classes that occur among the targets or the predictions."""
    _require_labels(values_NC, targets_N)
    f1_RC, occurs_RC = _f1(values_NC.argmax(axis=1), targets_N, counts_RN)
    means: Array = (f1_RC * occurs_RC).sum(axis=1) / occurs_RC.sum(axis=1)
    return means


def f1_binary(values_NC: Array, targets_N: Array, counts_RN: Array) -> Array:
    """F1 of class 1; 0 when class 1 is neither present nor predicted."""
    _require_labels(values_NC, targets_N)
    if values_NC.shape[1] != 2:
        raise InputError(f"f1_binary needs two classes. Got {values_NC.shape[1]}.", hint="Use f1, the mean over classes.")
    return _f1(values_NC.argmax(axis=1) == 1, targets_N == 1, counts_RN, classes=[True])[0][:, 0]


def spearman(values_N: Array, targets_N: Array, counts_RN: Array) -> Array:
    """Rank correlation in [-1, 1], tied values at their mean rank. Constant values rank nothing and score 0."""
    _require_one_column(values_N, "spearman")
    ranks_RN, target_ranks_RN = _ranks(values_N.reshape(-1), counts_RN), _ranks(targets_N.reshape(-1), counts_RN)
    num_R1 = counts_RN.sum(axis=1, keepdims=True)
    centred_RN = ranks_RN - (num_R1 + 1) / 2  # the mean rank is (n + 1) / 2, ties or not
    target_centred_RN = target_ranks_RN - (num_R1 + 1) / 2
    covariance_R = (counts_RN * centred_RN * target_centred_RN).sum(axis=1)
    variance_R = (counts_RN * centred_RN**2).sum(axis=1)
    target_variance_R = (counts_RN * target_centred_RN**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation_R = covariance_R / np.sqrt(variance_R * target_variance_R)
    return np.where((variance_R == 0) & (target_variance_R > 0), 0.0, correlation_R)


def auc(values: Array, targets_N: Array, counts_RN: Array) -> Array:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties counting one half.

    One column is the score of class 1; two are logits, ranked by their difference; more are logits, whose softmax is scored one
    class against the rest and averaged over the classes that have both positives and negatives.

    Where every column has a label of its own, 0 or 1 in the values' shape (the frames of a recording), each value is a score of
    class 1 and all are ranked together.
    """
    if targets_N.ndim == 2:
        return _pooled_auc(values, targets_N, counts_RN)
    values_NC = values.reshape(len(values), -1)
    num_classes = values_NC.shape[1]
    _require_range(targets_N, max(num_classes, 2))
    if num_classes <= 2:
        return _binary_auc(values_NC[:, -1] - (values_NC[:, 0] if num_classes == 2 else 0.0), targets_N == 1, counts_RN)
    softmax_NC = np.exp(log_softmax(values_NC))
    areas_RC = np.stack([_binary_auc(softmax_NC[:, c], targets_N == c, counts_RN) for c in range(num_classes)], axis=1)
    defined_RC = np.isfinite(areas_RC)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(defined_RC, areas_RC, 0.0).sum(axis=1) / defined_RC.sum(axis=1)
    return means


def word_errors(hypothesis: str, reference: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions that turn the reference's words into the hypothesis's, and the number of
    reference words. Words are split at white space; case and punctuation count.
    """
    spoken, written = reference.split(), hypothesis.split()
    row = list(range(len(written) + 1))
    for num_deleted, word in enumerate(spoken, start=1):
        diagonal, row[0] = row[0], num_deleted
        for column, other in enumerate(written, start=1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other))
    return row[-1], len(spoken)


def word_error_rate(errors_N2: Array, targets: Array, counts_RN: Array) -> Array:
    """Errors over reference words, both summed over the examples; rows are `word_errors`. May exceed 1."""
    return _ratio(errors_N2, counts_RN)


def perplexity(losses_N2: Array, targets: Array, counts_RN: Array) -> Array:
    """exp of the mean negative log-likelihood a token; rows are (sum in nats, number of tokens)."""
    with np.errstate(over="ignore"):
        return np.exp(_ratio(losses_N2, counts_RN))


def mse(values: Array, targets: Array, counts_RN: Array) -> Array:
    """Mean squared error, over examples and columns."""
    rows, target_rows = values.reshape(len(values), -1), targets.reshape(len(targets), -1)
    if rows.shape != target_rows.shape:
        raise InputError(f"{rows.shape[1]} outputs an example do not fit {target_rows.shape[1]} targets.")
    return _mean(np.square(rows.astype(np.float64) - target_rows).mean(axis=1), counts_RN)


def mean_kl(values_NC: Array, original_NC: Array, counts_RN: Array) -> Array:
    """Mean over examples of KL(original || these values) in nats, both logits."""
    log_p, log_q = log_softmax(original_NC), log_softmax(values_NC)
    return _mean((np.exp(log_p) * (log_p - log_q)).sum(axis=1), counts_RN)


def log_softmax(logits_NC: Array) -> Array:
    """Log-probabilities in float64."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    log_probabilities: Array = shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))
    return log_probabilities


def _mean(terms_N: Array, counts_RN: Array) -> Array:
    means: Array = counts_RN @ terms_N.astype(np.float64) / counts_RN.sum(axis=1)
    return means


def _ratio(totals_N2: Array, counts_RN: Array) -> Array:
    sums_R2 = counts_RN @ totals_N2.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = sums_R2[:, 0] / sums_R2[:, 1]
    return ratios


def _mean_of(hits: Hits) -> Score:
    return lambda values, targets, counts_RN: _mean(hits(values, targets), counts_RN)


def _f1(predicted_N: Array, targets_N: Array, counts_RN: Array, *, classes: Any = None) -> tuple[Array, Array]:
    """F1 by class, and whether the class occurs at all in the resample."""
    classes_C = np.union1d(predicted_N, targets_N) if classes is None else np.asarray(classes)
    predicted_NC, actual_NC = predicted_N[:, None] == classes_C, targets_N[:, None] == classes_C
    both_RC = counts_RN @ (predicted_NC & actual_NC).astype(np.float64)
    either_RC = counts_RN @ (predicted_NC.astype(np.float64) + actual_NC)
    return 2 * both_RC / np.maximum(either_RC, 1), either_RC > 0


def _tied_groups(values_N: Array, counts_RN: Array) -> tuple[Array, Array, Array]:
    """Order that sorts, where each group of equal values starts in it, and each example's group."""
    order_N = np.argsort(values_N, kind="stable")
    is_start_N = np.concatenate([[True], np.diff(values_N[order_N]) != 0])
    group_N = np.empty(len(values_N), dtype=np.int64)
    group_N[order_N] = np.cumsum(is_start_N) - 1
    return order_N, np.flatnonzero(is_start_N), group_N


def _ranks(values_N: Array, counts_RN: Array) -> Array:
    """Mean rank of each example within each resample, from 1."""
    order_N, starts_G, group_N = _tied_groups(values_N, counts_RN)
    sizes_RG = np.add.reduceat(counts_RN[:, order_N], starts_G, axis=1)
    ranks: Array = (np.cumsum(sizes_RG, axis=1) - (sizes_RG - 1) / 2)[:, group_N]
    return ranks


def _binary_auc(values_N: Array, positive_N: Array, counts_RN: Array) -> Array:
    """Mann and Whitney's statistic over groups of tied values; NaN where a resample lacks positives or negatives."""
    order_N, starts_G, _ = _tied_groups(values_N, counts_RN)
    sorted_RN = counts_RN[:, order_N]
    positives_RG = np.add.reduceat(sorted_RN * positive_N[order_N], starts_G, axis=1)
    negatives_RG = np.add.reduceat(sorted_RN, starts_G, axis=1) - positives_RG
    below_RG = np.cumsum(negatives_RG, axis=1) - negatives_RG / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        areas: Array = (positives_RG * below_RG).sum(axis=1) / (positives_RG.sum(axis=1) * negatives_RG.sum(axis=1))
    return areas


def _pooled_auc(values_NK: Array, targets_NK: Array, counts_RN: Array) -> Array:
    """Over all values of all examples; a resample that draws an example draws all of its columns."""
    if values_NK.shape != targets_NK.shape:
        raise InputError(f"Labels of shape {targets_NK.shape} do not fit outputs of shape {values_NK.shape}.")
    _require_range(targets_NK.reshape(-1), 2)
    num_columns = values_NK.shape[1]
    num_blocks = -(-counts_RN.shape[0] * values_NK.size // _BLOCK_CELLS)  # K times the counts: in blocks, so that memory holds
    areas = [
        _binary_auc(values_NK.reshape(-1), targets_NK.reshape(-1) == 1, np.repeat(block_RN, num_columns, axis=1))
        for block_RN in np.array_split(counts_RN, num_blocks)
    ]
    return np.concatenate(areas)


def _require_labels(values_NC: Array, targets_N: Array) -> None:
    if values_NC.ndim != 2 or values_NC.shape[1] < 2:
        raise InputError(
            f"A predicted class needs at least two logits an example. Got shape {values_NC.shape}.",
            hint="For one score an example use auc.",
        )
    _require_range(targets_N, values_NC.shape[1])


def _require_range(targets_N: Array, num_classes: int) -> None:
    if targets_N.ndim != 1 or not np.issubdtype(targets_N.dtype, np.integer):
        raise InputError(f"Labels must be one integer an example. Got {targets_N.dtype} of shape {targets_N.shape}.")
    outside_N = (targets_N < 0) | (targets_N >= num_classes)
    if outside_N.any():
        row = int(np.argmax(outside_N))
        raise InputError(f"Label {targets_N[row]} of row {row} is outside the network's classes 0 to {num_classes - 1}.")


def _require_one_column(values_N: Array, name: str) -> None:
    if values_N.size != len(values_N):
        raise InputError(f"{name} needs one value an example. Got shape {values_N.shape}.")


def _predicted(values_NC: Array) -> Array:
    predicted: Array = values_NC.argmax(axis=1)
    return predicted


_ACCURACY = _mean_of(accuracy_hits)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, "absolute", _ACCURACY, hits=accuracy_hits),
        Metric("agreement", True, "absolute", _ACCURACY, hits=accuracy_hits, against_original=_predicted),
        Metric("probe", True, "absolute", _ACCURACY, hits=accuracy_hits),
        Metric("top_5", True, "absolute", _mean_of(top_5_hits), hits=top_5_hits),
        Metric("f1", True, "absolute", f1_macro),
        Metric("f1_binary", True, "absolute", f1_binary),
        Metric("spearman", True, "absolute", spearman),
        Metric("auc", True, "absolute", auc),
        Metric("word_error_rate", False, "absolute", word_error_rate, needs_targets=False),
        Metric("perplexity", False, "relative", perplexity, needs_targets=False),
        Metric("mse", False, "relative", mse),
        Metric("mean_kl", False, "absolute", mean_kl, against_original=lambda values_NC: values_NC),
    )
}
