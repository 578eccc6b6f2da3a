"""A limit on the size chooses the widths: real files, within the limit, and no worse than one width for all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import images, residual

import lighten
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.search.bits import WIDTHS, fit_size


class Fake:
    """Trials whose files weigh what their codes do and 100 bytes, as a real one's names and scales."""

    def __init__(self, overhead: int = 100) -> None:
        self.overhead, self.tried = overhead, []
        self.prepared = SimpleNamespace(realize=self._realize)
        self.run = lighten.core.run.Run()

    def attempt(self, plan: Plan, name: str) -> Any:
        self.tried.append(name)
        # a narrow layer's Cast node takes bytes that the allocation does not know of
        size = self.overhead + sum(COUNT * (spec.weights or 0) // 8 + 5 * (spec.weights != 8) for spec in plan.values())  # type: ignore[union-attr]
        return SimpleNamespace(plan=plan, export=SimpleNamespace(size_bytes=size))

    def _realize(self, plan: Plan, *, repair: bool) -> Any:
        """Layer n of few bits adds noise 10^n 4^-bits to an output of 1."""
        noise = sum(10.0 ** int(site) * 4.0 ** -(spec.weights or 0) for site, spec in plan.items())  # type: ignore[union-attr]
        return SimpleNamespace(graph=lambda x: torch.ones(1) + noise**0.5)


COUNT = 1000
PLAN = Plan({str(site): Quant() for site in range(4)})


def graph() -> Any:
    weights = {f"{site}.weight": torch.zeros(COUNT) for site in PLAN}
    sites = [SimpleNamespace(name=site, kind="conv2d", weights=(f"{site}.weight",)) for site in PLAN]
    module = SimpleNamespace(named_parameters=weights.items, named_buffers=dict)
    return SimpleNamespace(module=module, sites=sites)


@pytest.mark.parametrize(
    ("limit", "widths"),
    [(4100, [8, 8, 8, 8]), (3700, [4, 8, 8, 8]), (2700, [4, 4, 4, 8]), (2000, [2, 4, 4, 4]), (1200, [2, 2, 2, 2])],
)
def test_the_layers_that_hurt_least_lose_their_bits_first(limit: int, widths: list[int]) -> None:
    trials: Any = Fake()
    start = trials.attempt(PLAN, "int8")
    found = fit_size(trials, graph(), start, limit=limit, inputs=(torch.zeros(1),))
    assert [found.plan[site].weights for site in PLAN] == widths
    assert found.export.size_bytes <= limit


def test_a_limit_out_of_reach_gives_the_smallest_file() -> None:
    trials: Any = Fake()
    found = fit_size(trials, graph(), trials.attempt(PLAN, "int8"), limit=500, inputs=(torch.zeros(1),))
    assert {found.plan[site].weights for site in PLAN} == {min(WIDTHS)}


def test_a_file_that_came_out_too_large_is_tried_again_with_less() -> None:
    trials: Any = Fake()
    start = trials.attempt(PLAN, "int8")
    # two layers at 4 bits weigh 3100 by their codes, 3110 as a file
    found = fit_size(trials, graph(), start, limit=3105, inputs=(torch.zeros(1),))
    assert found.export.size_bytes <= 3105
    assert len(trials.tried) > 2


def test_compress_meets_a_size_that_eight_bits_do_not(tmp_path: Path) -> None:
    model, data = residual(), images()
    eight = lighten.compress(model, data, target=lighten.Target(threads=1))
    size = min(entry["size_bytes"] for entry in eight.report["candidates"])
    result = lighten.compress(model, data, budget=lighten.Budget(size_bytes=size - 150), target=lighten.Target(threads=1))
    assert result.verdict == "met"
    assert len(result.model_bytes) <= size - 150
    assert any(spec.get("weights") in (2, 4) for spec in result.report["plan"].values())
