"""Fine-tuning: the network as it stands is trained on, in the one training loop, to recover what a step before it cost."""

import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from torch import fx

from lighten.analyze.trace import traced
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.engine.quiet import quiet
from lighten.engine.schedule import Training
from lighten.engine.train import Extras, train


@dataclass(frozen=True)
class Finetune(Training):
    """The knobs of `engine.schedule.Training`, and: label_smoothing in [0, 1). tensorboard: a folder for event files."""

    label_smoothing: float = 0.0
    tensorboard: str | None = None

    card: ClassVar[Card] = Card(
        name="finetune",
        title="Training on, with a cosine schedule",
        paper="Loshchilov and Hutter 2017, arXiv:1608.03983",
        needs_data=True,
        rewrites=True,
    )

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: tuple[str, ...] = ()) -> Model:
        """The trained network; the given one is not changed. Raises InputError when the data has no training split."""
        del pins  # every weight trains
        if data.train is None:
            raise InputError("finetune needs a training split; the data has one split.", hint="Give train/ and test/ parts.")
        with quiet():
            module = copy.deepcopy(model.module) if isinstance(model.module, fx.GraphModule) else traced(model)
        knobs = {field.name: getattr(self, field.name) for field in fields(Training)}
        loss = loss_for(data.task, label_smoothing=self.label_smoothing)
        extras = Extras(tensorboard=None if self.tensorboard is None else Path(self.tensorboard))
        done = train(module, data.train, loss=loss, training=Training(**knobs), run=run, extras=extras)
        run.ledger.note("finetune", epochs=self.epochs, steps=done.num_steps)
        return replace(model, module=module)
