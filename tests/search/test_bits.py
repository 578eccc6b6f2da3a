"""A limit on the size, or a mean width, chooses the widths: real files, within the limit, no worse than one width for all."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import Tensors, images, residual

import lighten
import lighten.compress
from lighten.core.plan import Plan
from lighten.core.recipe import Step
from lighten.core.spec import Quant
from lighten.search import bits
from lighten.search.bits import Limits, fit_widths
from lighten.search.sensitivity import mean_bits

COUNT = 1000
WIDTHS = (8, 4, 2)
PLAN = Plan({str(site): Quant() for site in range(4)})


class Fake:
    """Trials whose files weigh what their codes do and 100 bytes, as a real one's names and scales. Layer n of few bits adds
    noise 10^n 4^-bits to an output of 1; together they add `together` more.
    """

    def __init__(self, overhead: int = 100, together: Any = None) -> None:
        self.overhead, self.together, self.tried = overhead, together, []
        self.prepared = SimpleNamespace(realize=self.realize, graph=graph())
        self.run, self.seen, self.effects = lighten.core.run.Run(), {}, {}
        self.exporter = SimpleNamespace(weight_widths=lambda: WIDTHS)
        self.data = SimpleNamespace(calibration=Tensors((torch.zeros(20, 1),)), task="regression")

    def attempt(self, plan: Plan, name: str) -> Any:
        self.tried.append(name)
        # a narrow layer's Cast node takes bytes that the allocation does not know of
        size = self.overhead + sum(COUNT * (spec.weights or 0) // 8 + 5 * (spec.weights != 8) for spec in plan.values())  # type: ignore[union-attr]
        made = SimpleNamespace(plan=plan, export=SimpleNamespace(size_bytes=size), compressed=self.realize(plan))
        self.seen[plan.key()] = made
        return made

    def realize(self, plan: Plan, *, repair: bool = True) -> Any:
        noise = sum(10.0 ** int(site) * 4.0 ** -(spec.weights or 0) for site, spec in plan.items())  # type: ignore[union-attr]
        noise += self.together(plan) if self.together and len(plan) > 1 else 0.0
        return SimpleNamespace(graph=lambda x: torch.full_like(x, 1 + noise**0.5))


def graph() -> Any:
    weights = {f"{site}.weight": torch.zeros(COUNT) for site in PLAN}
    sites = [SimpleNamespace(name=site, kind="conv2d", weights=(f"{site}.weight",)) for site in PLAN]
    module = SimpleNamespace(named_parameters=weights.items, named_buffers=dict)
    return SimpleNamespace(module=module, sites=sites)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A made-up network has no multiply-accumulates to count."""
    if "real" not in request.node.name:
        monkeypatch.setattr(bits, "_is_quick", lambda trials, num_layers: True)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is faster on a busy machine must not decide which files are tried."""
    monkeypatch.setattr(sys.modules["lighten.compress"], "make_faster", lambda trials, graph, start, *, holds: start)


def fitted(trials: Any, **limits: Any) -> Any:
    return fit_widths(trials, graph(), trials.attempt(PLAN, "int8"), limits=Limits(**limits))


@pytest.mark.parametrize(
    ("limit", "widths"),
    [(4100, [8, 8, 8, 8]), (3700, [4, 8, 8, 8]), (2700, [4, 4, 4, 8]), (2000, [2, 4, 4, 4]), (1200, [2, 2, 2, 2])],
)
def test_the_layers_that_hurt_least_lose_their_bits_first(limit: int, widths: list[int]) -> None:
    found = fitted(Fake(), size_bytes=limit)
    assert [found.plan[site].weights for site in PLAN] == widths
    assert found.export.size_bytes <= limit


@pytest.mark.parametrize(
    ("mean", "widths"), [(8, [8, 8, 8, 8]), (6, [4, 4, 8, 8]), (4.5, [2, 4, 4, 8]), (4, [2, 2, 4, 8]), (2, [2, 2, 2, 2])]
)
def test_a_mean_width_is_kept_by_the_layers_that_hurt_least(mean: float, widths: list[int]) -> None:
    found = fitted(Fake(), mean_bits=mean)
    assert [found.plan[site].weights for site in PLAN] == widths


def test_of_two_limits_the_tighter_one_holds() -> None:
    assert fitted(Fake(), size_bytes=3700, mean_bits=4).plan == fitted(Fake(), mean_bits=4).plan
    assert fitted(Fake(), size_bytes=2000, mean_bits=7).plan == fitted(Fake(), size_bytes=2000).plan


def test_a_limit_out_of_reach_gives_the_smallest_file() -> None:
    found = fitted(Fake(), size_bytes=500)
    assert {found.plan[site].weights for site in PLAN} == {min(WIDTHS)}


def test_a_file_that_came_out_too_large_is_tried_again_with_less() -> None:
    trials: Any = Fake()
    # two layers at 4 bits weigh 3100 by their codes, 3110 as a file
    found = fitted(trials, size_bytes=3105)
    assert found.export.size_bytes <= 3105
    assert len(trials.tried) > 2


def test_a_rival_wins_where_layers_do_more_harm_together_than_alone() -> None:
    """Alone, layers 0 and 1 bear 4 bits best; together they ruin the network, which no sum of single layers knows."""

    def together(plan: Plan) -> float:
        return 1e3 if all(plan[site].weights == 4 for site in ("0", "1")) else 0.0  # type: ignore[union-attr]

    found = fitted(Fake(together=together), mean_bits=6)
    widths = [found.plan[site].weights for site in PLAN]
    assert sum(widths) <= 24
    assert widths[:2] != [4, 4]
    assert [fitted(Fake(), mean_bits=6).plan[site].weights for site in PLAN] == [4, 4, 8, 8]


def test_one_width_for_all_is_kept_where_no_other_plan_is_better() -> None:
    def together(plan: Plan) -> float:
        return 0.0 if len({spec.weights for spec in plan.values()}) == 1 else 1e6  # type: ignore[union-attr]

    found = fitted(Fake(together=together), mean_bits=5)
    assert {found.plan[site].weights for site in PLAN} == {4}


@pytest.mark.usefixtures("untimed")
def test_compress_meets_a_real_size_that_eight_bits_do_not() -> None:
    model, data = residual(), images()
    eight = lighten.compress(model, data, target=lighten.Target(threads=1))
    size = min(entry["size_bytes"] for entry in eight.report["candidates"])
    result = lighten.compress(model, data, budget=lighten.Budget(size_bytes=size - 150), target=lighten.Target(threads=1))
    assert result.verdict == "met"
    assert len(result.model_bytes) <= size - 150
    assert any(spec.get("weights") in (2, 4) for spec in result.report["plan"].values())


@pytest.mark.usefixtures("untimed")
def test_compress_keeps_a_real_mean_width() -> None:
    recipe = lighten.Recipe(steps=(Step("quantize", {"mean_bits": 3.5}),))
    result = lighten.compress(residual(), images(), recipe=recipe, target=lighten.Target(threads=1))
    plan = Plan.from_dict(result.report["plan"])
    assert mean_bits(lighten.analyze.trace.trace(residual()), plan) <= 3.5
    assert lighten.Recipe.from_yaml(result.recipe.to_yaml()).steps == recipe.steps
    alone = [layer for layer in result.report["layers"] if "noise_alone" in layer]
    assert {layer["site"] for layer in alone} == {"stem", "depthwise", "project", "head"}
    for layer in alone:
        assert layer["wider_cost_bytes"] == layer["weight_bytes_after"]


@pytest.mark.parametrize("mean", [1.9, 8.1, 0, -4, True, "4", float("nan")])
def test_a_mean_width_out_of_range_is_refused(mean: Any) -> None:
    with pytest.raises(lighten.InputError, match=r"mean_bits must be a number in \[2, 8\]"):
        lighten.catalog.build_method(Step("quantize", {"mean_bits": mean}))


def test_a_mean_width_beside_a_fixed_one_is_refused() -> None:
    with pytest.raises(lighten.InputError, match="weights=4 has no meaning"):
        lighten.catalog.build_method(Step("quantize", {"mean_bits": 4, "weights": 4}))
