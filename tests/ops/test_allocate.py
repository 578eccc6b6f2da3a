"""The exact choice of widths under a budget. Dimension key: L layers, N options."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from lighten.ops.allocate import allocate


def random_problem(num_layers: int, num_options: int, seed: int) -> tuple[list[list[float]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(num_layers, num_options, generator=generator, dtype=torch.float64)
    costs = torch.randint(1, 100, (num_layers, num_options), generator=generator)
    return losses.tolist(), costs.tolist()


def widths_problem(num_layers: int, seed: int = 0) -> tuple[list[list[float]], list[list[int]]]:
    """Layers of 2^8 to 2^14 weights at 2, 3, 4, 6 and 8 bits; the loss falls fourfold with every bit."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2**8, 2**14, (num_layers,), generator=generator).tolist()
    sensitivities = torch.randn(num_layers, generator=generator, dtype=torch.float64).exp().tolist()
    bits = (2, 3, 4, 6, 8)
    return [[s * 4.0**-b for b in bits] for s in sensitivities], [[n * b // 8 for b in bits] for n in sizes]


def sums(losses: list[list[float]], costs: list[list[int]], choice: tuple[int, ...]) -> tuple[float, int]:
    return (
        sum(options[at] for options, at in zip(losses, choice, strict=True)),
        sum(options[at] for options, at in zip(costs, choice, strict=True)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_best_of_all_choices(seed: int) -> None:
    losses, costs = random_problem(5, 4, seed)
    for share in (0.2, 0.4, 0.6, 0.9):
        least, most = sum(map(min, costs)), sum(map(max, costs))
        budget = round(least + share * (most - least))
        every = [sums(losses, costs, choice) for choice in product(range(4), repeat=5)]
        best = min(loss for loss, cost in every if cost <= budget)
        found = allocate(losses, costs, budget)
        assert (found.loss, found.cost) == pytest.approx(sums(losses, costs, found.choice))
        assert found.loss == pytest.approx(best, rel=1e-9)
        assert found.is_within
        assert found.cost <= budget
        # the bound is the dual's: never above the best, and below it by one layer's spread at most
        assert found.bound <= best + 1e-9
        assert best - found.bound <= max(max(options) - min(options) for options in losses)


@pytest.mark.parametrize("seed", range(3))
def test_equals_an_integer_program_on_fifty_layers(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    losses, costs = widths_problem(50, seed)
    budget = sum(options[2] for options in costs)
    loss, cost = np.array(losses).ravel(), np.array(costs).ravel()
    one_each = np.kron(np.eye(50), np.ones(5))
    solution = optimize.milp(
        loss / loss.max(),
        integrality=np.ones_like(loss),
        bounds=optimize.Bounds(0, 1),
        constraints=[optimize.LinearConstraint(one_each, 1, 1), optimize.LinearConstraint(cost, -np.inf, budget)],
        options={"mip_rel_gap": 0.0},
    )
    found = allocate(losses, costs, budget)
    # HiGHS takes 0.999999 for 1: its own tolerance is 1e-6
    assert found.loss == pytest.approx(solution.fun * loss.max(), rel=1e-5)
    assert found.cost <= budget


def test_a_mean_of_four_bits_loses_less_than_four_bits_everywhere() -> None:
    losses, costs = widths_problem(50)
    found = allocate(losses, costs, sum(options[2] for options in costs))
    assert found.loss < 0.8 * sum(options[2] for options in losses)


def test_the_price_tells_what_a_little_more_budget_saves() -> None:
    losses, costs = widths_problem(200)
    budget = sum(options[2] for options in costs)
    first, second = allocate(losses, costs, budget), allocate(losses, costs, budget + budget // 20)
    # the dual is concave in the budget: what is saved is no more than the first price says, no less than the second's
    gap = (first.loss - first.bound) + (second.loss - second.bound)
    saved = first.loss - second.loss
    assert second.price * (budget // 20) - gap <= saved <= first.price * (budget // 20) + gap


def test_a_large_budget_takes_the_best_of_every_layer_and_has_no_price() -> None:
    losses, costs = random_problem(6, 4, 0)
    found = allocate(losses, costs, 10**9)
    assert found.choice == tuple(options.index(min(options)) for options in losses)
    assert found.price == 0.0
    assert found.bound == pytest.approx(found.loss)


def test_a_budget_of_exactly_the_cheapest_choice_is_met() -> None:
    losses, costs = random_problem(6, 4, 1)
    found = allocate(losses, costs, sum(map(min, costs)))
    assert found.is_within
    assert found.cost == sum(map(min, costs))


def test_a_budget_that_nothing_fits_gets_the_cheapest_choice_and_says_so() -> None:
    losses, costs = random_problem(6, 4, 2)
    found = allocate(losses, costs, sum(map(min, costs)) - 1)
    assert not found.is_within
    assert found.cost == sum(map(min, costs))
    assert math.isinf(found.bound)


def test_of_options_that_cost_the_same_a_tight_budget_takes_the_better() -> None:
    assert allocate([[3.0, 1.0, 2.0]], [[5, 5, 5]], 4).choice == (1,)
    assert allocate([[3.0, 1.0, 2.0]], [[5, 5, 5]], 5).choice == (1,)


def test_layers_may_have_different_options_and_losses_below_zero() -> None:
    found = allocate([[0.0], [0.5, -0.5, 2.0], [1.0, 0.2]], [[7], [1, 3, 0], [2, 4]], 12)
    assert found.choice == (0, 1, 0)  # 7 + 3 + 2; the second 4 would be 14
    assert found.loss == pytest.approx(0.5)


def test_large_costs_and_tiny_losses_are_exact() -> None:
    losses, costs = random_problem(8, 3, 3)
    small = [[loss * 1e-12 for loss in options] for options in losses]
    large = [[cost * 10**10 for cost in options] for options in costs]
    budget = round(1.5 * sum(map(min, costs)))
    assert allocate(small, large, budget * 10**10).choice == allocate(losses, costs, budget).choice


@pytest.mark.parametrize(
    ("losses", "costs", "message"),
    [
        ([], [], "there must be a layer"),
        ([[1.0]], [[1, 2]], "as many losses as costs"),
        ([[1.0], []], [[1], []], "as many losses as costs"),
        ([[float("nan")]], [[1]], "finite"),
        ([[float("inf")]], [[1]], "finite"),
    ],
)
def test_what_does_not_match_is_refused(losses: list[list[float]], costs: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(losses, costs, 10)


def test_two_hundred_layers_of_eight_options_are_chosen_exactly() -> None:
    losses, costs = random_problem(200, 8, 4)
    budget = round(1.7 * sum(map(min, costs)))
    found = allocate(losses, costs, budget)
    assert found.cost <= budget
    # with many layers the dual is nearly tight: the gap is at most one layer's spread, here far less
    assert 0 <= found.loss - found.bound + 1e-9 < 0.05
