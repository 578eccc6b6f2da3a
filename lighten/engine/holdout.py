"""A part of the training split that does not train: it says when to stop and which weights to keep.

The test split must not: what was chosen on it would be scored on it too well.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import nn

from lighten.core.data import Batch, Example, Split
from lighten.core.run import Run
from lighten.engine.losses import Loss
from lighten.engine.shuffle import Row, to_batch, to_device, to_rows

FEWEST = 10
"""Fewer examples held out say nothing about the next: there is then no validation."""
MOST = 1_000
"""More examples held out cost time in every epoch and hardly decide otherwise: networks are compared on the same examples."""


@dataclass(frozen=True)
class Part:
    """The examples of `split` for which `is_in` is true; they keep their numbers."""

    split: Split
    is_in: Sequence[bool]

    def __len__(self) -> int:
        return sum(self.is_in)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """In order, at most `size` neighbours of one shape at a time, the first `limit` only."""
        found = (row for batch in self.split.batches(size) for row in to_rows(batch) if self.is_in[row.number])
        for _, alike in groupby(islice(found, limit), key=_shapes):
            while rows := list(islice(alike, size)):
                yield to_batch(rows)

    def describe(self, index: int) -> Example:
        """Example `index` of the split, for a reader."""
        return self.split.describe(index)


def held_out(split: Split, share: float, *, seed: int) -> tuple[Split, Split | None]:
    """(what trains, what is held out): a random `share` of the examples, MOST at most; (split, None) below FEWEST."""
    num_held = min(round(share * len(split)), MOST)
    if num_held < FEWEST:
        return split, None
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    is_held = torch.zeros(len(split), dtype=torch.bool).index_fill(0, order[:num_held], True)
    return Part(split, (~is_held).tolist()), Part(split, is_held.tolist())


def loss_on(split: Split, loss: Loss, *, batch_size: int, run: Run | None = None) -> Callable[[nn.Module], float]:
    """The mean loss of a network over the examples of `split`, which are read once and kept in memory. run: its ranks each take
    their share of the batches, or their own examples; the mean is of all.
    """
    run = run or Run()
    is_shared = not run.distributed.own_data
    batches = [
        batch
        for number, batch in enumerate(split.batches(batch_size))
        if not is_shared or number % run.ranks.world == run.ranks.number
    ]

    def mean(module: nn.Module) -> float:
        device = next(module.parameters()).device
        losses = [len(batch.index) * float(loss(module, to_device(batch, device))) for batch in batches]
        sums = torch.tensor([math.fsum(losses), sum(len(batch.index) for batch in batches)], dtype=torch.float64)
        run.ranks.add([sums])
        return float(sums[0] / sums[1])

    return mean


def _shapes(row: Row) -> tuple[torch.Size, ...]:
    return row.shapes
