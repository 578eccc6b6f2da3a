"""From the scores of channel groups to the channels that stay: aggregate, normalize, rank, and fit a budget.

A group's channels are cut from several tensors at once, each with scores of its own (DepGraph, Fang et al. 2023,
arXiv:2301.12900). What may be compared with what is a matter of classes: groups of one class are ranked together.

* one class for all: a global ranking;
* a class for each group: the same ratio everywhere;
* a class for each structure: isomorphic pruning (Fang et al. 2024, arXiv:2407.04616).

A channel's rank within its class becomes a quantile in (0, 1), and one threshold on quantiles makes the selection.

Dimension key: C channels of a group, T tensors of a group, M channels of a class.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AGGREGATES = ("sum", "mean", "max", "product")
NORMALIZATIONS = ("none", "mean", "max", "sum", "standard")
_LOWEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Limits:
    """What a group's number of kept channels must obey. min_kept: 1 or more. round_to: a multiple, 1 or more."""

    min_kept: int = 1
    round_to: int = 1


@dataclass(frozen=True)
class Selection:
    """kept: each group's kept channels, sorted int64. cost: theirs. is_within: whether that is within the budget; if not,
    this is the least that the limits allow.
    """

    kept: dict[str, Tensor]
    cost: float
    is_within: bool


def aggregate(scores: Sequence[Tensor], how: str = "mean") -> Tensor:
    """One score a channel from those of a group's tensors, shape C each, float32.

    how: "sum", "mean", "max", or "product" (its T-th root, in the scores' own unit: the same order and no overflow).
    Raises ValueError for another word.
    """
    score_TC = torch.stack([score_C.float() for score_C in scores])
    if how == "sum":
        return score_TC.sum(0)
    if how == "mean":
        return score_TC.mean(0)
    if how == "max":
        return score_TC.amax(0)
    if how == "product":
        return score_TC.log().mean(0).exp()
    raise ValueError(f"how must be one of {', '.join(AGGREGATES)}. Got {how!r}.")


def normalize(score_C: Tensor, how: str = "mean") -> Tensor:
    """Scores on a scale that compares between groups, float32; the order within the group stays.

    how: "none"; divided by the "mean", "max" or "sum"; or "standard", (s - mean) / deviation, the only one that gives
    negative numbers. Scores that are all zero stay zero. Raises ValueError for another word.
    """
    score_C = score_C.float()
    if how == "none":
        return score_C
    if how == "standard":
        deviation = score_C.std(correction=0)
        return (score_C - score_C.mean()) / deviation.clamp_min(_LOWEST)
    if how == "mean":
        return score_C / score_C.mean().clamp_min(_LOWEST)
    if how == "max":
        return score_C / score_C.amax().clamp_min(_LOWEST)
    if how == "sum":
        return score_C / score_C.sum().clamp_min(_LOWEST)
    raise ValueError(f"how must be one of {', '.join(NORMALIZATIONS)}. Got {how!r}.")


def rounded_count(count: int, size: int, limits: Limits) -> int:
    """How many of `size` channels stay when `count` would: the nearest multiple of round_to, halves up, that is no fewer than
    min_kept and no more than size. A group of which nothing is to be cut keeps its size, multiple or not.
    """
    if count >= size:
        return size
    nearest = (2 * count + limits.round_to) // (2 * limits.round_to)
    fewest = -(-max(limits.min_kept, 1) // limits.round_to)
    return min(max(nearest, fewest) * limits.round_to, size)


def quantiles(scores: Mapping[str, Tensor], classes: Mapping[str, Hashable]) -> dict[str, Tensor]:
    """Each channel's place among all channels of its class, (place + 1/2) / M, in (0, 1), float64, no two alike in a class.

    classes: by group name; groups of equal value are ranked together. Equal scores are spread evenly over their groups.
    Raises ValueError when a score is not a number.
    """
    members: dict[Hashable, list[str]] = {}
    for name, score_C in scores.items():
        if score_C.isnan().any():
            raise ValueError(f"The scores of {name} are not all numbers.")
        members.setdefault(classes[name], []).append(name)
    ranked: dict[str, Tensor] = {}
    for names in members.values():
        score_M = torch.cat([scores[name] for name in names])
        # equal scores are spread over their groups by each group's own order: a tie must not empty the first group
        alone_M = torch.cat([_quantile(scores[name]) for name in names])
        by_own_M = alone_M.argsort(stable=True)
        quantile_M = torch.empty_like(alone_M)
        quantile_M[by_own_M] = _quantile(score_M[by_own_M])
        ranked.update(zip(names, torch.split(quantile_M, [len(scores[name]) for name in names]), strict=True))
    return {name: ranked[name] for name in scores}


def _quantile(score_M: Tensor) -> Tensor:
    place_M = score_M.argsort(stable=True).argsort().cpu()
    return (place_M.double() + 0.5) / len(place_M)


def select_global(scores: Mapping[str, Tensor], ratio: float, *, limits: Mapping[str, Limits]) -> dict[str, Tensor]:
    """Kept channels, sorted int64, when the `ratio` of all channels with the lowest scores goes, wherever they are.

    ratio: in [0, 1); limits and rounding may make it less or more. limits: a group without any keeps one channel at least.
    Raises ValueError for another ratio. Scores must compare between groups (`normalize`).
    """
    return select_isomorphic(scores, ratio, classes=dict.fromkeys(scores, "all"), limits=limits)


def select_uniform(scores: Mapping[str, Tensor], ratio: float, *, limits: Mapping[str, Limits]) -> dict[str, Tensor]:
    """As `select_global`, but the `ratio` goes from each group: nothing is compared between groups."""
    return select_isomorphic(scores, ratio, classes={name: name for name in scores}, limits=limits)


def select_isomorphic(
    scores: Mapping[str, Tensor], ratio: float, *, classes: Mapping[str, Hashable], limits: Mapping[str, Limits]
) -> dict[str, Tensor]:
    """As `select_global`, but the `ratio` goes from each class of groups of one structure (arXiv:2407.04616)."""
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be at least 0 and less than 1. Got {ratio}.")
    ranked = quantiles(scores, classes)
    return _best(ranked, _counts(ranked, ratio, limits))


def fit_budget(
    scores: Mapping[str, Tensor],
    cost: Callable[[dict[str, int]], float],
    budget: float,
    *,
    classes: Mapping[str, Hashable],
    limits: Mapping[str, Limits],
) -> Selection:
    """The selection on the threshold's path whose cost is nearest to the budget without exceeding it.

    cost: of the number of kept channels by group; must not fall when a number rises (MACs, bytes, parameters). If it does,
    the result is still within the budget, only perhaps not nearest. classes, limits: as for `select_isomorphic`.
    Where one step of the threshold moves several groups, as many as fit stay at the larger number, the first ones first.
    Calls cost log2(channels) + log2(groups) + 4 times at most: below 40 for a million channels in a thousand groups.
    """
    ranked = quantiles(scores, classes)
    thresholds = [*sorted(set(torch.cat([*ranked.values()]).tolist())), 1.0]
    counts = _counts(ranked, thresholds[-1], limits)
    least = cost(counts)
    if least > budget:
        return Selection(_best(ranked, counts), least, False)
    last = len(thresholds) - 1
    step = bisect_left(range(last), True, key=lambda at: cost(_counts(ranked, thresholds[at], limits)) <= budget)
    counts = _counts(ranked, thresholds[step], limits)
    if step:
        counts = _refill(counts, _counts(ranked, thresholds[step - 1], limits), lambda filled: cost(filled) <= budget)
    return Selection(_best(ranked, counts), cost(counts), True)


def _refill(counts: dict[str, int], larger: dict[str, int], fits: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """`counts` with as many groups as fit, in order, at their larger number; all of them together are known not to fit."""
    moved = [name for name in counts if larger[name] > counts[name]]

    def filled(num: int) -> dict[str, int]:
        return counts | {name: larger[name] for name in moved[:num]}

    # the first number that does not fit, from 1 on; the last one need not be tried
    return filled(bisect_left(range(1, len(moved)), True, key=lambda num: not fits(filled(num))))


def _counts(ranked: Mapping[str, Tensor], threshold: float, limits: Mapping[str, Limits]) -> dict[str, int]:
    """How many channels of each group reach the threshold, after limits and rounding."""
    return {
        name: rounded_count(int((rank_C >= threshold).sum()), len(rank_C), limits.get(name, Limits()))
        for name, rank_C in ranked.items()
    }


def _best(ranked: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    return {name: rank_C.topk(counts[name]).indices.sort().values for name, rank_C in ranked.items()}
