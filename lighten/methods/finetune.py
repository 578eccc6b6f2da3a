"""Fine-tuning: the network as it stands is trained on, in the one training loop, to recover what a step before it cost."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import fx

from lighten.analyze.trace import traced
from lighten.core.data import Data, Split
from lighten.core.errors import InputError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.run import Run, Stopped
from lighten.engine.holdout import FEWEST, held_out, loss_on
from lighten.engine.losses import Loss, loss_for
from lighten.engine.quiet import quiet
from lighten.engine.schedule import Training
from lighten.engine.train import Extras, Trained, train
from lighten.engine.zeros import keep_zeros


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
        for name, most in (("label_smoothing", 1), ("validation", 0.5)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= most or value == 1:
                raise InputError(f"finetune: {name} must be in [0, {most}{')' if most == 1 else ']'}. Got {value!r}.")

    def check(self, model: Model, *, data: Data) -> None:
        """Tries one batch's loss: labels and outputs must fit. Raises InputError too when there is no training split, or
        `patience` would have nothing to watch.
        """
        split = _training_split(data)
        held = held_out(split, self.validation, seed=0)[1]
        if self.patience is not None and held is None:
            raise InputError(
                f"finetune: patience needs a validation; {self.validation:g} of {len(split)} training examples is less than "
                f"{FEWEST}.",
                hint="Raise `validation`, or leave out `patience`.",
            )
        with torch.no_grad():
            _loss(data)(model.module, next(iter(split.batches(min(self.batch_size, len(split))))))

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The trained network; the given one is not changed. Ctrl-C is raised as core.run.Stopped with the best network so far
        once an epoch is done.
        """
        del pins  # every weight trains
        with quiet():
            module = copy.deepcopy(model.module) if isinstance(model.module, fx.GraphModule) else traced(model)
        try:
            done = self._train(module, data, run, after_step=keep_zeros(module, model.sparse))
        except Stopped as stop:
            raise Stopped(replace(model, module=stop.result.module)) from stop
        run.ledger.note("finetune", steps=done.num_steps, kept_epoch=done.kept, stopped_early=done.stopped_early)
        return replace(model, module=done.module)

    def _train(self, module: fx.GraphModule, data: Data, run: Run, *, after_step: Callable[[int, float], None]) -> Trained:
        knobs = {field.name: getattr(self, field.name) for field in fields(Training)}
        split, held = held_out(_training_split(data), self.validation, seed=run.seed)
        if held is None and self.validation:
            run.progress.say(f"Too few training examples for a validation (below {FEWEST}); the last weights are kept.")
        extras = Extras(
            validate=None if held is None else loss_on(held, _loss(data), batch_size=self.batch_size),
            after_step=after_step,
            folder=run.folder,
            tensorboard=run.tensorboard,
        )
        loss = _loss(data, label_smoothing=self.label_smoothing)
        return train(module, split, loss=loss, training=Training(**knobs), run=run, extras=extras)


def _training_split(data: Data) -> Split:
    if data.train is None:
        raise InputError("finetune needs a training split; the data has one split.", hint="Give train/ and test/ parts.")
    if not len(data.train):
        raise InputError("finetune: the training split has no examples.")
    return data.train


def _loss(data: Data, *, label_smoothing: float = 0.0) -> Loss:
    """Only speech has an alphabet, with the blank that CTC needs."""
    alphabet = getattr(data.train, "alphabet", None)
    blank = None if alphabet is None else alphabet.blank
    return loss_for(data.task, label_smoothing=label_smoothing, blank=blank)
