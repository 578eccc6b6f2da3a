"""Batch-norm re-estimation: after weights were cut, zeroed or rounded, the running statistics are taken anew from data.

They were those of the network before the change; what reaches a batch norm now has another mean and variance. One forward pass
without gradients and without labels gives the right ones (Wu and Johnson 2021, arXiv:2105.07576; for pruned
networks Li et al. 2020, arXiv:2007.02491).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.run import Progress, Silent
from lighten.engine.batch_norms import AtBatchNorms, Statistics
from lighten.ops.statistics import Moments, moments, pooled


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[Batch], *, total: int, progress: Progress | None = None) -> int:
    """Sets the running mean and variance of every batch norm of `module`, in place; gives how many there were.

    module: a module or a traced graph, in evaluation mode: all else, dropout too, computes as it does there. batches: their
    targets are not looked at. total: how many batches, for the progress.

    While it passes, each batch is normalized by its own statistics, so that later layers see what they will see; the first
    batch norm's are then exactly those of all examples together, and those behind it near, the nearer the larger the batches
    (64 images and more). A batch norm that is called twice gets the statistics of both calls together.
    Raises InputError when there is no batch, or one gives a batch norm a single value a channel.
    """
    found: dict[int, tuple[Tensor, Tensor, Moments]] = {}

    def take(x: Tensor, mean_C: Tensor, var_C: Tensor) -> Statistics:
        seen = moments(x)
        if seen.num_values < 2:
            raise InputError("A batch norm saw one value a channel; it has no variance.", hint="Give batches of 2 or more.")
        before = found.get(mean_C.data_ptr())
        found[mean_C.data_ptr()] = mean_C, var_C, seen if before is None else pooled(before[2], seen)
        return seen.mean_C, seen.var_C

    num_batches = 0
    for batch in (progress or Silent()).track(batches, what="re-estimating batch norms", total=total):
        num_batches += 1
        with AtBatchNorms(take):
            module(*batch.inputs)
    if not num_batches:
        raise InputError("There is no batch to take statistics from.")
    for mean_C, var_C, seen in found.values():
        mean_C.copy_(seen.mean_C)
        var_C.copy_(seen.var_C * (seen.num_values / (seen.num_values - 1)))  # as training does: unbiased
    return len(found)
