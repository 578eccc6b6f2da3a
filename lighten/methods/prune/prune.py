"""Structured pruning: channels, attention heads and neurons that are really gone."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.trace import tensor_of, traced
from lighten.core.channels import ChannelGroup
from lighten.core.data import Batch, Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.methods.prune.amount import Amount, amount
from lighten.methods.prune.repair import Kept, repair
from lighten.methods.prune.score import FROM_GRADIENTS, SCORES, score_groups
from lighten.ops.groups import NORMALIZATIONS, Limits, Selection, fit_budget, normalize, select_isomorphic

UNITS = ("all", "channel", "head", "neuron")
RANKINGS = ("isomorphic", "global", "uniform")
_BATCH = 16
_REPAIR_VALUES = 500_000_000  # values of a widest activation of the repair's one batch, at most: 2 GB
_WIDENING = 64  # an activation holds at most about as many times the input's values
_DAMP = 0.01


@dataclass(frozen=True)
class Prune:
    """Cuts the least important channels and repairs what is left, without training.

    macs, params: the fraction that stays, in (0, 1). ratio: the fraction of channels that goes, in (0, 1). One of the three.
    score: how channels are ranked (methods.prune.score.SCORES). unit: "channel", "head" (attention heads), "neuron"
    (feed-forward), or "all". ranking: channels are compared "global"ly, within groups of equal structure ("isomorphic", Fang et
    al. 2024, arXiv:2407.04616), or the same share goes from every group ("uniform"). normalize: of scores between groups.
    round_to: kept counts are multiples of it where the group has more; runtimes compute in blocks of 8 or 16 channels, and a
    cut between two multiples is often slower than none. least: fraction of a group that always stays, in [0, 1).
    repair: least-squares update of the layers behind a cut, and new batch-norm statistics. samples: calibration examples.
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None
    score: str = "magnitude"
    unit: str = "all"
    ranking: str = "global"
    normalize: str = "mean"
    round_to: int = 8
    least: float = 0.1
    repair: bool = True
    samples: int = 256

    card: ClassVar[Card] = Card(
        name="prune",
        title="Structured pruning of channel groups, with least-squares repair",
        paper="Fang et al. 2023, arXiv:2301.12900; He et al. 2017, arXiv:1707.06168",
        needs_data=True,
        rewrites=True,
    )

    def __post_init__(self) -> None:
        given = {name: value for name in ("macs", "params", "ratio") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InputError(f"prune takes one of macs, params and ratio. Got {', '.join(given) or 'none'}.")
        for name, value in given.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
                raise InputError(f"prune: {name} must be in (0, 1). Got {value!r}.")
        for name, known in (("score", SCORES), ("unit", UNITS), ("ranking", RANKINGS), ("normalize", NORMALIZATIONS)):
            refuse_unknown(name, str(getattr(self, name)), known)
        for name in ("round_to", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"prune: {name} must be an integer >= 1. Got {value!r}.")
        if not isinstance(self.least, int | float) or not 0 <= self.least < 1:
            raise InputError(f"prune: least must be in [0, 1). Got {self.least!r}.")

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The smaller network. pins: names or patterns of weights' owners whose groups stay whole.

        Raises UnfitError when nothing can be cut, InputError when the limits forbid the budget (saying the least reachable).
        """
        intact = traced(model)
        coupling = couple(intact)
        groups = [group for group in coupling.groups if self._takes(group, pins)]
        if not groups:
            reasons = "; ".join(f"{fixed.tensor} {fixed.reason}" for fixed in coupling.fixed[:3])
            raise UnfitError(f"{model.origin.source} has no {self.unit} group that can be cut.", hint=f"{reasons}.")
        scores = self._scores(intact, groups, data=data, run=run)
        kept = self._select(intact, model, groups, scores)
        smaller = cut(intact, coupling, kept)
        if self.repair:
            examples = _one_batch(data, self.samples)
            repair(intact, smaller, _kept(intact, groups, kept), inputs=examples.inputs, damp=_DAMP, seed=run.seed)
        widths = {group.name: [group.size, len(kept[group.name])] for group in groups}
        run.ledger.note("prune", score=self.score, widths=widths)
        return replace(model, module=smaller)

    def _takes(self, group: ChannelGroup, pins: Sequence[str]) -> bool:
        owners = {part.tensor.rpartition(".")[0] for part in group.slices}
        pinned = any(fnmatch.fnmatch(owner, pattern) for owner in owners for pattern in pins)
        return self.unit in ("all", group.kind) and not pinned

    def _scores(self, module: fx.GraphModule, groups: list[ChannelGroup], *, data: Data, run: Run) -> dict[str, Tensor]:
        batches: list[Batch] = []
        if self.score in FROM_GRADIENTS:
            batches = list(data.calibration.batches(_BATCH, self.samples))
            if batches[0].target is None and data.task != "language-model":
                raise InputError(f"score {self.score!r} needs targets in the data.", hint="Try score: magnitude.")
        tracked = run.progress.track(batches, what="scoring channels", total=len(batches))
        scores = score_groups(module, groups, score=self.score, loss=loss_for(data.task), batches=tracked, seed=run.seed)
        return {name: normalize(score_C, self.normalize) for name, score_C in scores.items()}

    def _select(
        self, module: fx.GraphModule, model: Model, groups: list[ChannelGroup], scores: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        limits = {group.name: Limits(max(1, math.ceil(self.least * group.size)), self.round_to) for group in groups}
        classes = {group.name: self._class(module, group) for group in groups}
        if self.ratio is not None:
            return select_isomorphic(scores, self.ratio, classes=classes, limits=limits)
        measure = "macs" if self.macs is not None else "params"
        share = self.macs if self.macs is not None else self.params or 0.0
        cost = amount(module, model.example, groups, measure=measure)
        chosen = fit_budget(scores, cost, share * cost.total, classes=classes, limits=limits)
        _refuse_unreachable(chosen, cost, share, measure)
        return chosen.kept

    def _class(self, module: fx.GraphModule, group: ChannelGroup) -> Any:
        if self.ranking == "global":
            return ""
        if self.ranking == "uniform":
            return group.name
        return (group.kind, *sorted((part.role, part.dim, tensor_of(module, part.tensor).dim()) for part in group.slices))


def _refuse_unreachable(chosen: Selection, cost: Amount, share: float, measure: str) -> None:
    if not chosen.is_within:
        raise InputError(
            f"prune: {measure} {share:g} cannot be reached; the least is {chosen.cost / cost.total:.3f}.",
            hint="Lower `least` or `round_to`, or cut more kinds of units.",
        )


def _one_batch(data: Data, samples: int) -> Batch:
    """Calibration examples in one batch, as many as memory allows."""
    first = next(iter(data.calibration.batches(1, 1)))
    each = max(sum(value.numel() for value in first.inputs), 1)
    size = max(1, min(samples, _REPAIR_VALUES // (_WIDENING * each), len(data.calibration)))
    return next(iter(data.calibration.batches(size, size)))


def _kept(module: fx.GraphModule, groups: Sequence[ChannelGroup], kept: dict[str, Tensor]) -> dict[str, Kept]:
    """By weight: the outputs that stay, and whether inputs went."""
    gone: dict[str, list[Tensor]] = {}
    lost: dict[str, bool] = {}
    for group in groups:
        cut_C = torch.ones(group.size, dtype=torch.bool).index_fill(0, kept[group.name], False)
        for part in group.slices if cut_C.any() else ():
            if part.dim == 0:
                gone.setdefault(part.tensor, []).append(part.positions(group.size)[cut_C].flatten())
            lost[part.tensor] = lost.get(part.tensor, False) or part.dim == 1
    found = {}
    for tensor, lost_inputs in lost.items():
        stays_O = torch.ones(tensor_of(module, tensor).shape[0], dtype=torch.bool)
        for positions in gone.get(tensor, ()):
            stays_O[positions] = False
        found[tensor] = Kept(stays_O.nonzero()[:, 0] if tensor in gone else None, lost_inputs)
    return found
