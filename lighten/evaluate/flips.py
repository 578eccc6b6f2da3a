"""Which examples a network answers differently after compression.

Dimension key: N examples, C classes.

A small drop can hide many flips that cancel; they are counted one by one (Hooker et al. 2019, arXiv:1911.05248).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lighten.evaluate.metrics import log_softmax
from lighten.evaluate.predictions import Array, Predictions

MAX_EXAMPLES = 50


@dataclass(frozen=True)
class Change:
    """One example. index: its position in the split. original, compressed, target: class names, or values for tasks without
    classes; target is None without labels. lost: how far the probability of the original's class fell, in [-1, 1]; without
    classes, the distance between the two values.
    """

    index: int
    original: str | float
    compressed: str | float
    target: str | float | None
    lost: float


@dataclass(frozen=True)
class Flips:
    """num_changed: predictions that differ, None for tasks without classes. classes: by class name the counts
    `num_examples`, `changed`, `right_to_wrong` and `wrong_to_right`. examples: the changed ones (without classes: all),
    worst first, at most 50.

    Classes are those of the labels; where there are none, the original's predictions stand in for them.
    """

    num_changed: int | None
    classes: dict[str, dict[str, int]]
    examples: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"num_changed": self.num_changed, "classes": self.classes, "examples": [asdict(one) for one in self.examples]}


def find_flips(original: Predictions, compressed: Predictions, *, labels: Sequence[str] = ()) -> Flips:
    """Compares two networks' answers on the same examples. labels: class names in output order."""
    if not original.are_classes:
        return Flips(None, {}, _moved(original, compressed))
    before_N, after_N = original.values.argmax(axis=1), compressed.values.argmax(axis=1)
    truth_N = before_N if original.targets is None else original.targets
    return Flips(
        num_changed=int((before_N != after_N).sum()),
        classes=_by_class(before_N, after_N, truth_N, labels=labels),
        examples=_changed(original, compressed, labels=labels),
    )


def _name(number: int, labels: Sequence[str]) -> str:
    """The class's name, with its number where it has none or shares it (ImageNet has two classes named "crane")."""
    if number >= len(labels):
        return str(number)
    return labels[number] if labels.count(labels[number]) == 1 else f"{labels[number]} ({number})"


def _by_class(before_N: Array, after_N: Array, truth_N: Array, *, labels: Sequence[str]) -> dict[str, dict[str, int]]:
    counted = {
        "num_examples": np.ones(len(truth_N), dtype=bool),
        "changed": before_N != after_N,
        "right_to_wrong": (before_N == truth_N) & (after_N != truth_N),
        "wrong_to_right": (before_N != truth_N) & (after_N == truth_N),
    }
    totals = {what: np.bincount(truth_N, weights=mask_N) for what, mask_N in counted.items()}
    present = [int(number) for number in np.unique(truth_N)]
    return {_name(number, labels): {what: int(total[number]) for what, total in totals.items()} for number in present}


def _changed(original: Predictions, compressed: Predictions, *, labels: Sequence[str]) -> tuple[Change, ...]:
    before_N, after_N = original.values.argmax(axis=1), compressed.values.argmax(axis=1)
    rows = np.flatnonzero(before_N != after_N)
    was = np.exp(log_softmax(original.values[rows]))[np.arange(len(rows)), before_N[rows]]
    now = np.exp(log_softmax(compressed.values[rows]))[np.arange(len(rows)), before_N[rows]]
    order = np.argsort(now - was, kind="stable")[:MAX_EXAMPLES]
    return tuple(
        Change(
            index=int(original.index[row]),
            original=_name(int(before_N[row]), labels),
            compressed=_name(int(after_N[row]), labels),
            target=None if original.targets is None else _name(int(original.targets[row]), labels),
            lost=float(lost),
        )
        for row, lost in zip(rows[order], (was - now)[order], strict=True)
    )


def _moved(original: Predictions, compressed: Predictions) -> tuple[Change, ...]:
    """The examples whose value moved most; the loss a token for language models, the length of the output for several
    columns.
    """
    before_N, after_N, distance_N = _single_values(original, compressed)
    targets = original.targets if original.targets is not None and original.targets.ndim == 1 else None
    rows = np.argsort(-distance_N, kind="stable")[:MAX_EXAMPLES]
    return tuple(
        Change(
            index=int(original.index[row]),
            original=float(before_N[row]),
            compressed=float(after_N[row]),
            target=None if targets is None else float(targets[row]),
            lost=float(distance_N[row]),
        )
        for row in rows
        if distance_N[row] > 0
    )


def _single_values(original: Predictions, compressed: Predictions) -> tuple[Array, Array, Array]:
    """One value an example before and after, and the distance between them."""
    if original.task == "language-model":
        before_N, after_N = (p.values[:, 0] / np.maximum(p.values[:, 1], 1) for p in (original, compressed))
        return before_N, after_N, np.abs(after_N - before_N)
    before, after = (p.values.reshape(len(p), -1).astype(np.float64) for p in (original, compressed))
    distance_N: Array = np.linalg.norm(after - before, axis=1)
    if before.shape[1] == 1:
        return before[:, 0], after[:, 0], distance_N
    return np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1), distance_N
