"""What lighten.ops.groups makes of channels' scores: one ranking, one threshold, a budget."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lighten.ops.groups import (
    AGGREGATES,
    NORMALIZATIONS,
    Limits,
    aggregate,
    fit_budget,
    normalize,
    quantiles,
    rounded_count,
    select_global,
    select_isomorphic,
    select_uniform,
)
from lighten.ops.scores import (
    random,
)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# scores of a group


def test_the_scores_of_a_group_are_aggregated_channel_by_channel() -> None:
    tensors = [torch.tensor([1.0, 4.0, 0.0]), torch.tensor([4.0, 9.0, 5.0])]
    results = {"sum": [5.0, 13.0, 5.0], "mean": [2.5, 6.5, 2.5], "max": [4.0, 9.0, 5.0], "product": [2.0, 6.0, 0.0]}
    for how in AGGREGATES:
        torch.testing.assert_close(aggregate(tensors, how), torch.tensor(results[how]))
    with pytest.raises(ValueError, match="sum, mean, max, product"):
        aggregate(tensors, "median")


def test_the_product_of_many_tiny_scores_does_not_vanish() -> None:
    torch.testing.assert_close(aggregate([torch.tensor([1e-20, 2e-20])] * 8, "product"), torch.tensor([1e-20, 2e-20]))


def test_normalized_scores_have_the_scale_that_was_asked_for() -> None:
    score_C = torch.tensor([1.0, 2.0, 3.0])
    results = {
        "none": [1.0, 2.0, 3.0],
        "mean": [0.5, 1.0, 1.5],
        "max": [1 / 3, 2 / 3, 1.0],
        "sum": [1 / 6, 1 / 3, 1 / 2],
        "standard": [-(1.5**0.5), 0.0, 1.5**0.5],
    }
    for how in NORMALIZATIONS:
        torch.testing.assert_close(normalize(score_C, how), torch.tensor(results[how]))
        assert normalize(torch.zeros(3), how).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="none, mean, max, sum, standard"):
        normalize(score_C, "median")


# selection


@pytest.mark.parametrize(
    ("count", "size", "limits", "expected"),
    [
        (5, 10, Limits(), 5),
        (0, 10, Limits(), 1),
        (2, 10, Limits(min_kept=4), 4),
        (2, 3, Limits(min_kept=8), 3),
        (27, 64, Limits(round_to=8), 24),
        (28, 64, Limits(round_to=8), 32),  # halves go up
        (3, 64, Limits(round_to=8), 8),  # never to nothing
        (16, 64, Limits(min_kept=18, round_to=8), 24),
        (9, 10, Limits(round_to=8), 8),
        (10, 10, Limits(round_to=8), 10),  # nothing to cut, nothing to round
        (5, 7, Limits(round_to=8), 7),
    ],
)
def test_counts_are_rounded_within_their_limits(count: int, size: int, limits: Limits, expected: int) -> None:
    assert rounded_count(count, size, limits) == expected


@pytest.mark.parametrize("limits", [Limits(), Limits(3, 1), Limits(1, 8), Limits(5, 4)])
def test_rounding_never_turns_more_channels_into_fewer(limits: Limits) -> None:
    for size in range(1, 41):
        counts = [rounded_count(count, size, limits) for count in range(size + 1)]
        assert counts == sorted(counts)
        assert min(limits.min_kept, size) <= counts[0]
        assert counts[-1] == size


def kept(selection: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: kept_P.tolist() for name, kept_P in selection.items()}


SCORES = {
    "small": torch.tensor([0.1, 0.4, 0.2, 0.3]),
    "large": torch.tensor([40.0, 10.0, 30.0, 20.0]),
    "other": torch.tensor([5.0, 0.5, 0.6, 0.7]),
}


def test_quantiles_are_places_within_the_class() -> None:
    ranked = quantiles(SCORES, {"small": "a", "large": "b", "other": "a"})
    assert (ranked["small"] * 8).tolist() == [0.5, 3.5, 1.5, 2.5]
    assert (ranked["other"] * 8).tolist() == [7.5, 4.5, 5.5, 6.5]
    assert (ranked["large"] * 4).tolist() == [3.5, 0.5, 2.5, 1.5]
    assert list(ranked) == list(SCORES)


def test_a_global_selection_may_take_everything_from_one_group() -> None:
    selection = kept(select_global(SCORES, 0.5, limits={}))
    # six of twelve channels are lowest: all of `small`, of which one stays, and two of `other`
    assert selection == {"small": [1], "large": [0, 1, 2, 3], "other": [0, 3]}


def test_a_uniform_selection_takes_the_same_share_from_each_group() -> None:
    assert kept(select_uniform(SCORES, 0.5, limits={})) == {"small": [1, 3], "large": [0, 2], "other": [0, 3]}


def test_an_isomorphic_selection_compares_groups_of_one_structure_only() -> None:
    selection = select_isomorphic(SCORES, 0.5, classes={"small": "conv", "large": "linear", "other": "conv"}, limits={})
    assert kept(selection) == {"small": [1], "large": [0, 2], "other": [0, 1, 2, 3]}


def test_a_selection_keeps_its_limits_and_the_best_channels() -> None:
    limits = {"small": Limits(min_kept=3), "large": Limits(round_to=4)}
    selection = kept(select_uniform(SCORES, 0.5, limits=limits))
    assert selection == {"small": [1, 2, 3], "large": [0, 1, 2, 3], "other": [0, 3]}


def test_a_ratio_of_nothing_keeps_everything() -> None:
    assert kept(select_global(SCORES, 0.0, limits={})) == {name: [0, 1, 2, 3] for name in SCORES}


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be"):
        select_uniform(SCORES, ratio, limits={})


def test_scores_that_are_not_numbers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scores of broken"):
        select_global({"broken": torch.tensor([1.0, float("nan")])}, 0.5, limits={})


# the budget


class Chain:
    """MACs of linear layers in a row, each group the output of one and the input of the next. calls: how often asked."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.calls = names, 0

    def __call__(self, kept: dict[str, int]) -> float:
        self.calls += 1
        widths = [3, *(kept[name] for name in self.names), 10]
        return float(sum(a * b for a, b in pairwise(widths)))


def chain_of(sizes: list[int]) -> tuple[dict[str, Tensor], Chain]:
    scores = {f"layer{i}": random(size, torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)}
    return scores, Chain(list(scores))


@pytest.mark.parametrize("budget", [500.0, 2000.0, 5000.0])
@pytest.mark.parametrize("round_to", [1, 4])
def test_the_budget_is_met_by_the_loosest_threshold_that_fits(budget: float, round_to: int) -> None:
    scores, cost = chain_of([32, 64, 48])
    limits = {name: Limits(2, round_to) for name in scores}
    selection = fit_budget(scores, cost, budget, classes=dict.fromkeys(scores, 0), limits=limits)
    # every threshold there is, one after the other
    every = [select_global(scores, cut / 144, limits=limits) for cut in range(144)]
    costs = [cost({name: len(kept_P) for name, kept_P in one.items()}) for one in every]
    assert selection.is_within
    assert selection.cost == max(spent for spent in costs if spent <= budget)
    assert kept(selection.kept) == kept(every[costs.index(selection.cost)])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_budget_is_hit_within_one_channel(share: float) -> None:
    scores, cost = chain_of([128] * 6)
    dense = cost(dict.fromkeys(scores, 128))
    selection = fit_budget(scores, cost, share * dense, classes=dict.fromkeys(scores, 0), limits={})
    # one channel more would cost at most its 128 inputs and 128 outputs
    assert share * dense - 256 < selection.cost <= share * dense


def test_a_budget_that_the_limits_forbid_returns_the_least_there_is() -> None:
    scores, cost = chain_of([32, 64])
    selection = fit_budget(scores, cost, 10.0, classes=dict.fromkeys(scores, 0), limits={"layer1": Limits(16, 8)})
    assert not selection.is_within
    assert selection.cost == 3 * 1 + 1 * 16 + 16 * 10
    assert [len(kept_P) for kept_P in selection.kept.values()] == [1, 16]


def test_a_budget_that_the_whole_network_meets_cuts_nothing() -> None:
    scores, cost = chain_of([32, 64])
    selection = fit_budget(scores, cost, 1e9, classes=dict.fromkeys(scores, 0), limits={})
    assert [len(kept_P) for kept_P in selection.kept.values()] == [32, 64]


def test_groups_that_move_together_are_filled_up_one_by_one() -> None:
    scores, cost = chain_of([64] * 8)
    each = {name: name for name in scores}
    selection = fit_budget(scores, cost, 20_000.0, classes=each, limits={name: Limits(8, 8) for name in scores})
    counts = [len(kept_P) for kept_P in selection.kept.values()]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 2
    # one more group at the larger number would not have fitted
    first = counts.index(min(counts))
    assert cost({name: max(counts) if i <= first else min(counts) for i, name in enumerate(scores)}) > 20_000


@pytest.mark.parametrize("uniform", [True, False])
def test_a_large_network_takes_fewer_than_forty_costs(uniform: bool) -> None:
    scores, cost = chain_of([2048] * 100)
    classes = {name: name if uniform else "all" for name in scores}
    selection = fit_budget(scores, cost, 1.5e8, classes=classes, limits={name: Limits(8, 8) for name in scores})
    assert selection.is_within
    assert cost.calls < 40


def test_a_cost_that_is_not_monotone_still_gives_a_selection_within_the_budget() -> None:
    scores, cost = chain_of([64, 64, 64])

    def bumpy(counts: dict[str, int]) -> float:
        return cost(counts) * (1.3 if counts["layer1"] % 3 else 1.0)

    for budget in range(200, 9000, 400):
        selection = fit_budget(scores, bumpy, budget, classes=dict.fromkeys(scores, 0), limits={})
        assert selection.cost <= budget
        assert selection.cost == bumpy({name: len(kept_P) for name, kept_P in selection.kept.items()})


def test_equal_scores_are_spread_over_the_groups() -> None:
    equal = {"a": torch.ones(64), "b": torch.ones(64)}
    assert {name: len(kept_C) for name, kept_C in select_global(equal, 0.5, limits={}).items()} == {"a": 32, "b": 32}
