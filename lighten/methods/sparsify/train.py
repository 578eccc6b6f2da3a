"""Sparsity in training: each schedule with the one training loop.

Rewinding (Renda et al. 2020, arXiv:2003.02389; Frankle and Carbin 2019, arXiv:1803.03635) is several trainings with cuts
between them, each of the same share of what is left: the whole learning rate schedule begins anew, and with "rewind_weights"
the weights that stay go back to what they were when the step began.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.core.data import Split
from lighten.core.run import Run, Stopped
from lighten.engine.losses import Loss
from lighten.engine.schedule import Training
from lighten.engine.train import Extras, train
from lighten.engine.zeros import keep_zeros
from lighten.methods.sparsify.gates import GATES, Gated
from lighten.methods.sparsify.layers import Layer
from lighten.methods.sparsify.oneshot import apply
from lighten.methods.sparsify.schedule import Cubic, Held, Moving, Proximal, Schedule, Wanted

MOVING = ("set", "rigl")
PROXIMAL = ("l1", "group_l1")
REWINDING = ("rewind_lr", "rewind_weights")
TRAINED = ("cubic", *MOVING, *PROXIMAL, *GATES, *REWINDING)
STRENGTHS = {"l1": 1e-3, "group_l1": 1e-3, "l0": 1.0, "variational": 1.0}
"""Of the penalty when none is given."""


@dataclass(frozen=True)
class Work:
    """split: to train on. sparse: names of weights that earlier steps have made sparse."""

    split: Split
    loss: Loss
    training: Training
    run: Run
    sparse: Sequence[str] = ()

    def __call__(self, graph: fx.GraphModule, schedule: Schedule, name: str) -> None:
        """Trains in place. name: of the folders for checkpoint and curves. Ctrl-C goes on: the masks are not yet final."""
        try:
            self.stoppable(graph, schedule, name)
        except Stopped as stop:
            raise KeyboardInterrupt from stop

    def stoppable(self, graph: fx.GraphModule, schedule: Schedule, name: str) -> None:
        """The same for masks that are; Ctrl-C is raised as Stopped once an epoch is done, the network is in order then too."""
        others = keep_zeros(graph, self.sparse)

        def after_step(step: int, progress: float) -> None:
            schedule.after_step(step, progress)
            others(step, progress)

        run = self.run
        folder = None if run.folder is None else run.folder / name
        curves = None if run.tensorboard is None else run.tensorboard / name
        decides = type(schedule) is not Held
        extras = Extras(None, schedule.penalty, after_step, folder=folder, tensorboard=curves, decides=decides)
        try:
            train(graph, self.split, loss=self.loss, training=self.training, run=run, extras=extras)
        finally:
            schedule.finish()


def schedule_of(
    kind: str, graph: fx.GraphModule, layers: Sequence[Layer], *, wanted: Wanted, work: Work, strength: float | None
) -> Schedule:
    """kind: of TRAINED but REWINDING."""
    if kind == "cubic":
        return Cubic(graph, layers, work.sparse, wanted)
    if kind in MOVING:
        names = [layer.name for layer in layers]
        return Moving(graph, layers, names, wanted.pattern, kind == "rigl", work.run.seed)
    force = STRENGTHS.get(kind, 0.0) if strength is None else strength
    if kind in PROXIMAL:
        return Proximal(graph, layers, work.sparse, wanted, work.training, force)
    return Gated(graph, layers, kind, wanted, force)


def rewinding(
    graph: fx.GraphModule, layers: Sequence[Layer], *, wanted: Wanted, work: Work, rounds: int, to_start: bool
) -> None:
    """Trains in place, `rounds` cuts of equal share, a training behind each; before the first one too where the weights go
    back, for they have to show which of them grow.
    """
    start = {name: value.detach().clone() for name, value in graph.named_parameters(remove_duplicate=False)}
    if to_start:
        work(graph, Held(graph, layers, work.sparse), "round-0")
    for number in range(1, rounds + 1):
        weights = {layer.name: layer.rows(tensor_of(graph, layer.name)).abs() for layer in layers}
        masks = wanted.masks(layers, weights, partial(_on_the_way, part=number / rounds))
        if to_start:
            _restore(graph, start)
        apply(graph, layers, masks)
        names = [layer.name for layer in layers]
        work(graph, Held(graph, layers, names), f"round-{number}")


def _on_the_way(end: float, *, part: float) -> float:
    """The share of zeros when a `part` of the way to `end` is gone, in equal factors of what is left."""
    return 1 - math.pow(1 - end, part)


@torch.no_grad()
def _restore(graph: fx.GraphModule, values: Mapping[str, Tensor]) -> None:
    for name, value in graph.named_parameters(remove_duplicate=False):
        value.copy_(values[name])
