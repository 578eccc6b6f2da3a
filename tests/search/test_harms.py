"""Exact choices of widths by bits, operations and time, against every choice there is."""

from itertools import product

import pytest
import torch

import lighten
from lighten.core.run import Run
from lighten.search.harms import Harms, within_bit_operations, within_seconds
from lighten.search.rivals import best_of_rivals

WIDTHS = (8, 4, 2)


def random_harms(num_layers: int, num_options: int, seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_layers, num_options, generator=generator, dtype=torch.float64).tolist()


def harms(seed: int = 0, num_layers: int = 5) -> Harms:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(10, 1000, (num_layers,), generator=generator).tolist()
    names = [f"layer {number}" for number in range(num_layers)]
    alone = dict(zip(names, random_harms(num_layers, 3, seed), strict=True))
    return Harms(dict(zip(names, weights, strict=True)), WIDTHS, alone)


def every_plan(of: Harms, room_bits: int) -> list[tuple[float, dict[str, int]]]:
    """All plans within the room, the least harm first."""
    found = []
    for choice in product(range(3), repeat=len(of.weights)):
        widths = {site: WIDTHS[option] for site, option in zip(of.weights, choice, strict=True)}
        harm = sum(of.alone[site][option] for site, option in zip(of.weights, choice, strict=True))
        if sum(of.weights[site] * bits for site, bits in widths.items()) <= room_bits:
            found.append((harm, widths))
    return sorted(found, key=lambda one: one[0])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mean", [2.5, 4, 6])
def test_widths_within_a_room_are_the_best_of_all(seed: int, mean: float) -> None:
    of = harms(seed)
    room = int(mean * sum(of.weights.values()))
    widths, found = of.within(room)
    best_harm, best_widths = every_plan(of, room)[0]
    assert found.loss == pytest.approx(best_harm, rel=1e-9)
    assert widths == best_widths
    assert of.mean_bits(widths) <= mean


@pytest.mark.parametrize("seed", range(10))
def test_the_first_rival_is_the_second_best_plan_of_all(seed: int) -> None:
    of = harms(seed)
    room = int(4 * sum(of.weights.values()))
    (_, best), (_, second), *_ = every_plan(of, room)
    rivals = of.rivals(best, room)
    assert rivals[0] == second
    assert all(rival != best for rival in rivals)


@pytest.mark.parametrize("seed", range(20))
def test_bit_operations_equal_the_best_of_all_choices(seed: int) -> None:
    options = [(8, 8), (4, 8), (4, 4), (2, 8)]
    losses = random_harms(4, len(options), seed)
    macs = torch.randint(1, 1000, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    budget = 24 * sum(macs)
    every = [
        (sum(losses[layer][at] for layer, at in enumerate(choice)), choice)
        for choice in product(range(4), repeat=4)
        if sum(macs[layer] * options[at][0] * options[at][1] for layer, at in enumerate(choice)) <= budget
    ]
    found = within_bit_operations(losses, macs, options, budget=budget)
    assert found.choice == min(every)[1]
    assert found.cost == sum(macs[layer] * options[at][0] * options[at][1] for layer, at in enumerate(found.choice))
    assert found.is_within


def test_bit_operations_below_all_choices_give_the_cheapest() -> None:
    found = within_bit_operations([[0.0, 1.0]], [10], [(8, 8), (2, 8)], budget=100)
    assert not found.is_within
    assert found.choice == (1,)


@pytest.mark.parametrize("seed", range(10))
def test_seconds_equal_the_best_of_all_choices(seed: int) -> None:
    losses = random_harms(4, 3, seed)
    seconds = (1e-3 * torch.rand(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).tolist()
    budget = 0.5 * sum(map(max, seconds)) + 0.5 * sum(map(min, seconds))
    found = within_seconds(losses, seconds, budget=budget, noise=0.0)
    every = [
        (sum(losses[layer][at] for layer, at in enumerate(choice)), choice)
        for choice in product(range(3), repeat=4)
        if sum(seconds[layer][at] for layer, at in enumerate(choice)) <= budget
    ]
    assert found.choice == min(every)[1]


def test_a_layer_whose_times_differ_by_noise_takes_its_least_harm() -> None:
    """The clock saw 1 % between its widths; only the other layer is really faster in fewer bits."""
    seconds = [[1.00, 0.99], [1.0, 0.5]]
    found = within_seconds([[0.0, 1.0], [0.0, 1.0]], seconds, budget=1.5, noise=0.02)
    assert found.choice == (0, 1)


def test_where_no_width_changes_the_time_a_limit_on_it_is_refused() -> None:
    with pytest.raises(lighten.UnfitError, match="No layer's time differs between widths"):
        within_seconds([[0.0, 1.0]], [[1.0, 0.99]], budget=0.5, noise=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_rivals_never_do_more_harm_than_the_start_and_keep_the_room(seed: int) -> None:
    of = harms(seed, num_layers=8)
    room = int(4 * sum(of.weights.values()))
    start, found = of.within(room)
    generator = torch.Generator().manual_seed(seed)
    together: dict[tuple[int, ...], float] = {}

    def judge(widths) -> float:
        """The sum, and an interaction of its size that nothing foretells."""
        alone = sum(of.alone[site][WIDTHS.index(bits)] for site, bits in widths.items())
        drawn = float(torch.rand(1, generator=generator)) * found.loss
        return alone + together.setdefault(tuple(widths.values()), drawn)

    before = judge(start)
    best = best_of_rivals([start], of, room, judge=judge, run=Run())
    assert best.harm <= before
    assert best.harm == judge(best.bits)
    assert sum(of.weights[site] * bits for site, bits in best.bits.items()) <= room


def test_where_harms_add_up_the_start_stays() -> None:
    of = harms(3, num_layers=9)
    room = int(4 * sum(of.weights.values()))
    start, found = of.within(room)
    calls = []

    def judge(widths) -> float:
        calls.append(widths)
        return sum(of.alone[site][WIDTHS.index(bits)] for site, bits in widths.items())

    best = best_of_rivals([start], of, room, judge=judge, run=Run())
    assert best.bits == start
    assert best.harm == pytest.approx(found.loss)
    assert len(calls) == 7
