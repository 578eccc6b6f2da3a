"""The main job, top to bottom: measure, plan, apply, export, verify, report."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lighten import catalog
from lighten.analyze.trace import trace
from lighten.core.cost import Budget, Target
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.graph import Graph
from lighten.core.method import Method, Rewrite
from lighten.core.model import Model
from lighten.core.pins import pinned
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe, Step, refuse_unknown
from lighten.core.run import Forgetful, Progress, Run, Silent
from lighten.core.spec import Quant
from lighten.data.source import check_labels, load_data, require_labels
from lighten.engine.files import check_writable, make_folder
from lighten.engine.interrupt import insist
from lighten.engine.memory import FolderMemory
from lighten.engine.threads import torch_threads
from lighten.evaluate.metrics import require_suited
from lighten.export.saturation import NARROW_BITS
from lighten.gather import ROUNDING, Facts, gather, versions
from lighten.read.source import load
from lighten.result import WORK, Result
from lighten.search.faster import Speed, make_faster, time_trial
from lighten.search.gate import pass_gate
from lighten.search.narrow import narrowed
from lighten.search.restore import restore
from lighten.search.trials import Trial, Trials

_FINAL_ROUNDS = 100
_CLOSE = 0.01
_KEEPING = "Interrupted: keeping the best result so far."
_FILES_KEPT = 5  # as many times the weights as unfinished work takes: the original, and a dozen trials of a quarter each
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
    progress: Progress | None = None,
) -> Result:
    """Makes `model` small and fast within `budget`, and proves it on the exported file.

    model, data: anything `lighten.load` and `lighten.load_data` read. recipe: int8 when None. target: where the file must run.
    out: a folder for unfinished work, so that an interrupted run can be resumed; `Result.save(out)` completes it.

    Raises InputError or UnfitError before any work when something does not fit. KeyboardInterrupt ends the search early: the
    best file so far is returned with `interrupted` set, or the interrupt goes on when there is none yet.
    """
    budget, recipe = budget or Budget(), recipe or Recipe()
    target = Target(target) if isinstance(target, str) else target
    exporter = catalog.exporter(target.runtime)
    rewrites, method = _steps(recipe)
    model = model if type(model) is Model else load(model)
    data = data if type(data) is Data else require_labels(load_data(data, model=model, seed=recipe.seed), data)
    require_suited(data.metric, data.task)
    graph = trace(model)
    check_labels(data, num_outputs=_num_outputs(graph))
    _check_sites(recipe, graph)
    with ExitStack() as stack:
        folder = _work_folder(out, model, stack)
        identity = _identity(graph, data, (*rewrites, method), target=target, seed=recipe.seed)
        memory = FolderMemory(folder, identity=identity) if out is not None and data.digest else Forgetful()
        run = Run(seed=recipe.seed, threads=target.threads, progress=progress or Silent(), memory=memory)
        stack.enter_context(torch_threads(target.threads))
        torch.manual_seed(recipe.seed)
        smaller = _rewritten(model, rewrites, recipe, data=data, run=run)
        kept = graph if smaller is model else trace(smaller)
        prepared = method.prepare(smaller, kept, data=data, run=run)
        trials = Trials(model, prepared, data, exporter, target, run, folder)
        found, interrupted = _Job(kept, budget, recipe, trials).search()
        return _finish(Facts(graph, kept, budget, recipe, trials, found, interrupted))


def _finish(facts: Facts) -> Result:
    """The chosen file timed anew, checked and reported. An interrupt leaves out the timing, never the check."""
    trials, found, recipe = facts.trials, facts.speed, facts.recipe
    progress = trials.run.progress
    speed, interrupted = found, facts.interrupted
    if not interrupted:
        try:
            # timed anew: the best of several timings is too good by luck
            speed = replace(time_trial(trials, found.trial, rounds=_FINAL_ROUNDS), slower_parts=found.slower_parts)
        except KeyboardInterrupt:
            progress.say(_KEEPING)
            interrupted = True
    why = "the best result is being checked and kept."
    gate, stopped = insist(lambda: pass_gate(trials, found.trial), progress=progress, why=why)
    facts = replace(facts, speed=speed, interrupted=interrupted or stopped)
    report, _ = insist(lambda: gather(facts, gate), progress=progress, why=why)
    replay = Recipe(recipe.steps, recipe.sites, recipe.seed, found.trial.plan)
    return Result(report, found.trial.compressed, replay, found.trial.export.path.read_bytes())


@dataclass
class _Job:
    """The search for one plan."""

    graph: Graph
    budget: Budget
    recipe: Recipe
    trials: Trials
    best: Speed | None = None

    def search(self) -> tuple[Speed, bool]:
        """The best plan found and measured, and whether the user cut the search short."""
        try:
            return self._search(), False
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self.trials.run.progress.say(_KEEPING)
            return self.best, True

    def _search(self) -> Speed:
        if self.recipe.plan is not None:
            return self._consider(self.trials.attempt(self.recipe.plan, "the recipe's plan"))
        speeds = [self._consider(self.trials.attempt(self._pinned(plan), _name(plan))) for plan in self._proposals()]
        holding = [speed for speed in speeds if self._holds(speed.trial)]
        if holding:
            start = min(self._as_accurate(holding), key=lambda speed: speed.ratio)
        else:
            least = min(speeds, key=lambda speed: speed.trial.comparison.drop)
            start = self._consider(self._restored(least.trial))
        return self._keep(make_faster(self.trials, self.graph, start, holds=self._holds))

    def _proposals(self) -> list[Plan]:
        """The method's, and for each a variant in 7 bits where the runtime's fast kernels lose sums of 8."""
        plans = self.trials.prepared.proposals()
        if self.trials.exporter.exact_weight_bits() > NARROW_BITS:
            return list(plans)
        return [variant for plan in plans for variant in (plan, narrowed(plan, self.graph.sites))]

    def _as_accurate(self, speeds: list[Speed]) -> list[Speed]:
        """Without a limit on the drop, those that drop hardly more than the best: speed alone is not what was asked for."""
        if self.budget.max_drop is not None:
            return speeds
        least = min(speed.trial.comparison.drop for speed in speeds)
        return [speed for speed in speeds if speed.trial.comparison.drop <= least + _CLOSE]

    def _pinned(self, plan: Plan) -> Plan:
        return pinned(plan, self.recipe.sites, [site.name for site in self.graph.sites])

    def _restored(self, trial: Trial) -> Trial:
        batch = next(iter(self.trials.data.calibration.batches(8, 8)))
        return restore(self.trials, trial, holds=self._holds, inputs=batch.inputs, run=self.trials.run)

    def _holds(self, trial: Trial) -> bool:
        return self.budget.max_drop is None or trial.comparison.drop <= self.budget.max_drop + ROUNDING

    def _consider(self, trial: Trial) -> Speed:
        return self._keep(time_trial(self.trials, trial))

    def _keep(self, speed: Speed) -> Speed:
        if self.best is None or self._worth(speed) > self._worth(self.best):
            self.best = speed
        return speed

    def _worth(self, speed: Speed) -> tuple[bool, float, float]:
        """Among files that hold the drop the fastest is best, among those that do not the one that drops least."""
        holds = self._holds(speed.trial)
        return holds, 0.0 if holds else -speed.trial.comparison.drop, -speed.ratio


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


def _rewritten(model: Model, rewrites: Sequence[Rewrite], recipe: Recipe, *, data: Data, run: Run) -> Model:
    """The network after every step that gives another one; the given one is not changed."""
    for step in rewrites:
        run.progress.say(f"{step.card.title} ...")
        model = step.rewrite(model, data=data, run=run, pins=tuple(recipe.sites))
    return model


def _check_sites(recipe: Recipe, graph: Graph) -> None:
    names = [site.name for site in graph.sites]
    pinned(Plan(), recipe.sites, names)
    for site in recipe.plan or ():
        refuse_unknown("site", site, names)


def _name(plan: Plan) -> str:
    """What the plan mostly does with activations."""
    quants = [spec for spec in plan.values() if type(spec) is Quant]
    if not quants:
        return "float32"
    dynamic = any(spec.dynamic for spec in quants)
    static = any(spec.activations is not None and not spec.dynamic for spec in quants)
    kind = "int8 dynamic" if dynamic else "int8" if static else "int8 weights"
    return f"{kind}, 7-bit weights" if any(spec.weights == NARROW_BITS for spec in quants) else kind


def _num_outputs(graph: Graph) -> int | None:
    """The width of the first output, None when it is not fixed."""
    (results,) = next(node for node in graph.module.graph.nodes if node.op == "output").args[:1]
    first = results[0] if isinstance(results, tuple | list) else results
    width = first.meta["val"].shape[-1] if "val" in first.meta and first.meta["val"].dim() else None
    return width if isinstance(width, int) else None


def _identity(graph: Graph, data: Data, methods: Sequence[Method | Rewrite], *, target: Target, seed: int) -> dict[str, Any]:
    """All that decides what a run finds: remembered work is used again only where every entry is the same."""
    settings = {"methods": [repr(method) for method in methods], "target": repr(target), "seed": seed}
    return {"versions": versions(), "model": _digest(graph), "data": [data.digest, data.metric], **settings}


def _digest(graph: Graph) -> str:
    """sha256 over the traced code and every weight: the same network gives the same digest."""
    digest = hashlib.sha256(graph.module.code.encode())
    for name, value in sorted(graph.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _work_folder(out: str | Path | None, model: Model, stack: ExitStack) -> Path:
    if out is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighten-")))
    own = model.origin.folder or Path(model.origin.source)
    if own.exists() and own.resolve() == Path(out).resolve():
        raise InputError(f"{out} is the model's own folder.", hint="Choose another --out.")
    weight_bytes = sum(value.numel() * value.element_size() for value in model.module.state_dict().values())
    check_writable(Path(out), _FILES_KEPT * weight_bytes + _FREE_BYTES)
    return make_folder(Path(out) / WORK)
