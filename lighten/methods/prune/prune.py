"""Structured pruning: channels, attention heads and neurons that are really gone."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from lighten.analyze.coupling import Coupling, couple
from lighten.analyze.cut import cut, kept_positions
from lighten.analyze.flow import INPUT, OUTPUT
from lighten.analyze.trace import tensor_of, traced
from lighten.core.channels import ChannelGroup
from lighten.core.data import Data, Split
from lighten.core.errors import InputError, UnfitError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.pins import is_pinned
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run, Silent
from lighten.engine.schedule import Training
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.amount import MEASURES, amount
from lighten.methods.prune.budget import RANKINGS, Choice, Terms
from lighten.methods.prune.depth import SCORES as DEPTH_SCORES
from lighten.methods.prune.depth import UNITS as DEPTH_UNITS
from lighten.methods.prune.depth import Depth, check_depth, drop_blocks
from lighten.methods.prune.repair import NORMS, refresh_norms, repair
from lighten.methods.prune.schedule import SCHEDULES, Recovery, gradual, iterative
from lighten.methods.prune.score import NEED_TARGETS, SCORES, Evidence, score_groups
from lighten.methods.prune.timed import Bench, timed_terms
from lighten.ops.groups import AGGREGATES, NORMALIZATIONS, normalize

UNITS = ("all", "channel", "head", "neuron", "expert", *DEPTH_UNITS)
BUDGETS = (*MEASURES, "latency", "ratio")
_FOR_SIZE = ("params", "bytes")
_ROUNDS = 3
_WORDS = {
    "score": (*SCORES, *DEPTH_SCORES),
    "unit": UNITS,
    "ranking": RANKINGS,
    "normalize": NORMALIZATIONS,
    "aggregate": AGGREGATES,
    "schedule": SCHEDULES,
}


@dataclass(frozen=True)
class Prune:
    """Cuts the least important channels and repairs what is left.

    One of five budgets, in (0, 1): macs, params, bytes (of all parameters and buffers), latency (measured in the target
    runtime), each the fraction that stays; ratio, the fraction of channels that goes.
    score: how channels are ranked (methods.prune.score.SCORES; "magnitude" when empty). aggregate: over the tensors of a group.
    unit: "channel", "head" (attention heads), "neuron" (feed-forward), "expert", or "all" of these; "block" (a residual branch)
    or "layer", for which methods.prune.depth says what the knobs mean. ranking: channels are compared "global"ly, within groups
    of equal structure ("isomorphic", Fang et al. 2024, arXiv:2407.04616), or the same share goes from every group ("uniform").
    normalize: of scores between groups. round_to: kept counts are multiples of it where the group has more. least: fraction of
    a group that always stays, in [0, 1). only_faster: where there is a target to time on, cuts that do not make it faster are
    not made. repair: least-squares update of the layers behind a cut, and of batch-norm means; "norms" takes only the
    batch norms' statistics anew, which costs one pass. samples: calibration examples.
    schedule: "one-shot", "iterative" (cuts in `rounds` steps with training between them) or "gradual" (training with a penalty
    on the channels that will go, then one cut). training: knobs of engine.schedule.Training, for these two.
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    ratio: float | None = None
    score: str = ""
    aggregate: str = "mean"
    unit: str = "all"
    ranking: str = "global"
    normalize: str = "mean"
    round_to: int = 8
    least: float = 0.1
    only_faster: bool = True
    repair: bool | str = True
    samples: int = 1_024
    schedule: str = "one-shot"
    rounds: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    card: ClassVar[Card] = Card(
        name="prune",
        title="Structured pruning of channel groups, with least-squares repair",
        paper="Fang et al. 2023, arXiv:2301.12900; He et al. 2017, arXiv:1707.06168",
        needs_data=True,
        rewrites=True,
    )

    def __post_init__(self) -> None:
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InputError(f"prune takes one of {', '.join(BUDGETS)}. Got {', '.join(given) or 'none'}.")
        for name, value in given.items():
            if not _is_number(value) or not 0 < value < 1:
                raise InputError(f"prune: {name} must be in (0, 1). Got {value!r}.")
        if not self.score:
            object.__setattr__(self, "score", "removal" if self.unit in DEPTH_UNITS else "magnitude")
        for name, known in _WORDS.items():
            refuse_unknown(name, str(getattr(self, name)), known)
        for name, fewest in (("round_to", 1), ("samples", 1), ("rounds", 2)):
            value = getattr(self, name)
            if not (value is None and name == "rounds") and not (_is_number(value) and type(value) is int and value >= fewest):
                raise InputError(f"prune: {name} must be an integer >= {fewest}. Got {value!r}.")
        if self.repair not in (True, False, NORMS):
            raise InputError(f"prune: repair must be true, false or {NORMS}. Got {self.repair!r}.")
        if not _is_number(self.least) or not 0 <= self.least < 1:
            raise InputError(f"prune: least must be in [0, 1). Got {self.least!r}.")
        self._check_schedule()
        self._check_unit()

    def _check_unit(self) -> None:
        """Channels and depth have scores of their own."""
        is_deep = self.unit in DEPTH_UNITS
        known = DEPTH_SCORES if is_deep else SCORES
        if self.score not in known:
            raise InputError(f"prune: unit {self.unit} is scored by {', '.join(known)}. Got score {self.score!r}.")
        if is_deep and (self.latency is not None or self.schedule != "one-shot"):
            raise InputError(f"prune: unit {self.unit} takes macs, params, bytes or ratio, and schedule: one-shot.")

    def _check_schedule(self) -> None:
        """The knobs of a training are none without one."""
        if not isinstance(self.training, Mapping):
            raise InputError(f"prune: training must be a mapping, e.g. {{epochs: 1}}. Got {self.training!r}.")
        for name in self.training:
            refuse_unknown("knob of prune's training", str(name), [one.name for one in fields(Training)])
        given = [name for name in ("rounds", "training") if getattr(self, name)]
        if self.schedule == "one-shot" and given:
            raise InputError(
                f"prune: {' and '.join(given)} need schedule: iterative or gradual; one-shot has one cut, untrained."
            )
        _ = self.recovery

    @property
    def recovery(self) -> Training:
        """Of the training between cuts. The last weights are kept: a better one before had another penalty, or none."""
        return Training(**{"epochs": 1, **self.training, "keep": "last"})

    @property
    def budget(self) -> tuple[str, float]:
        """Its name and value."""
        return next((name, value) for name in BUDGETS if (value := getattr(self, name)) is not None)

    @property
    def depth(self) -> Depth:
        """For the units "block" and "layer"."""
        return Depth(self.unit, *self.budget, self.score, self.least, self.samples, self.repair)

    def check(self, model: Model, *, data: Data) -> None:
        """Raises InputError when the score or the schedule needs what the data has not, or the limits forbid the budget (saying
        the least reachable); UnfitError when the network has nothing to cut.
        """
        _check_data(self, data)
        if self.unit in DEPTH_UNITS:
            check_depth(self.depth, model, traced(model))
            return
        _Job(self, model, traced(model), data=data, run=Run()).check()

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The smaller network; the given one is not changed. pins: names or patterns of weights' owners, or of groups, that
        stay whole.

        Raises as `check`, InputError for a latency that nothing measures or reaches, and UnfitError where no cut makes the
        target faster.
        """
        if model.shared:
            raise UnfitError("prune fits weights anew, which would tear shared values apart.", hint="Put share behind it.")
        _check_data(self, data)
        if self.unit in DEPTH_UNITS:
            return replace(model, module=drop_blocks(self.depth, model, traced(model), data=data, run=run, pins=pins))
        if self.latency is not None and run.clock is None:
            raise InputError(
                "prune: latency is measured, and here is no target to measure on.", hint="Use lighten.compress, or macs."
            )
        job = _Job(self, model, traced(model), data=data, run=run, pins=pins)
        job.check()
        return replace(model, module=job.smaller())


class _Job:
    """One step under way. graph: the intact network, on tensors of its own; a gradual schedule trains it."""

    def __init__(
        self, knobs: Prune, model: Model, graph: fx.GraphModule, *, data: Data, run: Run, pins: Sequence[str] = ()
    ) -> None:
        self.knobs, self.model, self.graph = knobs, model, graph
        self.data, self.run, self.pins = data, run, pins
        self.coupling = couple(graph)
        self.groups = self._cuttable(self.coupling)
        self.sizes = {group.name: group.size for group in self.groups}
        self.name, self.asked = knobs.budget
        self.terms = Terms(0.0, knobs.round_to)  # of the full budget

    def check(self) -> None:
        """Raises UnfitError or InputError where there is nothing to cut, or not so much."""
        if not self.groups:
            raise _nothing(self.model.origin.source, self.knobs.unit, self.coupling)
        unscored = {group.name: torch.zeros(group.size) for group in self.groups}
        choice = self._choice(self.graph, self.coupling, unscored)
        stays = 1 - self.asked if self.name == "ratio" else self.asked
        self.terms = Terms(stays * choice.total, self.knobs.round_to)
        if self.name != "latency":
            choice.require(self.terms, name=self.name, asked=self.asked)
        self.total = choice.total

    def smaller(self) -> fx.GraphModule:
        """The result of the whole schedule."""
        knobs, rounds = self.knobs, self.knobs.rounds or _ROUNDS
        self._time_terms()
        if knobs.schedule == "one-shot":
            return self._cut(self.graph, 1.0)
        loss = Evidence(self.data, knobs.samples, self.run).loss
        recover = Recovery(cast(Split, self.data.train), loss, knobs.recovery, self.run, tuple(self.model.sparse))
        if knobs.schedule == "iterative":
            return iterative(self.graph, cut=self._cut, rounds=rounds, recover=recover)
        silent = replace(self.run, progress=Silent())
        gradual(
            self.graph,
            self.groups,
            select=lambda now: self._select(now, self.coupling, 1.0, silent),
            rounds=rounds,
            recover=recover,
        )
        return self._cut(self.graph, 1.0)

    def _time_terms(self) -> None:
        """Measured once, on the intact network: what is timed are widths, and these hardly depend on the training between."""
        run, latency = self.run, self.knobs.latency
        if run.clock is None or not (self.knobs.only_faster or latency is not None):
            return
        clock = run.clock

        def measure() -> dict[str, Any]:
            choice = self._choice(self.graph, self.coupling, self._scores(self.graph, self.groups, run))
            macs = amount(self.graph, self.model.example, self.coupling, measure="macs")
            bench = Bench(replace(self.model, module=self.graph), self._built, macs, clock, run.progress)
            is_for_speed = self.knobs.only_faster and self.name not in _FOR_SIZE
            terms = timed_terms(choice, self.terms, bench, latency=latency, is_for_speed=is_for_speed)
            run.ledger.note("timed cuts", probes=bench.probes, round_to=terms.round_to, whole=list(terms.whole))
            return terms.to_dict()

        self.terms = Terms.from_dict(run.memory.remember("timed terms", measure))

    def _built(self, kept: Mapping[str, Tensor]) -> Model:
        return replace(self.model, module=cut(self.graph, self.coupling, kept))

    def _cut(self, graph: fx.GraphModule, progress: float) -> fx.GraphModule:
        """Cut and repaired. progress: in (0, 1], the fraction of the way to the budget, in equal factors."""
        coupling = couple(graph)
        kept = self._select(graph, coupling, progress, self.run)
        smaller = cut(graph, coupling, kept)
        _refuse_broken(smaller, self.model)
        if self.knobs.repair == NORMS:
            refresh_norms(smaller, self.data, samples=self.knobs.samples, run=self.run)
        elif self.knobs.repair:
            examples = one_batch(self.data, self.knobs.samples)
            stays = partial(kept_positions, coupling, kept)
            repair(graph, smaller, stays, inputs=examples.inputs, seed=self.run.seed, sparse=self.model.sparse)
        sizes = {group.name: group.size for group in coupling.groups}
        widths = {name: [sizes[name], len(kept.get(name, range(sizes[name])))] for name in self.sizes}
        self.run.ledger.note("prune", score=self.knobs.score, widths=widths)
        return smaller

    def _select(self, graph: fx.GraphModule, coupling: Coupling, progress: float, run: Run) -> dict[str, Tensor]:
        groups = self._cuttable(coupling)
        choice = self._choice(graph, coupling, self._scores(graph, groups, run))
        budget = self.total * (self.terms.budget / self.total) ** progress
        return choice.select(replace(self.terms, budget=budget)).kept

    def _choice(self, graph: fx.GraphModule, coupling: Coupling, scores: Mapping[str, Tensor]) -> Choice:
        """Floors are fractions of the intact network's groups."""
        groups = {group.name: group for group in coupling.groups}
        fewest = {name: max(groups[name].least, math.ceil(self.knobs.least * self.sizes[name])) for name in scores}
        structures = {name: structure(graph, groups[name]) for name in scores}
        measure = "macs" if self.name == "latency" else self.name
        cost = None if self.name == "ratio" else amount(graph, self.model.example, coupling, measure=measure)
        return Choice(scores, structures, self.knobs.ranking, fewest, cost)

    def _scores(self, graph: fx.GraphModule, groups: Sequence[ChannelGroup], run: Run) -> dict[str, Tensor]:
        evidence = Evidence(self.data, self.knobs.samples, run)
        scores = score_groups(graph, groups, score=self.knobs.score, how=self.knobs.aggregate, evidence=evidence)
        return {name: normalize(score_C, self.knobs.normalize) for name, score_C in scores.items()}

    def _cuttable(self, coupling: Coupling) -> list[ChannelGroup]:
        """Groups of the unit that no pin names."""
        kinds = UNITS if self.knobs.unit == "all" else (self.knobs.unit,)
        return [group for group in coupling.groups if group.kind in kinds and not _is_held(group, self.pins)]


def _is_held(group: ChannelGroup, pins: Sequence[str]) -> bool:
    """Whether a pin names the group, or the owner of one of its tensors."""
    names = {group.name, *(part.tensor.rpartition(".")[0] or part.tensor for part in group.slices)}
    return any(is_pinned(name, pins) for name in names)


def structure(graph: fx.GraphModule, group: ChannelGroup) -> Hashable:
    """Equal for groups whose tensors are alike, whatever their sizes (arXiv:2407.04616)."""
    return (group.kind, *sorted((part.role, part.dim, tensor_of(graph, part.tensor).dim()) for part in group.slices))


@torch.no_grad()
def _refuse_broken(smaller: fx.GraphModule, model: Model) -> None:
    """Raises UnfitError where an operator does not take the new sizes: a view as complex numbers needs even ones."""
    try:
        smaller(*model.example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        hint = "Pin its groups in `sites`, cut another unit, or raise `round_to`."
        raise UnfitError(f"{model.origin.source} does not run with the channels that are left: {reason}", hint=hint) from error


def _nothing(source: str, unit: str, coupling: Coupling) -> UnfitError:
    """Says what the dimensions are that could have been cut."""
    reasons = {fixed.reason for fixed in coupling.fixed}
    kinds = "" if unit == "all" else f"{unit} "
    if not coupling.groups and reasons and reasons <= {INPUT, OUTPUT}:
        said = "every channel reaches an input or the output of the network, which keep their shapes"
        return UnfitError(f"{source} has nothing to cut: {said}.")
    why = "; ".join(f"{fixed.tensor} {fixed.reason}" for fixed in coupling.fixed[:3])
    return UnfitError(f"{source} has no {kinds}group that can be cut.", hint=f"{why}." if why else "Pin less.")


def _check_data(knobs: Prune, data: Data) -> None:
    """Scores and schedules that need targets or a training split."""
    has_targets = data.task == "language-model" or next(iter(data.calibration.batches(1, 1))).target is not None
    if knobs.score in NEED_TARGETS and not has_targets:
        raise InputError(f"score {knobs.score!r} needs targets in the data.", hint="Try score: magnitude.")
    if knobs.schedule != "one-shot" and (data.train is None or not has_targets):
        lacking = "training split" if data.train is None else "targets"
        raise InputError(
            f"prune: schedule {knobs.schedule} trains, and the data has no {lacking}.",
            hint="Give train/ and test/ parts, or use schedule: one-shot.",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
