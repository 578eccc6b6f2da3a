"""Which channels stay within a budget: the terms of a cut, and the selection that keeps them."""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lighten.core.errors import InputError
from lighten.methods.prune.amount import Amount
from lighten.ops.groups import Limits, Selection, fit_budget, rounded_count, select_isomorphic

Counts = dict[str, int]
RANKINGS = ("isomorphic", "global", "uniform")


@dataclass(frozen=True)
class Terms:
    """budget: of the cost that stays, in its unit; without a cost the number of channels. round_to: kept counts are multiples
    of it. whole: groups that are not cut.
    """

    budget: float
    round_to: int
    whole: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {"budget": self.budget, "round_to": self.round_to, "whole": list(self.whole)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Terms":
        """The inverse of `to_dict`."""
        return cls(fields["budget"], fields["round_to"], tuple(fields["whole"]))


@dataclass(frozen=True)
class Choice:
    """What may be cut from a network, and what it is worth.

    scores: by group, larger is more important. structures: equal for groups whose tensors are alike. ranking: one of RANKINGS.
    fewest: channels of each group that stay in any case. cost: of given counts; None counts channels.
    """

    scores: Mapping[str, Tensor]
    structures: Mapping[str, Hashable]
    ranking: str
    fewest: Mapping[str, int]
    cost: Amount | None = None

    @property
    def total(self) -> float:
        """The cost of the network as it is."""
        return self.cost.total if self.cost is not None else float(sum(len(score_C) for score_C in self.scores.values()))

    @property
    def classes(self) -> Mapping[str, Hashable]:
        """Groups of equal value are ranked together."""
        if self.ranking == "isomorphic":
            return self.structures
        return {name: name if self.ranking == "uniform" else "" for name in self.scores}

    def least(self, terms: Terms) -> float:
        """The smallest cost that the limits allow."""
        limits = self._limits(terms)
        counts = {name: rounded_count(0, len(self.scores[name]), limit) for name, limit in limits.items()}
        return self.cost(counts) if self.cost is not None else float(sum(counts.values()) + self._whole(terms))

    def select(self, terms: Terms) -> Selection:
        """The kept channels of every group that is not whole, and their cost; the least there is where the budget is below."""
        limits = self._limits(terms)
        scores = {name: self.scores[name] for name in limits}
        if not scores:
            return Selection({}, self.total, self.total <= terms.budget)
        if self.cost is not None:
            return fit_budget(scores, self.cost, terms.budget, classes=self.classes, limits=limits)
        size = sum(map(len, scores.values()))
        stays = min(max((terms.budget - self._whole(terms)) / size, 1 / (2 * size)), 1.0)
        kept = select_isomorphic(scores, 1 - stays, classes=self.classes, limits=limits)
        return Selection(kept, float(sum(map(len, kept.values())) + self._whole(terms)), self.least(terms) <= terms.budget)

    def require(self, terms: Terms, *, name: str, asked: float) -> None:
        """Raises InputError, naming the least there is, when the limits forbid the budget. name, asked: as the user put it."""
        least, hint = self.least(terms) / self.total, "Lower `least` or `round_to`, or cut more kinds of units."
        # a cost may be a sum of many terms in another order
        if least * self.total <= terms.budget * (1 + 1e-9):
            return
        if self.cost is None:
            raise InputError(
                f"prune: {name} {asked:g} cannot be reached; at most {1 - least:.3f} of the channels can go.", hint=hint
            )
        raise InputError(f"prune: {name} {asked:g} cannot be reached; the least is {least:.3f}.", hint=hint)

    def _limits(self, terms: Terms) -> dict[str, Limits]:
        return {name: Limits(self.fewest[name], terms.round_to) for name in self.scores if name not in terms.whole}

    def _whole(self, terms: Terms) -> int:
        return sum(len(self.scores[name]) for name in terms.whole if name in self.scores)


def widths(kept: Mapping[str, Tensor]) -> Counts:
    """Channels that stay, by group."""
    return {name: len(kept_C) for name, kept_C in kept.items()}


def restored(kept: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Without the cuts of these groups."""
    return {name: kept_C for name, kept_C in kept.items() if name not in names}
