"""What one network said about every example of a split, and how the split was gone through.

Dimension key: N examples, K columns of what is kept per example.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from lighten.core.data import Batch, Split
from lighten.core.errors import InputError
from lighten.core.run import Progress, Silent

Array = NDArray[Any]


@dataclass(frozen=True)
class Pass:
    """How a split is gone through; the same Pass for two networks gives them the same examples in the same order.

    task: one of core.model.TASKS; decides what is kept. batch_size: examples a call. limit: only the first so many, None
    for all.
    """

    task: str
    batch_size: int = 32
    limit: int | None = None
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1. Got {self.batch_size}.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1. Got {self.limit}.", hint="None takes every example.")

    def batches(self, split: Split, what: str) -> Iterator[Batch]:
        """The split's batches while `what` is shown. Raises InputError when there is no example."""
        num_examples = len(split) if self.limit is None else min(self.limit, len(split))
        if num_examples == 0:
            raise InputError("The evaluation set has no examples.")
        batches = split.batches(self.batch_size, self.limit)
        return self.progress.track(batches, what=what, total=math.ceil(num_examples / self.batch_size))


@dataclass(frozen=True)
class Predictions:
    """What the metric needs, one row an example.

    values: by task
        classification   (N, C) logits, float32
        sentence pairs   (N,) cosine similarity in [-1, 1], float32
        language model   (N, 2) negative log-likelihood of a window in nats, and the number of tokens it sums over, float64
        speech           (N, 2) wrong, missing and extra words of a recording, and the number of words spoken, float64
        regression       (N, K) outputs, float32
    targets: (N,) int64 labels, (N,) or (N, K) float64 values, or None where the data holds none or the values contain them
    already (speech). index: (N,) positions in the split.
    """

    task: str
    values: Array
    targets: Array | None
    index: Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_classes(self) -> bool:
        """True when the values are logits over at least two classes, so that each example has one predicted class."""
        return self.task.endswith("classification") and self.values.ndim == 2 and self.values.shape[1] >= 2
