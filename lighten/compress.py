"""The main job, top to bottom: measure, plan, apply, export, verify, report."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from lighten import catalog
from lighten.analyze.trace import trace
from lighten.core.cost import Budget, Target
from lighten.core.data import Batch, Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Exporter
from lighten.core.graph import Graph
from lighten.core.method import Method, Prepared, Rewrite
from lighten.core.model import Model
from lighten.core.pins import pinned, refuse_unknown_pins
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe, Step, refuse_unknown
from lighten.core.run import Alone, Progress, Run, Silent, Stopped
from lighten.data.source import check_labels, load_data, require_labels
from lighten.engine.faults import num_restarts
from lighten.engine.files import check_writable, make_folder
from lighten.engine.memory import FolderMemory
from lighten.engine.ranks import agreed, joined, refuse_axes
from lighten.engine.rewriting import identity_of, rewritten
from lighten.engine.scalars import summary_writer
from lighten.engine.threads import torch_threads
from lighten.evaluate.metrics import require_suited
from lighten.export.executed import computes_in_float
from lighten.export.saturation import NARROW_BITS
from lighten.export.single import with_longest
from lighten.finish import KEEPING, Found, finish
from lighten.gather import ROUNDING, Facts, versions
from lighten.read.source import load
from lighten.report.specs import name_of
from lighten.result import WORK, Result, shared
from lighten.search.bits import Limits, fit_widths
from lighten.search.clock import FileClock, SharedClock
from lighten.search.executable import executable
from lighten.search.faster import Speed, make_faster, time_trial
from lighten.search.narrow import narrowed
from lighten.search.restore import restore
from lighten.search.sensitivity import mean_bits
from lighten.search.trials import Trial, Trials, representative_batch

if TYPE_CHECKING:
    from lighten.analyze.reclass import Reclassed

_CLOSE = 0.01
_FILES_KEPT = 5  # as many times the weights as unfinished work takes: the original, and a dozen trials of a quarter each
_STEP_KEPT = 6  # and a step before the last: its result; while it trains weights, two moments, their average and the best
_FREE_BYTES = 20_000_000
Source = Model | nn.Module | str | Path


def compress(
    model: Source,
    data: Data | str | Path | Iterable[Any],
    *,
    budget: Budget | None = None,
    recipe: Recipe | None = None,
    target: Target | str = "onnxruntime",
    out: str | Path | None = None,
    tensorboard: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Makes `model` small and fast within `budget`, and proves it on the exported file.

    model, data: anything `lighten.load` and `lighten.load_data` read. recipe: int8 when None. target: where the file must run.
    out: a folder for unfinished work, so that an interrupted run can be resumed; `Result.save(out)` completes it. tensorboard:
    a folder for the curves of every training step.

    Several processes that torchrun started train together, as `recipe.distributed` says; the first one searches, times and
    shows progress, and each returns the same result.

    Raises InputError or UnfitError before any work when something does not fit. KeyboardInterrupt ends training and search
    early: the best file so far is returned with `interrupted` set, or the interrupt goes on when there is none yet.
    """
    budget, recipe, progress = budget or Budget(), recipe or Recipe(), progress or Silent()
    target = Target(target) if isinstance(target, str) else target
    with joined(recipe.distributed) as (ranks, distributed):
        run = Run(recipe.seed, target.threads, progress, ranks=ranks, distributed=distributed)
        refuse_axes(distributed)
        if restarts := num_restarts():
            run.progress.say(f"Started again ({restarts}): a rank was lost.")
        if ranks.number:
            out, tensorboard, run = None, None, replace(run, progress=Silent())
        return _compress(model, data, (budget, recipe, target), run=run, places=(out, tensorboard))


def _compress(
    source: Source,
    data: Data | str | Path | Iterable[Any],
    order: tuple[Budget, Recipe, Target],
    *,
    run: Run,
    places: tuple[str | Path | None, str | Path | None],
) -> Result:
    (budget, recipe, target), (out, tensorboard) = order, places
    exporters = {one: catalog.exporter(one.runtime) for one in target.each()}
    rewrites, method = _steps(recipe)
    steps: tuple[Rewrite | Method, ...] = (*rewrites, method)
    curves = _curves(tensorboard, steps)
    model = source if type(source) is Model else load(source)
    data = _loaded(data, model, seed=recipe.seed, progress=run.progress)
    require_suited(data.metric, data.task)
    model = with_longest(model, data) if any(getattr(one, "holds_one", False) for one in exporters.values()) else model
    graph = trace(model)
    _check(recipe, steps, graph, model=model, data=data)
    with ExitStack() as stack:
        folder = _work_folder(out, model, stack, num_steps=len(rewrites) + method.card.trains)
        clock = SharedClock(run.ranks, _clock(exporters, representative_batch(data, target), folder, run.progress))
        run = replace(run, folder=folder if out and data.digest else None, tensorboard=curves, clock=clock, original=model)
        stack.enter_context(torch_threads(target.threads))
        torch.manual_seed(recipe.seed)
        identity = agreed(run, _identity(graph, data, recipe, target))
        smaller, stopped = rewritten(model, rewrites, data=data, run=run, pins=tuple(recipe.sites), identity=identity)
        kept = graph if smaller is model else trace(smaller)
        run = run if stopped else _with_memory(run, identity, steps)
        prepared, stopped = _prepared(method, smaller, kept, data=data, run=_own(run, identity, steps), is_hurried=stopped)

        def search_in(one: Target) -> Facts:
            trials = Trials(model, prepared, data, exporters[one], one, replace(run, ranks=Alone()), folder)
            found, interrupted = _Job(kept, budget, recipe, trials, is_hurried=stopped).search()
            return Facts(graph, kept, budget, recipe, trials, found, interrupted)

        def search() -> Result:
            return finish(_each(exporters, search_in), reclassed=lambda: _reclassed(model, data, smaller))

        return shared(run.ranks, search, prepared, reclassed=lambda: _reclassed(model, data, smaller))


def _each(targets: Iterable[Target], search: Callable[[Target], Facts]) -> Found:
    """What is found in each runtime. One that cannot hold the network is left out, unless it is the only one."""
    found: list[Facts] = []
    refused: dict[str, UnfitError] = {}
    for one in targets:
        if found and found[-1].interrupted:
            break
        try:
            found.append(search(one))
        except UnfitError as error:
            refused[one.runtime] = error
    if not found:
        raise next(iter(refused.values()))
    return Found(found, {runtime: error.message for runtime, error in refused.items()})


def _clock(exporters: Mapping[Target, Exporter], batch: Batch, folder: Path, progress: Progress) -> FileClock:
    """Of the first runtime: steps that look at the time cut for it."""
    target, exporter = next(iter(exporters.items()))
    return FileClock(exporter, target, batch, folder, progress)


def _reclassed(model: Model, data: Data, smaller: Model) -> "Reclassed | None":
    """What the steps before the last one made, in its own class; None where there are none."""
    from lighten.analyze.reclass import as_class  # a fifth of all that `import lighten` would load, for few runs

    if smaller.module is model.module:
        return None
    example = next(iter(data.calibration.batches(2, 2))).inputs
    return as_class(model.module, cast(fx.GraphModule, smaller.module), example)


@dataclass
class _Job:
    """The search for one plan. is_hurried: the user has interrupted already; the first proposal is all that is tried."""

    graph: Graph
    budget: Budget
    recipe: Recipe
    trials: Trials
    is_hurried: bool = False
    best: Speed | None = None

    def search(self) -> tuple[Speed, bool]:
        """The best plan found and measured, and whether the user cut the work short."""
        try:
            return self._search(), self.is_hurried
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self.trials.run.progress.say(KEEPING)
            return self.best, True

    def _search(self) -> Speed:
        if self.recipe.plan is not None:
            return self._consider(self.trials.attempt(self.recipe.plan, "the recipe's plan"))
        if self.is_hurried:
            plan = self._pinned(self._proposals()[0])
            return self._consider(self.trials.attempt(plan, name_of(plan)))
        speeds = [self._consider(self.trials.attempt(self._pinned(plan), name_of(plan))) for plan in self._proposals()]
        holding = [speed for speed in speeds if self._holds(speed.trial)]
        if holding:
            start = min(self._as_accurate(holding), key=lambda speed: speed.ratio)
        else:
            least = min(speeds, key=lambda speed: speed.trial.comparison.drop)
            start = self._consider(self._restored(least.trial))
        if not (self._is_narrow(start.trial) and self._fits(start.trial)):
            narrow = fit_widths(self.trials, self.graph, start.trial, limits=self._limits)
            start = max(start, self._consider(narrow), key=self._worth)
        return self._keep(make_faster(self.trials, self.graph, start, holds=partial(self._keeps, start.trial)))

    def _proposals(self) -> list[Plan]:
        """The method's, as far as the runtime executes them, and for each a variant in 7 bits where its fast kernels lose sums
        of 8.
        """
        in_float = partial(computes_in_float, self.trials.target.runtime)
        prepared, sites = self.trials.prepared, self.graph.sites
        plans = [executable(plan, sites, prepared, in_float=in_float) for plan in prepared.proposals()]
        if self.trials.exporter.exact_weight_bits() > NARROW_BITS:
            return plans
        return [variant for plan in plans for variant in (plan, narrowed(plan, self.graph.sites))]

    def _as_accurate(self, speeds: list[Speed]) -> list[Speed]:
        """Without a limit on the drop, those that drop hardly more than the best: speed alone is not what was asked for."""
        if self.budget.max_drop is not None:
            return speeds
        least = min(speed.trial.comparison.drop for speed in speeds)
        return [speed for speed in speeds if speed.trial.comparison.drop <= least + _CLOSE]

    def _pinned(self, plan: Plan) -> Plan:
        return pinned(plan, self.recipe.sites)

    def _restored(self, trial: Trial) -> Trial:
        return restore(self.trials, trial, holds=self._holds, inputs=self._few_inputs(), run=self.trials.run)

    def _few_inputs(self) -> tuple[Tensor, ...]:
        return next(iter(self.trials.data.calibration.batches(8, 8))).inputs

    def _holds(self, trial: Trial) -> bool:
        return self.budget.max_drop is None or trial.comparison.drop <= self.budget.max_drop + ROUNDING

    def _fits(self, trial: Trial) -> bool:
        return self.budget.size_bytes is None or trial.export.size_bytes <= self.budget.size_bytes

    @property
    def _limits(self) -> Limits:
        """Of the weights' widths; mean_bits is a knob of quantize, a last step."""
        return Limits(self.budget.size_bytes, self.recipe.steps[-1].knobs.get("mean_bits"))

    def _is_narrow(self, trial: Trial) -> bool:
        """Whether the weights have the mean width that the recipe orders."""
        most = self._limits.mean_bits
        return most is None or mean_bits(self.graph, trial.plan) <= most + ROUNDING

    def _keeps(self, start: Trial, trial: Trial) -> bool:
        """Whether the limits that `start` holds still hold."""
        fits = self._fits(trial) or not self._fits(start)
        return self._holds(trial) and fits and (self._is_narrow(trial) or not self._is_narrow(start))

    def _consider(self, trial: Trial) -> Speed:
        return self._keep(time_trial(self.trials, trial))

    def _keep(self, speed: Speed) -> Speed:
        if self.best is None or self._worth(speed) > self._worth(self.best):
            self.best = speed
        return speed

    def _worth(self, speed: Speed) -> tuple[bool, bool, bool, float, float]:
        """Among files that hold the drop and the size the fastest is best, among those that do not the one that drops least.
        What the recipe orders comes first.
        """
        trial, holds = speed.trial, self._holds(speed.trial)
        drop = 0.0 if holds else trial.comparison.drop
        return self._is_narrow(trial), holds, self._fits(trial), -drop, -speed.ratio


def _steps(recipe: Recipe) -> tuple[tuple[Rewrite, ...], Method]:
    """The steps that give another network, in order, and the last one, which makes the file's numbers (float32 when the recipe
    names none).
    """
    made = [catalog.build_method(step) for step in recipe.steps]
    last = made.pop() if not made[-1].card.rewrites else catalog.build_method(Step("keep"))
    early = [step.method for step, method in zip(recipe.steps, made, strict=False) if not method.card.rewrites]
    if early:
        raise InputError(
            f"{early[0]} must be the last step: what comes after would work on a network that is no longer float.",
            hint="Put prune and finetune before it.",
        )
    return tuple(cast(Rewrite, method) for method in made), cast(Method, last)


def _prepared(method: Method, model: Model, graph: Graph, *, data: Data, run: Run, is_hurried: bool) -> tuple[Prepared, bool]:
    """The last step on its data, and whether the user has interrupted; one that trains is left at its start then."""
    if is_hurried:
        return getattr(method, "start", method).prepare(model, graph, data=data, run=run), True
    try:
        return method.prepare(model, graph, data=data, run=run), False
    except Stopped as stop:
        return stop.result, True


def _curves(folder: str | Path | None, steps: Sequence[Rewrite | Method]) -> Path | None:
    """Where TensorBoard finds the curves. Raises InputError when there is none to draw, or no means to."""
    if folder is None:
        return None
    if not any(step.card.trains for step in steps):
        raise InputError("No step of the recipe trains: there is nothing for TensorBoard.", hint="Add `finetune`.")
    summary_writer()
    check_writable(Path(folder), 0)
    return Path(folder)


def _loaded(source: Data | str | Path | Iterable[Any], model: Model, *, seed: int, progress: Progress) -> Data:
    if type(source) is Data:
        return source
    return require_labels(load_data(source, model=model, seed=seed, progress=progress), source)


def _check(recipe: Recipe, steps: Sequence[Rewrite | Method], graph: Graph, *, model: Model, data: Data) -> None:
    """Labels, sites, and all that a step can tell before the first one works."""
    check_labels(data, num_outputs=_num_outputs(graph))
    _check_sites(recipe, graph, model)
    for step in steps:
        if step.card.rewrites or step.card.trains:
            cast(Rewrite, step).check(model, data=data)


def _check_sites(recipe: Recipe, graph: Graph, model: Model) -> None:
    names = [site.name for site in graph.sites]
    # prune knows groups by the tensor that makes them, `#2` where it makes two
    tensors = [name.removesuffix(".weight") for name in model.module.state_dict()]
    refuse_unknown_pins([pin.partition("#")[0] for pin in recipe.sites], [*names, *tensors])
    for site in recipe.plan or ():
        refuse_unknown("site", site, names)


def _num_outputs(graph: Graph) -> int | None:
    """The width of the first output, None when it is not fixed."""
    (results,) = next(node for node in graph.module.graph.nodes if node.op == "output").args[:1]
    first = results[0] if isinstance(results, tuple | list) else results
    width = first.meta["val"].shape[-1] if "val" in first.meta and first.meta["val"].dim() else None
    return width if isinstance(width, int) else None


def _with_memory(run: Run, identity: dict[str, Any], steps: Sequence[Method | Rewrite]) -> Run:
    """The run with what an earlier one found about the network after all steps. Not for a network that an interrupt gave: no
    later run meets it again.
    """
    if run.folder is None:
        return run
    known = {**identity, "steps": [identity_of(step) for step in steps]}
    return replace(run, memory=FolderMemory(run.folder / "memory", identity=known))


def _own(run: Run, identity: dict[str, Any], steps: Sequence[Method | Rewrite]) -> Run:
    """The run as the last step gets it: one that trains has a folder of its own, empty when anything before has changed."""
    if not steps[-1].card.trains:
        return run
    folder, curves = (
        None if place is None else place / f"{len(steps)}-{steps[-1].card.name}" for place in (run.folder, run.tensorboard)
    )
    if folder is not None:
        FolderMemory(folder, identity={**identity, "steps": [identity_of(step) for step in steps]})
    return replace(run, folder=folder, tensorboard=curves)


def _identity(graph: Graph, data: Data, recipe: Recipe, target: Target) -> dict[str, Any]:
    """All that decides, with the steps, what a run finds: remembered work is used again only where every entry is the same."""
    settings = {"sites": sorted(recipe.sites), "seed": recipe.seed, "target": repr(target)}
    return {
        "versions": versions(),
        "model": _digest(graph),
        "data": [data.digest, data.metric, data.calibration_digest],
        **settings,
    }


def _digest(graph: Graph) -> str:
    """sha256 over the traced code and every weight: the same network gives the same digest."""
    digest = hashlib.sha256(graph.module.code.encode())
    for name, value in sorted(graph.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _work_folder(out: str | Path | None, model: Model, stack: ExitStack, *, num_steps: int) -> Path:
    if out is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighten-")))
    own = model.origin.folder or Path(model.origin.source)
    if own.exists() and own.resolve() == Path(out).resolve():
        raise InputError(f"{out} is the model's own folder.", hint="Choose another --out.")
    weight_bytes = sum(value.numel() * value.element_size() for value in model.module.state_dict().values())
    check_writable(Path(out), (_FILES_KEPT + _STEP_KEPT * num_steps) * weight_bytes + _FREE_BYTES)
    return make_folder(Path(out) / WORK)
