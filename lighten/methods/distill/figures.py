"""What teacher and student reach on the examples that are held out: how much of the gap between them is gone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.data import Batch, Data, Split
from lighten.core.run import Run
from lighten.engine.holdout import held_out
from lighten.engine.losses import first_output
from lighten.methods.training import task_loss, training_split

_SIZE = 64


@dataclass(frozen=True)
class Figures:
    """facts: `what` is measured ("accuracy", or the "loss" of the task), on how many `examples`, and what the teacher has."""

    held: Split
    measure: Callable[[nn.Module, Batch], float]
    facts: dict[str, Any]

    def of(self, module: nn.Module) -> float:
        """The mean over the examples held out."""
        return _mean(self.held, lambda batch: self.measure(module, batch))


class _Said(nn.Module):
    """Gives an answer that is known already."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.answer


def figures_on(data: Data, says: Callable[[Batch], Tensor], *, share: float, run: Run) -> Figures | None:
    """Of the examples that a training with this seed holds out; None where there are too few."""
    held = held_out(training_split("distill", data), share, seed=run.seed)[1]
    if held is None:
        return None
    what = "accuracy" if data.task.endswith("classification") else "loss"
    loss = task_loss(data)
    measure = _accuracy if what == "accuracy" else (lambda module, batch: float(loss(module, batch)))
    teacher = _mean(held, lambda batch: measure(_Said(says(batch)), batch))
    return Figures(held, measure, {"what": what, "examples": len(held), "teacher": teacher})


def _accuracy(module: nn.Module, batch: Batch) -> float:
    is_right = first_output(module, batch).argmax(1) == batch.target
    return float(torch.as_tensor(is_right).float().mean())


@torch.no_grad()
def _mean(held: Split, measure: Callable[[Batch], float]) -> float:
    values = [len(batch.index) * measure(batch) for batch in held.batches(_SIZE)]
    return round(math.fsum(values) / len(held), 6)
