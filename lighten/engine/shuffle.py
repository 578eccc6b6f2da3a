"""Shuffled batches from a split that only gives ordered ones.

The split is read once and its examples are kept when they fit into MOST_BYTES: every epoch is then a full shuffle. A larger
split is read again in each epoch, a window of MOST_BYTES at a time, and shuffled inside the window: it must not be sorted by
class. Only examples of one shape share a batch; texts are padded with masked tokens to do so. The last examples of an epoch,
which fill no batch, are left out, others in each epoch. Several ranks draw the same batches, and each gives its share of their
rows, which differ by one at most.

Dimension key: B examples, R rows an example has (two in sentence pairs), T tokens.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lighten.core.data import Batch, Split
from lighten.core.errors import InputError, UnfitError

MOST_BYTES = 2_000_000_000


class Shuffled:
    """The batches of a split in random order. share: (this rank's number, how many ranks); it gets its part of each batch.

    Raises InputError when the split is empty, or a batch has fewer examples than there are ranks. Then a shape that fills no
    batch is left out too.
    """

    def __init__(self, split: Split, batch_size: int, *, most_bytes: int = MOST_BYTES, share: tuple[int, int] = (0, 1)) -> None:
        self._split, self._size, self._most_bytes, self._share = split, batch_size, most_bytes, share
        if batch_size < share[1]:
            raise InputError(f"batch_size is {batch_size}, which is less than the {share[1]} ranks that share a batch.")
        first = next(self._windows(), [])
        if not first:
            raise InputError("The training split has no examples.")
        self._kept = first if len(first) == len(split) else None
        self.num_batches = self._count(first)
        if not self.num_batches:
            raise InputError(
                f"The training split has fewer examples of any one shape than the {share[1]} ranks that share them."
            )

    def epoch(self, seed: int) -> Iterator[Batch]:
        """`num_batches` batches, those of `seed`; fewer where a split beyond the memory limit has examples of several
        shapes.
        """
        return islice(self._draw(torch.Generator().manual_seed(seed)), self.num_batches)

    def _draw(self, generator: torch.Generator) -> Iterator[Batch]:
        waiting: dict[_Shapes, list[Row]] = {}
        drawn: set[_Shapes] = set()
        for window in self._windows() if self._kept is None else [self._kept]:
            for place in torch.randperm(len(window), generator=generator).tolist():
                row = window[place]
                group = waiting.setdefault(row.shapes, [])
                group.append(row)
                if len(group) == self._size:
                    drawn.add(row.shapes)
                    yield self._part(waiting.pop(row.shapes))
        # a shape with fewer examples than a batch would otherwise never be seen
        yield from (self._part(rows) for shapes, rows in waiting.items() if shapes not in drawn and len(rows) >= self._share[1])

    def _part(self, rows: "list[Row]") -> Batch:
        """This rank's, as wide as the whole batch would be."""
        number, world = self._share
        mine = slice(len(rows) * number // world, len(rows) * (number + 1) // world)
        return to_batch(rows[mine], width=_width(rows))

    def _windows(self) -> "Iterator[list[Row]]":
        window: list[Row] = []
        held_bytes = 0
        for batch in self._split.batches(self._size):
            batch_bytes = sum(value.nbytes for value in batch.inputs)
            if window and held_bytes + batch_bytes > self._most_bytes:
                yield window
                window, held_bytes = [], 0
            window.extend(to_rows(batch))
            held_bytes += batch_bytes
        if window:
            yield window

    def _count(self, first: "list[Row]") -> int:
        if self._kept is None:
            return max(1, len(self._split) // self._size)
        counts = Counter(row.shapes for row in first).values()
        return sum(max(1, count // self._size) for count in counts if count >= self._share[1])


_Shapes = tuple[torch.Size, ...]


class Row(NamedTuple):
    """One example. number: its position in the split. shapes: what it must have in common with the others of its batch."""

    inputs: tuple[Tensor, ...]
    target: Tensor | None
    number: int
    shapes: _Shapes


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""
    target = None if batch.target is None else batch.target.to(device)
    return replace(batch, inputs=tuple(value.to(device) for value in batch.inputs), target=target)


def to_rows(batch: Batch) -> Iterator[Row]:
    """The batch's examples, views of it: nothing is copied. Raises UnfitError when they cannot be told apart."""
    num_examples = len(batch.index)
    if any(len(value) % num_examples for value in batch.inputs):
        rows = ", ".join(str(len(value)) for value in batch.inputs)
        raise UnfitError(f"A batch of {num_examples} examples has inputs of {rows} rows, which cannot be told apart.")
    by_example = [value.reshape(-1, num_examples, *value.shape[1:]) for value in batch.inputs]
    shapes = () if _is_masked_text(batch.inputs) else tuple(value.shape[1:] for value in batch.inputs)
    for place, index in enumerate(batch.index):
        target = None if batch.target is None else batch.target[place]
        yield Row(tuple(value[:, place] for value in by_example), target, index, shapes)


def _is_masked_text(inputs: tuple[Tensor, ...]) -> bool:
    """Integers of shape (rows, tokens), the second of them the attention mask: zeros may be appended to all."""
    return len(inputs) > 1 and all(
        value.dim() == 2 and value.shape == inputs[0].shape and not value.is_floating_point() for value in inputs
    )


def to_batch(rows: list[Row], *, width: int | None = None) -> Batch:
    """Rows of the same shapes stacked; masked texts are padded to the longest, with zeros, or to `width` tokens."""
    columns = list(zip(*(row.inputs for row in rows), strict=True))
    width = _width(rows) if width is None else width
    if width is not None:
        columns = [tuple(_fit(value_RT, width) for value_RT in column) for column in columns]
    inputs = tuple(torch.stack(column, dim=1).flatten(0, 1) for column in columns)
    targets = [row.target for row in rows if row.target is not None]
    return Batch(inputs, torch.stack(targets) if targets else None, tuple(row.number for row in rows))


def _width(rows: list[Row]) -> int | None:
    """Tokens of the longest of masked texts; None where all rows are as long."""
    if len({row.inputs[0].shape for row in rows}) == 1:
        return None
    masks = [row.inputs[1] for row in rows]
    # at least two tokens: a traced graph whose number of tokens may vary takes no single one
    return max([2, *(int(mask_RT.any(0).nonzero().amax()) + 1 for mask_RT in masks if mask_RT.any())])


def _fit(value_RT: Tensor, width: int) -> Tensor:
    return functional.pad(value_RT[:, :width], (0, max(0, width - value_RT.shape[1])))
