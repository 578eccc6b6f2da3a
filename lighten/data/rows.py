"""A split over rows that are prepared when a batch is asked for: memory holds one batch.

Dimension key: N rows, L tokens of the longest transcript.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Batch, Example

MOST_BAD = 0.5
"""Where this share of a source, or more, is not finite, the source is at fault and not some of its rows."""
Collate = Callable[[list[Any]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Alphabet:
    """How a speech recognizer's tokens become text. blank: the token that CTC puts between others. spell: token ids, repeats
    merged and blanks dropped, to words with spaces between them.
    """

    blank: int
    spell: Callable[[Sequence[int]], str]


def always_alike(row: Any) -> None:
    """For rows that all give inputs of one shape, or that collating pads."""


@dataclass(frozen=True)
class Rows:
    """rows: what each example is made from. collate: rows to inputs. targets: one a row, or None. show: a row for the
    report. alike: only neighbours for which it gives the same share a batch. alphabet: only for speech, whose targets are the
    transcripts' tokens, (N, L) and -1 behind the last.
    """

    rows: Sequence[Any]
    collate: Collate
    targets: Tensor | None
    show: Callable[[Any, int], Example]
    alike: Callable[[Any], Any] = always_alike
    alphabet: Alphabet | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """In order, at most `size` rows at a time, the first `limit` only; fewer where the next row is not alike."""
        start, end = 0, len(self.rows) if limit is None else min(limit, len(self.rows))
        while start < end:
            stop = self._stop(start, min(start + size, end))
            target = None if self.targets is None else self.targets[start:stop]
            yield Batch(self.collate(list(self.rows[start:stop])), target, tuple(range(start, stop)))
            start = stop

    def describe(self, index: int) -> Example:
        """Row `index` for a reader."""
        return self.show(self.rows[index], index)

    def take(self, chosen: Sequence[int]) -> "Rows":
        """The rows at these positions."""
        targets = None if self.targets is None else self.targets[torch.tensor(list(chosen), dtype=torch.int64)]
        return replace(self, rows=[self.rows[index] for index in chosen], targets=targets)

    def _stop(self, start: int, latest: int) -> int:
        """One past the last row that shares a batch with row `start`."""
        first = self.alike(self.rows[start])
        return next((stop for stop in range(start + 1, latest) if self.alike(self.rows[stop]) != first), latest)


def divide(rows: Rows, seed: int, *, share: float = 0.3) -> tuple[Rows | None, Rows]:
    """(train, test): `share` of the rows of each class by a seeded choice, in their old order; (None, all) below ten rows."""
    if len(rows) < 10:
        return None, rows
    generator = torch.Generator().manual_seed(seed)
    integer = rows.targets is not None and not rows.targets.is_floating_point() and rows.targets.dim() == 1
    groups = rows.targets.tolist() if integer and rows.targets is not None else [0] * len(rows)
    chosen: set[int] = set()
    for group in sorted(set(groups)):
        members = [index for index, value in enumerate(groups) if value == group]
        order = torch.randperm(len(members), generator=generator).tolist()
        chosen |= {members[index] for index in order[: round(share * len(members))]}
    if not chosen or len(chosen) == len(rows):
        return None, rows
    return rows.take(sorted(chosen)), rows.take([index for index in range(len(rows)) if index not in chosen])
