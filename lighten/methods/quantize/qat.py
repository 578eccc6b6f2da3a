"""Quantization-aware training: the network is trained as it will compute, codes, steps and all, from a post-training start.

Straight-through rounding with learned steps (Esser et al. 2020, arXiv:1902.08153) for weights, a step for each channel, and
for activations, at the tensors where the file will quantize. What is trained is the quantized graph itself (learnable.py), so
the file computes what training simulated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lighten.core.data import Batch, Data
from lighten.core.errors import InputError
from lighten.core.graph import Graph
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.run import Forgetful, Run, Stopped
from lighten.engine.losses import Loss, first_output
from lighten.engine.schedule import Training
from lighten.engine.teaching import check_suits, check_values, taught
from lighten.engine.train import Trained
from lighten.engine.zeros import keep_zeros
from lighten.methods.quantize.freezing import freezing
from lighten.methods.quantize.integer import Calibrated, Quantize
from lighten.methods.quantize.learnable import Learnable, learnable
from lighten.methods.quantize.learned import Knobs
from lighten.methods.training import check_patience, check_validation, fit, task_loss, training_split

ORIGINAL = "original"


@dataclass(frozen=True)
class Qat(Training):
    """The knobs of `engine.schedule.Training`, with defaults of its own, and:

    weights, activations: bits, 2 to 8, of linear layers and convolutions; the first and the last of them keep 8. steps: "lsq"
    learns them, "fixed" keeps those of the post-training start. clipping: "lsq", or "pact" for activations whose range learns
    from what it cuts off alone and is held small by `weight_decay`. freeze: fraction of the training, in [0, 1), from which on
    codes that oscillate are frozen (methods.quantize.freezing); None for never. teacher: "original" adds what the float network
    before the recipe says to the loss, None does not. temperature, alpha: of engine.teaching.taught. validation: fraction of
    the training split, in [0, 0.5], that does not train but says which epoch was best. rounding, samples: of the start
    (methods.quantize.integer).
    """

    epochs: float = 4
    batch_size: int = 128
    optimizer: str = "adamw"
    freeze_norm: bool = True
    weights: int = 4
    activations: int = 4
    steps: str = "lsq"
    clipping: str = "lsq"
    freeze: float | None = None
    teacher: str | None = ORIGINAL
    temperature: float = 2.0
    alpha: float = 0.5
    validation: float = 0.1
    rounding: str | None = None
    samples: int = 128

    card: ClassVar[Card] = Card(
        name="qat",
        title="Quantization-aware training with learned steps",
        paper="Esser et al. 2020, arXiv:1902.08153",
        needs_data=True,
        trains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("steps", ("lsq", "fixed")), ("clipping", ("lsq", "pact")), ("teacher", (None, ORIGINAL))):
            _one_of(name, getattr(self, name), allowed)
        for name in ("weights", "activations"):
            _one_of(name, getattr(self, name), tuple(range(2, 9)))
        check_values(self.temperature, self.alpha)
        check_validation("qat", self.validation)
        self._check_freeze()
        self.start  # noqa: B018 - checks the knobs it takes

    def _check_freeze(self) -> None:
        value = self.freeze
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"qat: freeze must be in [0, 1). Got {value!r}.")
        if self.ema is not None:
            raise InputError("qat: ema averages weights that freeze holds on their codes.", hint="Leave out one of the two.")

    @property
    def peak_lr(self) -> float:
        """`lr`; without one 1e-3 for adamw where anything has 2 bits, and there must be much learned, else 3e-4."""
        if self.lr is not None or self.optimizer != "adamw":
            return super().peak_lr
        return 1e-3 if min(self.weights, self.activations) == 2 else 3e-4

    @property
    def start(self) -> Quantize:
        """The post-training method whose solution training begins with."""
        return Quantize(weights=self.weights, activations=self.activations, rounding=self.rounding, samples=self.samples)

    def check(self, model: Model, *, data: Data) -> None:
        """Tries one batch's loss. Raises InputError or UnfitError where labels and outputs do not fit, where there is no
        training split, or `patience` would have nothing to watch.
        """
        split = training_split("qat", data)
        check_patience("qat", self, split, validation=self.validation)
        if self.teacher is not None:
            check_suits(data.task, "kd")
        batch = next(iter(split.batches(min(self.batch_size, len(split)))))
        with torch.no_grad():
            self._loss(data, batch, model.module)(model.module, batch)

    def prepare(self, model: Model, graph: Graph, *, data: Data, run: Run) -> Calibrated:
        """Trains for the first plan of the start. Other plans take from it what they can: trained codes where they have as many
        bits, trained ranges at other widths, float weights with the values that training computed with.

        Ctrl-C is raised as core.run.Stopped with what was best so far once an epoch is done.
        """
        begun = self._calibrated(self.start, model, graph, data=data, run=run)
        plan = begun.proposals()[0]
        network = learnable(begun.realize(plan).graph, begun.graph, plan, knobs=self._knobs)
        try:
            done = self._train(network, begun, data, run, after_step=self._after_step(network, begun))
        except Stopped as stop:
            raise Stopped(self._finished(network, begun, data, run)) from stop
        run.ledger.note("qat", steps=done.num_steps, kept_epoch=done.kept, stopped_early=done.stopped_early)
        return self._finished(network, begun, data, run)

    @property
    def _knobs(self) -> Knobs:
        return Knobs(self.steps == "lsq", self.clipping, self.freeze is not None)

    def _calibrated(self, method: Quantize, model: Model, graph: Graph, *, data: Data, run: Run) -> Calibrated:
        return cast(Calibrated, method.prepare(model, graph, data=data, run=run))  # weights alone take another way

    def _train(
        self, network: Learnable, begun: Calibrated, data: Data, run: Run, *, after_step: Callable[[int, float], None]
    ) -> Trained:
        split = training_split("qat", data)
        batch = next(iter(split.batches(1, 1)))
        is_own = run.original is None or run.original is begun.model
        loss = self._loss(data, batch, begun.graph.module if run.original is None or is_own else run.original.module)
        losses = (self._with_penalty(loss, network), loss)
        knobs = replace(self, lr=self.peak_lr)
        return fit(knobs, network.module, split, losses=losses, after_step=after_step, run=run)

    def _loss(self, data: Data, batch: Batch, teacher: nn.Module) -> Loss:
        """Without labels the teacher's alone."""
        if self.teacher is None:
            return task_loss(data)
        own = task_loss(data) if batch.target is not None or data.task == "language-model" else None
        return taught(own, partial(first_output, teacher), data.task, temperature=self.temperature, alpha=self.alpha)

    def _with_penalty(self, loss: Loss, network: Learnable) -> Loss:
        """PACT's: nothing else makes a range smaller (arXiv:1805.06085, section 3)."""
        if self.clipping != "pact" or self.steps == "fixed":
            return loss

        def penalized(module: nn.Module, batch: Batch) -> Tensor:
            return loss(module, batch) + self.weight_decay * torch.stack([one.square() for one in network.ranges()]).sum()

        return penalized

    def _after_step(self, network: Learnable, begun: Calibrated) -> Callable[[int, float], None]:
        """Zeros before freezing: a frozen code may be one of them."""
        hooks = [keep_zeros(network.module, network.masked(begun.graph, begun.model.sparse))]
        if self.freeze is not None:
            hooks.append(freezing(network.weights.values(), self.freeze))

        def after(step: int, progress: float) -> None:
            for tensor in network.tensors.values():
                tensor.limit()
            for hook in hooks:
                hook(step, progress)

        return after

    def _finished(self, network: Learnable, begun: Calibrated, data: Data, run: Run) -> Calibrated:
        """Tensors that training did not quantize have their ranges from another pass of the trained network."""
        method = replace(self.start, bias_correction=False, smoothing=0.0)
        graph = network.as_float(begun.graph)
        fresh = self._calibrated(method, begun.model, graph, data=data, run=replace(run, memory=Forgetful()))
        return replace(fresh, ruined=begun.ruined, learned=network.learned())


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise InputError(f"qat: {name} must be one of {', '.join(map(repr, allowed))}. Got {value!r}.")
