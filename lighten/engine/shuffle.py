"""Shuffled batches from a split that only gives ordered ones.

The split is read once and its examples are kept when they fit into MOST_BYTES: every epoch is then a full shuffle. A larger
split is read again in each epoch, a window of MOST_BYTES at a time, and shuffled inside the window: it must not be sorted by
class. Only examples of one shape share a batch; texts are padded with masked tokens to do so. The last examples of an epoch,
which fill no batch, are left out, others in each epoch.

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
    """The batches of a split in random order. Raises InputError when the split is empty."""

    def __init__(self, split: Split, batch_size: int, *, most_bytes: int = MOST_BYTES) -> None:
        self._split, self._size, self._most_bytes = split, batch_size, most_bytes
        first = next(self._windows(), [])
        if not first:
            raise InputError("The training split has no examples.")
        self._kept = first if len(first) == len(split) else None
        self.num_batches = self._count(first)

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
                    yield to_batch(waiting.pop(row.shapes))
        # a shape with fewer examples than a batch would otherwise never be seen
        yield from (to_batch(group) for shapes, group in waiting.items() if shapes not in drawn)

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
        return sum(max(1, count // self._size) for count in Counter(row.shapes for row in first).values())


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


def to_batch(rows: list[Row]) -> Batch:
    """Rows of the same shapes stacked; masked texts are padded to the longest, with zeros."""
    columns = list(zip(*(row.inputs for row in rows), strict=True))
    if len({row.inputs[0].shape for row in rows}) > 1:
        masks = columns[1]
        # at least two tokens: a traced graph whose number of tokens may vary takes no single one
        width = max([2, *(int(mask_RT.any(0).nonzero().amax()) + 1 for mask_RT in masks if mask_RT.any())])
        columns = [tuple(_fit(value_RT, width) for value_RT in column) for column in columns]
    inputs = tuple(torch.stack(column, dim=1).flatten(0, 1) for column in columns)
    targets = [row.target for row in rows if row.target is not None]
    return Batch(inputs, torch.stack(targets) if targets else None, tuple(row.number for row in rows))


def _fit(value_RT: Tensor, width: int) -> Tensor:
    return functional.pad(value_RT[:, :width], (0, max(0, width - value_RT.shape[1])))
