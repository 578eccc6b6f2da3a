"""Sparsity: most weights of a network become exactly zero, and stay so in every step after this one."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import fx

from lighten.core.data import Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run, Stopped
from lighten.engine.quiet import quiet
from lighten.engine.schedule import Training
from lighten.engine.zeros import zeros_of
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.score import Evidence
from lighten.methods.sparsify.layers import Layer, find_layers, refuse_misfits
from lighten.methods.sparsify.mend import mend
from lighten.methods.sparsify.oneshot import ALLOCATIONS, Terms, apply, choose
from lighten.methods.sparsify.schedule import Held, Wanted
from lighten.methods.sparsify.score import NEED_TARGETS, SCORES
from lighten.methods.sparsify.train import MOVING, REWINDING, STRENGTHS, TRAINED, Work, rewinding, schedule_of
from lighten.methods.training import own_graph, task_loss, training_split
from lighten.ops.masks import Pattern, pattern_of

SCHEDULES = ("one-shot", *TRAINED)
_RATIO = 0.5
_ALLOCATIONS = {"obs": "sensitivity", "wanda": "sensitivity", "sparsegpt": "uniform"}
_EPOCHS = 3
_ROUNDS = 3


@dataclass(frozen=True)
class Sparsify:
    """Sets the weights that matter least to zero, at once or while the network trains.

    ratio: share of zeros among the weights of the layers that become sparse, in (0, 1); 0.5 when left out; N:M decides it.
    threshold: zero is what lies below it in magnitude, in place of a ratio; one-shot only. pattern: "unstructured", "N:M" (N of
    M neighbouring inputs stay) or "RxC" (blocks of R outputs and C inputs). score: of methods.sparsify.score.SCORES; when empty
    "obs" one-shot, else "magnitude". allocation: "global" (scores are compared between layers), or how each layer's own share
    is found: "uniform", "erk", "owl", "sensitivity"; when empty "sensitivity" for obs and wanda, "uniform" for sparsegpt, "erk"
    for set and rigl, else "global". schedule: of SCHEDULES. repair: one-shot, least squares for the weights that stay, biases
    and batch-norm statistics. epochs: of each training, 3 when left out; one-shot trains only when they are given, its masks
    held. rounds: cuts of a rewinding schedule. strength: of the penalty of l1, group_l1, l0, variational
    (methods.sparsify.train.STRENGTHS).
    training: further knobs of engine.schedule.Training. dense: layers that stay as they are, names or patterns; None for the
    first convolution and depthwise ones. samples: calibration examples.
    Biases, norms, embeddings and recurrent layers stay dense.
    """

    ratio: float | None = None
    threshold: float | None = None
    pattern: str = "unstructured"
    score: str = ""
    allocation: str = ""
    schedule: str = "one-shot"
    repair: bool = True
    epochs: float | None = None
    rounds: int | None = None
    strength: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    dense: Sequence[str] | None = None
    samples: int = 1_024

    card: ClassVar[Card] = Card(
        name="sparsify",
        title="Weights set to zero, one-shot or in training",
        paper="Frantar and Alistarh 2022, arXiv:2208.11580 and 2023, arXiv:2301.00774; Zhu and Gupta 2017, arXiv:1710.01878",
        needs_data=True,
        rewrites=True,
        trains=True,
    )

    def __post_init__(self) -> None:
        self._check_words()
        for name, most in (("ratio", 1.0), ("threshold", math.inf), ("strength", math.inf)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < most):
                allowed = f"in (0, {most:g})" if math.isfinite(most) else "> 0"
                raise InputError(f"sparsify: {name} must be {allowed}. Got {value!r}.")
        for name in ("samples", "rounds"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"sparsify: {name} must be an integer >= 1. Got {value!r}.")
        self._check_pattern()
        self._check_schedule()

    def _check_pattern(self) -> None:
        """N:M has a ratio, a threshold makes one, and neither suits every schedule."""
        pattern = self.terms.pattern
        if self.ratio is not None and pattern.ratio is not None and not math.isclose(self.ratio, pattern.ratio):
            raise InputError(
                f"sparsify: pattern {self.pattern} makes {pattern.ratio:g} of the weights zero. Got ratio {self.ratio}."
            )
        if pattern.among and (self.schedule in MOVING or self.allocation not in ("", "uniform")):
            raise InputError(f"sparsify: pattern {self.pattern} has one share of zeros for all layers and does not move.")
        if self.score == "sparsegpt" and self.terms.allocation != "uniform":
            raise InputError("sparsify: score sparsegpt makes masks, which allocation: uniform takes as they are.")
        if self.threshold is not None and (self.ratio is not None or pattern != Pattern() or self.schedule != "one-shot"):
            raise InputError("sparsify: threshold takes no ratio, and needs pattern: unstructured and schedule: one-shot.")
        if self.schedule == "group_l1" and pattern.size == 1:
            raise InputError(f"sparsify: schedule group_l1 needs blocks, e.g. pattern 4x1. Got {self.pattern}.")

    def _check_schedule(self) -> None:
        """Knobs that would do nothing are refused."""
        known = {"rounds": REWINDING, "strength": tuple(STRENGTHS)}
        for name, schedules in known.items():
            if getattr(self, name) is not None and self.schedule not in schedules:
                raise InputError(f"sparsify: {name} is for schedule {', '.join(schedules)}. Got schedule {self.schedule}.")
        if self.training and not self.trains:
            raise InputError("sparsify: training needs epochs, or a schedule that trains.")
        if self.schedule not in ("one-shot", *MOVING) and self.score not in ("", "magnitude"):
            raise InputError(f"sparsify: schedule {self.schedule} ranks weights by itself. Got score {self.score!r}.")
        if "keep" in self.training or "epochs" in self.training:
            raise InputError("sparsify: training takes neither keep (the last weights are kept) nor epochs (a knob beside it).")
        _ = self.recovery

    @property
    def trains(self) -> bool:
        """Whether there is a training."""
        return self.schedule != "one-shot" or self.epochs is not None

    @property
    def recovery(self) -> Training:
        """The last weights are kept: better ones before had other masks."""
        epochs = _EPOCHS if self.epochs is None else self.epochs
        return Training(**{**self.training, "epochs": epochs, "keep": "last"})

    def _check_words(self) -> None:
        words = {"score": SCORES, "allocation": ALLOCATIONS, "schedule": SCHEDULES}
        for name, known in words.items():
            if getattr(self, name) or name == "schedule":
                refuse_unknown(name, str(getattr(self, name)), known)
        if not isinstance(self.pattern, str):
            # YAML reads 2:4 without quotes as a number of base 60
            raise InputError(f"sparsify: pattern must be a text. Got {self.pattern!r}.", hint='Write "2:4" in quotes.')
        try:
            pattern_of(self.pattern)
        except ValueError as error:
            raise InputError(f"sparsify: {error}") from error
        if isinstance(self.dense, str) or not (self.dense is None or all(isinstance(name, str) for name in self.dense)):
            raise InputError(f"sparsify: dense must be a list of names. Got {self.dense!r}.")
        if not isinstance(self.training, Mapping):
            raise InputError(f"sparsify: training must be a mapping, e.g. {{lr: 0.01}}. Got {self.training!r}.")
        for name in self.training:
            refuse_unknown("knob of sparsify's training", str(name), [one.name for one in fields(Training)])

    @property
    def terms(self) -> Terms:
        """With what was left out filled in."""
        pattern = pattern_of(self.pattern)
        ratio = pattern.ratio or self.ratio or _RATIO
        score = self.score or ("obs" if self.schedule == "one-shot" else "magnitude")
        allocation = "erk" if self.schedule in MOVING else _ALLOCATIONS.get(score, "global")
        return Terms(score, pattern, ratio, "uniform" if pattern.among else self.allocation or allocation, self.threshold)

    def check(self, model: Model, *, data: Data) -> None:
        """Raises InputError where score or schedule need what the data has not, UnfitError naming a layer that the pattern does
        not divide. Pins are not known here: a layer that cannot take the pattern is listed in `dense`.
        """
        self._check_data(data)
        self._layers(own_graph(model), ())

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The sparse network; the given one is not changed. pins: names or patterns of layers that stay dense.

        Raises as `check`, and UnfitError for a schedule that would move the zeros of an earlier step. Ctrl-C in the training of
        a one-shot schedule is raised as core.run.Stopped with the network so far once an epoch is done.
        """
        self._check_data(data)
        if model.shared:
            raise UnfitError("sparsify would tear shared values apart.", hint="Put share behind it.")
        if model.sparse and self.schedule not in ("one-shot", "cubic", *REWINDING):
            raise UnfitError(f"sparsify: schedule {self.schedule} would move zeros that an earlier step made.")
        graph = own_graph(model)
        layers = self._layers(graph, pins)
        names = {layer.name: self.pattern for layer in layers}
        result = replace(model, module=graph, sparse={**model.sparse, **names})
        try:
            self._fill(graph, layers, model, data, run)
        except Stopped as stop:
            raise Stopped(result) from stop
        zeros = {name: [found.zeros, found.where.numel()] for name, found in zeros_of(graph, names).items()}
        chosen = {"score": self.terms.score, "allocation": self.terms.allocation, "schedule": self.schedule}
        run.ledger.note("sparsify", **chosen, zeros=zeros)
        return result

    def _fill(self, graph: fx.GraphModule, layers: Sequence[Layer], model: Model, data: Data, run: Run) -> None:
        """Makes the zeros, in place."""
        work = None
        if self.trains:
            work = Work(training_split("sparsify", data), task_loss(data), self.recovery, run, tuple(model.sparse))
        if self.schedule == "one-shot" or self.schedule in MOVING:
            self._at_once(graph, layers, data, run)
        if work is None:
            return
        if self.schedule == "one-shot":
            work.stoppable(graph, Held(graph, layers, [layer.name for layer in layers]), "held")
            return
        wanted = self._wanted(graph, layers, data, run)
        if self.schedule in REWINDING:
            rounds, to_start = self.rounds or _ROUNDS, self.schedule == "rewind_weights"
            rewinding(graph, layers, wanted=wanted, work=work, rounds=rounds, to_start=to_start)
            return
        schedule = schedule_of(self.schedule, graph, layers, wanted=wanted, work=work, strength=self.strength)
        work(graph, schedule, self.schedule)

    def _at_once(self, graph: fx.GraphModule, layers: Sequence[Layer], data: Data, run: Run) -> None:
        with quiet():
            intact = copy.deepcopy(graph)
        apply(graph, layers, choose(graph, layers, self.terms, evidence=Evidence(data, self.samples, run)))
        if self.repair and self.schedule == "one-shot":
            mend(intact, graph, layers, inputs=one_batch(data, self.samples).inputs, seed=run.seed)

    def _wanted(self, graph: fx.GraphModule, layers: Sequence[Layer], data: Data, run: Run) -> Wanted:
        """Each layer's share of zeros is that of the one-shot masks; with allocation "global" it is left open."""
        terms = self.terms
        if terms.allocation == "global" or self.schedule in MOVING:
            return Wanted(terms.pattern, terms.ratio)
        masks = choose(graph, layers, terms, evidence=Evidence(data, self.samples, run))
        ratios = {name: 1 - float(mask_OK.double().mean()) for name, mask_OK in masks.items()}
        return Wanted(terms.pattern, terms.ratio, ratios)

    def _layers(self, graph: fx.GraphModule, pins: Sequence[str]) -> list[Layer]:
        layers = find_layers(graph, dense=self.dense, pins=pins)
        refuse_misfits(layers, self.terms.pattern, self.pattern)
        return layers

    def _check_data(self, data: Data) -> None:
        has_targets = data.task == "language-model" or next(iter(data.calibration.batches(1, 1))).target is not None
        needs = f"score {self.terms.score}" if self.terms.score in NEED_TARGETS else "a training" if self.trains else ""
        if needs and not has_targets:
            raise InputError(f"sparsify: {needs} needs targets in the data.", hint="Try schedule: one-shot with score: obs.")
        if self.trains:
            training_split("sparsify", data)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
