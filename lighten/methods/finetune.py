"""Fine-tuning: the network as it stands is trained on, in the one training loop, to recover what a step before it cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.run import Run, Stopped
from lighten.engine.schedule import Training
from lighten.methods.training import check_patience, check_validation, fit_kept, own_graph, task_loss, training_split


@dataclass(frozen=True)
class Finetune(Training):
    """The knobs of `engine.schedule.Training`, and: label_smoothing in [0, 1). validation: fraction of the training split in
    [0, 0.5] that does not train but says which epoch was best (engine.holdout), 0 for none.
    """

    label_smoothing: float = 0.0
    validation: float = 0.1

    card: ClassVar[Card] = Card(
        name="finetune",
        title="Training on, with a cosine schedule",
        paper="Loshchilov and Hutter 2017, arXiv:1608.03983",
        needs_data=True,
        rewrites=True,
        trains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_validation("finetune", self.validation)
        value = self.label_smoothing
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise InputError(f"finetune: label_smoothing must be in [0, 1). Got {value!r}.")

    def check(self, model: Model, *, data: Data) -> None:
        """Tries one batch's loss: labels and outputs must fit. Raises InputError too when there is no training split, or
        `patience` would have nothing to watch.
        """
        split = training_split("finetune", data)
        check_patience("finetune", self, split, validation=self.validation)
        with torch.no_grad():
            task_loss(data)(model.module, next(iter(split.batches(min(self.batch_size, len(split))))))

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The trained network; the given one is not changed. Ctrl-C is raised as core.run.Stopped with the best network so far
        once an epoch is done.
        """
        del pins  # every weight trains
        module, split = own_graph(model), training_split("finetune", data)
        losses = task_loss(data, label_smoothing=self.label_smoothing), task_loss(data)
        try:
            done = fit_kept(self, module, split, losses=losses, model=model, run=run)
        except Stopped as stop:
            raise Stopped(replace(model, module=stop.result.module)) from stop
        run.ledger.note("finetune", steps=done.num_steps, kept_epoch=done.kept, stopped_early=done.stopped_early)
        return replace(model, module=done.module)
