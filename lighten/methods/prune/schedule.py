"""Pruning in steps, with training between them: the network gets used to each loss before the next.

Dimension key: C channels of a group, K everything else that a tensor holds of a channel.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, fx, nn

from lighten.core.channels import ChannelGroup
from lighten.core.data import Split
from lighten.core.run import Run, Stopped
from lighten.engine.losses import Loss
from lighten.engine.modes import set_training
from lighten.engine.schedule import Training
from lighten.engine.train import Extras, train
from lighten.engine.zeros import keep_zeros
from lighten.methods.prune.score import weights
from lighten.ops.reconstruct import group_sparsity
from lighten.ops.scores import channels_first

SCHEDULES = ("one-shot", "iterative", "gradual")
_CEILING = 1.0  # of a condemned channel's strength; arXiv:2012.09243 ends at 1 for its uniform variant
Kept = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recovery:
    """Training between cuts. split: to train on. sparse: names of tensors whose zeros stay."""

    split: Split
    loss: Loss
    training: Training
    run: Run
    sparse: Iterable[str] = ()

    def __call__(self, module: nn.Module, name: str, extras: Extras | None = None) -> None:
        """Trains in place. name: of the folders for checkpoint and curves. Ctrl-C goes on: what is not cut yet is no result."""
        folder = None if self.run.folder is None else self.run.folder / name
        curves = None if self.run.tensorboard is None else self.run.tensorboard / name
        held = keep_zeros(module, self.sparse)
        extras = replace(extras or Extras(), folder=folder, tensorboard=curves, after_step=held)
        try:
            train(module, self.split, loss=self.loss, training=self.training, run=self.run, extras=extras)
        except Stopped as stop:
            raise KeyboardInterrupt from stop


def iterative(
    module: fx.GraphModule, *, cut: Callable[[fx.GraphModule, float], fx.GraphModule], rounds: int, recover: Recovery
) -> fx.GraphModule:
    """`rounds` cuts with training after each but the last. cut: (network, fraction of the way in (0, 1]) -> a smaller one."""
    for number in range(1, rounds + 1):
        module = cut(module, number / rounds)
        if number < rounds:
            recover(module, f"round-{number}")
    return module


def gradual(
    module: fx.GraphModule,
    groups: list[ChannelGroup],
    *,
    select: Callable[[fx.GraphModule], Kept],
    rounds: int,
    recover: Recovery,
) -> None:
    """Trains in place while a penalty grows on the channels that `select` leaves out, chosen anew `rounds` times on the way.

    GReg-1 (Wang et al. 2021, arXiv:2012.09243, algorithm 1), on groups as DepGraph does (Fang et al. 2023, arXiv:2301.12900).
    differs from the paper: what to cut is reconsidered, and a channel's strength follows from the progress alone.
    """
    penalty = GrowingPenalty(groups, select, rounds, recover.training.freeze_norm)
    recover(module, "gradual", Extras(penalty=penalty))


@dataclass
class GrowingPenalty:
    """1/2 strength ||w_c||^2 over all weights of each condemned channel; the strength rises with the progress, to 1."""

    groups: list[ChannelGroup]
    select: Callable[[fx.GraphModule], Kept]
    rounds: int
    freeze_norm: bool
    condemned: dict[str, Tensor] = field(default_factory=dict)
    turn: int = -1

    def __call__(self, module: nn.Module, progress: float) -> Tensor:
        """The term that is added to the loss."""
        if int(progress * self.rounds) != self.turn:
            self.turn = int(progress * self.rounds)
            self._choose(cast(fx.GraphModule, module))
        parameters = dict(module.named_parameters(remove_duplicate=False))
        terms = [
            group_sparsity(channels_first(parameters[part.tensor], part.dim, part.positions(group.size)), mask_C, squared=True)
            for group in self.groups
            if (mask_C := self.condemned[group.name]).any()
            for part in weights(cast(fx.GraphModule, module), group)
            if part.tensor in parameters
        ]
        return _CEILING * progress * torch.stack(terms).sum() if terms else torch.zeros(())

    def _choose(self, module: fx.GraphModule) -> None:
        set_training(module, False)
        kept = self.select(module)
        set_training(module, True, freeze_norm=self.freeze_norm)
        for group in self.groups:
            stays_C = kept.get(group.name, torch.arange(group.size))
            self.condemned[group.name] = torch.ones(group.size).index_fill(0, stays_C, 0.0)
