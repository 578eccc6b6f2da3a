"""Structured pruning of depth: whole residual blocks and layers that are really gone.

A block is scored by how much worse the network is without it (Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834), anew after
each removal, for blocks can stand in for each other; or once, by how little it turns what passes through it (Men et al. 2024,
ShortGPT, arXiv:2403.03853).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.blocks import Block, blocks, drop, without
from lighten.analyze.cost import total
from lighten.analyze.coupling import couple
from lighten.analyze.cut import kept_positions
from lighten.core.data import Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.losses import first_output
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.repair import NORMS, refresh_norms, repair
from lighten.methods.prune.score import Evidence
from lighten.ops.depth import block_influence, divergence, relative_error

UNITS = ("block", "layer")
SCORES = ("removal", "similarity")
MEASURES = ("macs", "params", "bytes", "ratio")
_WITH_CLASSES = ("classification", "language-model", "speech-recognition")
_BATCH = 16
_ROUNDING = 1e-9  # of budgets, which are products of fractions


@dataclass(frozen=True)
class Depth:
    """What is asked. unit: one of UNITS. measure: "macs", "params" or "bytes", of which `share` stays; or "ratio", the share of
    blocks that goes. share: in (0, 1). score: one of SCORES. least: fraction of the blocks that stays, in [0, 1).
    samples: calibration examples. repair: refit the layers behind a removed block, and batch-norm means; "norms" only takes
    the statistics anew.
    """

    unit: str
    measure: str
    share: float
    score: str = "removal"
    least: float = 0.1
    samples: int = 256
    repair: bool | str = True


def check_depth(asked: Depth, model: Model, graph: fx.GraphModule, *, pins: Sequence[str] = ()) -> None:
    """Raises UnfitError where nothing can be removed, InputError where not so much (saying the least reachable)."""
    _Budget.of(asked, model, graph, pins=pins).require()


def drop_blocks(
    asked: Depth, model: Model, graph: fx.GraphModule, *, data: Data, run: Run, pins: Sequence[str] = ()
) -> fx.GraphModule:
    """The network without its least important blocks. graph: the traced model, on tensors of its own; it is not changed.

    pins: names of blocks or of weights' owners, paths above them, or patterns; what holds one of them stays. The ledger's entry
    "prune" says which blocks went, `widths` by name: [1, 0], those that stayed [1, 1].
    Raises as `check_depth`.
    """
    budget = _Budget.of(asked, model, graph, pins=pins)
    budget.require()
    scorer = _SCORERS[asked.score](graph, budget.candidates, Evidence(data, asked.samples, run))
    gone, scores = _choose(budget, scorer)
    smaller = drop(graph, gone)
    if asked.repair == NORMS:
        refresh_norms(smaller, data, samples=asked.samples, run=run)
    elif asked.repair:
        inputs = one_batch(data, asked.samples).inputs
        stays = partial(kept_positions, couple(graph), {})
        repair(graph, smaller, stays, inputs=inputs, seed=run.seed, sparse=model.sparse)
    widths = {block.name: [1, int(block not in gone)] for block in budget.candidates}
    run.ledger.note("prune", score=asked.score, widths=widths, scores=scores)
    return smaller


@dataclass(frozen=True)
class _Budget:
    """costs: what removing a candidate saves, by name. limit: what may stay of `whole`. most: how many blocks may go."""

    asked: Depth
    candidates: tuple[Block, ...]
    costs: Mapping[str, float]
    whole: float
    limit: float
    most: int

    @classmethod
    def of(cls, asked: Depth, model: Model, graph: fx.GraphModule, *, pins: Sequence[str]) -> "_Budget":
        """Raises UnfitError where there is no candidate."""
        found = [block for block in blocks(graph, model.example) if block.kind == asked.unit]
        if not found:
            raise _nothing(model, asked.unit)
        costs = {block.name: _saving(block, asked.measure) for block in found}
        candidates = tuple(block for block in found if costs[block.name] and not _is_pinned(block, pins))
        if not candidates:
            raise UnfitError(f"{model.origin.source}: every {asked.unit} that could be removed is pinned.", hint="Pin less.")
        most = len(candidates) - math.ceil(asked.least * len(candidates) - _ROUNDING)
        if asked.measure == "ratio":
            wanted = max(1, round(asked.share * len(candidates)))
            return cls(asked, candidates, costs, len(candidates), len(candidates) - wanted, most)
        whole = _whole(asked.measure, model, graph)
        return cls(asked, candidates, costs, whole, asked.share * whole * (1 + _ROUNDING), most)

    def is_kept(self, gone: Sequence[Block]) -> bool:
        """Whether what stays is within the limit."""
        return self.whole - sum(self.costs[block.name] for block in gone) <= self.limit

    def least(self, gone: Sequence[Block]) -> float:
        """What would stay if the costliest went with those that are gone, as many as may."""
        others = sorted((self.costs[block.name] for block in self.candidates if block not in gone), reverse=True)
        taken = sum(self.costs[block.name] for block in gone) + sum(others[: self.most - len(gone)])
        return self.whole - taken

    def require(self) -> None:
        """Raises InputError where the limit cannot be reached."""
        least = self.least(())
        if least <= self.limit:
            return
        stays = (
            f"{self.most / self.whole:.3f}, the most"
            if self.asked.measure == "ratio"
            else f"{least / self.whole:.3f}, the least"
        )
        raise InputError(
            f"prune: {self.asked.measure} {self.asked.share:g} cannot be reached by removing {self.asked.unit}s; {stays} there "
            f"is when {self.most} of {len(self.candidates)} go.",
            hint="Lower `least`, or cut channels.",
        )


def _saving(block: Block, measure: str) -> float:
    return float({"macs": block.macs, "params": block.params, "bytes": block.weight_bytes, "ratio": 1}[measure])


def _whole(measure: str, model: Model, graph: fx.GraphModule) -> float:
    if measure == "macs":
        return float(total(graph, model.example).macs)
    if measure == "params":
        return float(sum(value.numel() for value in graph.parameters()))
    return float(sum(value.numel() * value.element_size() for value in (*graph.parameters(), *graph.buffers())))


def _is_pinned(block: Block, pins: Sequence[str]) -> bool:
    names = {block.name, *(tensor.rpartition(".")[0] or tensor for tensor in block.tensors)}
    return any(fnmatchcase(name, pin) or name.startswith(f"{pin}.") for name in names for pin in pins)


def _nothing(model: Model, unit: str) -> UnfitError:
    """A layer needs a repeated module around its branches; a block does not."""
    if unit == "layer":
        return UnfitError(
            f"{model.origin.source} has no layer that can be removed: no repeated module whose input has the shape of its "
            "output and is added to it.",
            hint="Try unit: block, or channel.",
        )
    return UnfitError(
        f"{model.origin.source} has no block that can be removed: no sum x + f(x) in which x has the shape of the sum and "
        "nothing else reads from f.",
        hint="Try unit: channel.",
    )


def _choose(budget: _Budget, scorer: "_Removal | _Similarity") -> tuple[list[Block], dict[str, float]]:
    """The least important goes first, as long as those that are left can still reach the limit; with its score at that moment.

    Where a costly block came last, cheap ones before it may have gone for nothing: they come back, the most important first.
    """
    gone: list[Block] = []
    scores: dict[str, float] = {}
    while not budget.is_kept(gone):
        left = [block for block in budget.candidates if block not in gone]
        fit = [block for block in left if budget.least([*gone, block]) <= budget.limit]
        found = scorer(gone, fit)
        chosen = min(fit, key=lambda block: found[block.name])
        gone.append(chosen)
        scores[chosen.name] = found[chosen.name]
    for block in sorted(gone, key=lambda block: -scores[block.name]):
        others = [other for other in gone if other is not block]
        if budget.is_kept(others):
            gone = others
    return gone, {block.name: scores[block.name] for block in gone}


class _Removal:
    """The loss without a block. Where the data has no targets, and for sentence encoders, which may be scored by a probe: how
    far the outputs are from those of the intact network.
    """

    @torch.no_grad()
    def __init__(self, graph: fx.GraphModule, candidates: Sequence[Block], evidence: Evidence) -> None:
        data = evidence.data
        self._graph, self._run = graph, evidence.run
        self._batches = list(data.calibration.batches(_BATCH, evidence.samples))
        has_targets = data.task == "language-model" or self._batches[0].target is not None
        self._loss = evidence.loss if has_targets and data.task != "sentence-similarity" else None
        self._distance = divergence if data.task.endswith(_WITH_CLASSES) else relative_error
        intact = without(graph, ())
        self._intact = [] if self._loss else [first_output(intact, batch) for batch in self._batches]
        self._before = self._mean(intact)

    def __call__(self, gone: Sequence[Block], candidates: Sequence[Block]) -> dict[str, float]:
        """The rise since the intact network, by name of the candidate that goes as well."""
        tracked = self._run.progress.track(candidates, what="scoring blocks", total=len(candidates))
        return {block.name: self._mean(without(self._graph, (*gone, block))) - self._before for block in tracked}

    @torch.no_grad()
    def _mean(self, module: fx.GraphModule) -> float:
        """Over the examples."""
        if self._loss:
            found = [float(self._loss(module, batch)) for batch in self._batches]
        else:
            pairs = zip(self._intact, self._batches, strict=True)
            found = [self._distance(output, first_output(module, batch)) for output, batch in pairs]
        sizes = [len(batch.index) for batch in self._batches]
        return sum(value * size for value, size in zip(found, sizes, strict=True)) / sum(sizes)


class _Similarity:
    """The block influence, in the intact network."""

    @torch.no_grad()
    def __init__(self, graph: fx.GraphModule, candidates: Sequence[Block], evidence: Evidence) -> None:
        streams, seen = _Streams(without(graph, ()), candidates), 0
        self._scores = dict.fromkeys((block.name for block in candidates), 0.0)
        for batch in evidence.batches("similarity"):
            streams.run(*batch.inputs)
            seen += len(batch.index)
            for name, found in streams.influences.items():
                self._scores[name] += (found - self._scores[name]) * len(batch.index) / seen

    def __call__(self, gone: Sequence[Block], candidates: Sequence[Block]) -> dict[str, float]:
        """By name; the same whatever is gone."""
        return self._scores


class _Streams(fx.Interpreter):
    """Compares the residual stream at both ends of each block while the network runs."""

    def __init__(self, module: fx.GraphModule, candidates: Sequence[Block]) -> None:
        super().__init__(module)
        self._starts = {block.start for block in candidates}
        self._ending = {block.end: block for block in candidates}
        self._entered: dict[str, Tensor] = {}
        self.influences: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if block := self._ending.get(n.name):
            self.influences[block.name] = block_influence(self._entered[block.start], value, block.dim)
        if n.name in self._starts:
            self._entered[n.name] = value.clone()  # a sum in place would change it
        return value


_SCORERS: dict[str, type[_Removal] | type[_Similarity]] = {"removal": _Removal, "similarity": _Similarity}
