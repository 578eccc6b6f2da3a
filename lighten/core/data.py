"""Examples to calibrate on and to score on, already preprocessed for the model.

Dimension key: B examples of a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Runner = Callable[..., Tensor | tuple[Tensor, ...]]
"""Anything that maps a batch's inputs to outputs: a torch module, or an exported file in its runtime."""


@dataclass(frozen=True)
class Batch:
    """inputs: what the model takes, positionally. target: one row an example, or None. index: positions in the split, B.

    For sentence pairs the inputs hold 2B rows, first texts then second texts; for language models target is None and the
    tokens are their own targets (input i predicts token i + 1 where the attention mask is set).
    """

    inputs: tuple[Tensor, ...]
    target: Tensor | None
    index: tuple[int, ...]


class Split(Protocol):
    """A fixed, ordered set of examples."""

    def __len__(self) -> int:
        """Number of examples."""

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """The first `limit` examples (all when None) in order, `size` at a time; the last batch may be smaller."""

    def describe(self, index: int) -> "Example":
        """Example `index` as a person would recognise it, for the report."""


@dataclass(frozen=True)
class Example:
    """title: a file name or row number. text: its text, shortened, or "". image_png: a thumbnail as PNG bytes, or b""."""

    title: str
    text: str = ""
    image_png: bytes = b""


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Data:
    """train: for calibration (and later training); None when the source has one split, then calibration takes test inputs
    and the report says so. task: one of core.model.TASKS. metric: a catalog key of evaluate. digest: sha256 over the source's
    content. calibration_digest: over train, where it came from another source. notes: what a reader of the scores must know.
    """

    source: str
    task: str
    metric: str
    test: Split
    train: Split | None = None
    labels: tuple[str, ...] = ()
    bad_rows: tuple[BadRow, ...] = field(default=())
    digest: str = ""
    calibration_digest: str = ""
    notes: tuple[str, ...] = ()

    @property
    def calibration(self) -> Split:
        """Where activation ranges come from: the training split when there is one."""
        return self.train if self.train is not None else self.test
