"""What every step that trains a network for its task has in common: the split, the task's own loss, a part that is held out."""

import copy
from collections.abc import Callable
from dataclasses import fields

from torch import fx

from lighten.analyze.trace import traced
from lighten.core.data import Data, Split
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.holdout import FEWEST, held_out, loss_on
from lighten.engine.losses import Loss, loss_for
from lighten.engine.quiet import quiet
from lighten.engine.schedule import Training
from lighten.engine.sharing import keep_weights
from lighten.engine.train import Extras, Trained, train


def check_validation(name: str, value: float) -> None:
    """Raises InputError unless the fraction held out is in [0, 0.5]. name: of the step."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 0.5:
        raise InputError(f"{name}: validation must be in [0, 0.5]. Got {value!r}.")


def check_patience(name: str, training: Training, split: Split, *, validation: float) -> None:
    """Raises InputError where `patience` would have nothing to watch."""
    if training.patience is not None and held_out(split, validation, seed=0)[1] is None:
        raise InputError(
            f"{name}: patience needs a validation; {validation:g} of {len(split)} training examples is less than {FEWEST}.",
            hint="Raise `validation`, or leave out `patience`.",
        )


def training_split(name: str, data: Data) -> Split:
    """Raises InputError where there is none, or no example in it."""
    if data.train is None:
        raise InputError(f"{name} needs a training split; the data has one split.", hint="Give train/ and test/ parts.")
    if not len(data.train):
        raise InputError(f"{name}: the training split has no examples.")
    return data.train


def task_loss(data: Data, *, label_smoothing: float = 0.0) -> Loss:
    """Only speech has an alphabet, with the blank that CTC needs."""
    alphabet = getattr(data.train, "alphabet", None)
    blank = None if alphabet is None else alphabet.blank
    return loss_for(data.task, label_smoothing=label_smoothing, blank=blank)


def own_graph(model: Model) -> fx.GraphModule:
    """The network as a graph on tensors of its own, each node with what it gives (`meta["val"]`): a graph that was read back
    from a folder is traced anew for that.
    """
    module = model.module
    is_known = isinstance(module, fx.GraphModule) and all("val" in node.meta for node in module.graph.nodes if _gives(node))
    with quiet():
        return copy.deepcopy(module) if isinstance(module, fx.GraphModule) and is_known else traced(model)


def _gives(node: fx.Node) -> bool:
    return node.op in ("get_attr", "call_function")


def fit(
    knobs: Training,
    module: fx.GraphModule,
    split: Split,
    *,
    losses: tuple[Loss, Loss],
    after_step: Callable[[int, float], None],
    run: Run,
) -> Trained:
    """Trains in place with the knobs of `engine.schedule.Training`; the fraction `knobs.validation` is held out.

    losses: what is minimized, and what tells on the held-out examples which epoch was best.
    """
    validation: float = getattr(knobs, "validation", 0.0)
    trains, held = held_out(split, validation, seed=run.seed)
    if not all(run.ranks.gather(held is not None)):
        trains, held = split, None
    if held is None and validation:
        run.progress.say(f"Too few training examples for a validation (below {FEWEST}); the last weights are kept.")
    extras = Extras(
        validate=None if held is None else loss_on(held, losses[1], batch_size=knobs.batch_size, run=run),
        after_step=after_step,
        folder=run.folder,
        tensorboard=run.tensorboard,
        decides=getattr(knobs, "freeze", None) is not None,
    )
    training = Training(**{field.name: getattr(knobs, field.name) for field in fields(Training)})
    return train(module, trains, loss=losses[0], training=training, run=run, extras=extras)


def fit_kept(
    knobs: Training, module: fx.GraphModule, split: Split, *, losses: tuple[Loss, Loss], model: Model, run: Run
) -> Trained:
    """`fit` for the network of `model`, whose zeros and shared values stay."""
    keep = keep_weights(module, model)
    try:
        return fit(knobs, module, split, losses=losses, after_step=keep, run=run)
    finally:
        keep(0, 1.0)  # averages of equal weights may differ in their last bit
