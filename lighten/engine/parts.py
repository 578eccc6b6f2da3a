"""A network that several ranks train in parts, for a caller whose code is that of one device.

What the passes run on is a sharded copy. The caller's own network keeps its objects, which others hold too (masks of a sparse
network, for instance), and no memory: for as long as someone must see it, it is whole.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lighten.core.run import Run
from lighten.engine.checkpoint import named_tensors, restore
from lighten.engine.mesh import mesh_of
from lighten.engine.quiet import quiet
from lighten.engine.shard import shaped_like, shard, whole


class Parts:
    """module: the sharded copy. original: the network that was given; its parameters have no entries outside of `together`."""

    def __init__(self, original: nn.Module, run: Run) -> None:
        """On all ranks of the run together, before the optimizer is made."""
        self.original = original
        device = next(original.parameters()).device.type
        with quiet():
            self.module = copy.deepcopy(original)
        self._shapes = {name: value.shape for name, value in original.named_parameters()}
        shard(self.module, mesh_of(run.distributed, device))
        self._let_go()

    @contextmanager
    def together(self) -> Iterator[nn.Module]:
        """The original, whole on every rank inside the block; what changes there goes into the parts. All ranks must enter."""
        parts = named_tensors(self.module)
        for name, value in self.original.named_parameters():
            value.data = whole(parts[name].detach())
        restore(self.original, {name: value.detach() for name, value in parts.items() if name not in self._shapes})
        try:
            yield self.original
            restore(self.module, {name: value.detach() for name, value in named_tensors(self.original).items()})
        finally:
            self._let_go()

    def add_gradient(self, penalty: Callable[[nn.Module, float], Tensor], progress: float) -> float:
        """Of a function of the whole network, which all ranks compute alike, to those that the passes left; gives its value."""
        parts = dict(self.module.named_parameters())
        with self.together() as module:
            value = penalty(module, progress)
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    mine, before = shaped_like(parts[name], parameter.grad), parts[name].grad
                    parts[name].grad = mine if before is None else before + mine
                    parameter.grad = None
        return float(value.detach())

    def give_back(self) -> nn.Module:
        """The original with memory for all its parameters again, of any content. No other rank is needed."""
        for name, value in self.original.named_parameters():
            value.data = torch.empty(self._shapes[name], dtype=value.dtype, device=value.device)
        return self.original

    def _let_go(self) -> None:
        for value in self.original.parameters():
            value.data = torch.empty(0, dtype=value.dtype, device=value.device)


def parts_of(module: nn.Module, run: Run) -> Parts | None:
    """As run.distributed says; None where every rank holds the whole."""
    return Parts(module, run) if run.distributed.shard == "full" and run.ranks.world > 1 else None
