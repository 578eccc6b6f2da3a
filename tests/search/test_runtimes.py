"""Several runtimes: the files run against one another, and each is held against the fastest original of all."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lighten.core.cost import Budget, Target
from lighten.core.errors import InputError
from lighten.core.graph import Site
from lighten.core.plan import Plan
from lighten.core.spec import Keep, Quant
from lighten.evaluate.latency import Latency, Timing
from lighten.search.executable import executable
from lighten.search.faster import CHOSEN, Speed
from lighten.search.runtimes import Contender, best, race
from lighten.search.trials import ORIGINAL


@dataclass
class Bench:
    """Trials of one runtime, whose files take so many counts each."""

    runtime: str
    counts: dict[str, int]
    target: Any = field(init=False)
    original: Any = field(init=False)

    def __post_init__(self) -> None:
        self.target, self.original = Target(self.runtime), SimpleNamespace(path=Path("original"))

    def call(self, path: Path) -> Any:
        return lambda: sum(range(self.counts[path.name]))


def contender(runtime: str, original: int, compressed: int, *, drop: float = 0.0, size_bytes: int = 1) -> Contender:
    trial = SimpleNamespace(
        comparison=SimpleNamespace(drop=drop), export=SimpleNamespace(path=Path("file"), size_bytes=size_bytes)
    )
    latency = Latency(compressed, compressed, compressed, compressed, 10, 1)
    timing = Timing({ORIGINAL: latency, CHOSEN: latency}, {}, 1.0)
    speed: Any = Speed(trial, timing)  # type: ignore[arg-type]
    bench: Any = Bench(runtime, {"original": original, "file": compressed})
    return Contender(bench, speed)


def test_every_file_is_held_against_the_fastest_original() -> None:
    slow, fast = race([contender("slow", 400_000, 200_000), contender("fast", 40_000, 20_000)], rounds=6)
    assert slow.speed.against == fast.speed.against == "fast"
    assert slow.speed.ratio == pytest.approx(5, rel=0.5)  # its own original takes twice as long as its file
    assert fast.speed.ratio == pytest.approx(0.5, rel=0.5)
    assert slow.original_ms is not None
    assert fast.original_ms is not None
    assert slow.original_ms[0] > 5 * fast.original_ms[0]


def test_the_fastest_file_that_holds_is_recommended() -> None:
    accurate, fast = contender("accurate", 10, 9, drop=0.001), contender("fast", 10, 5, drop=0.03)
    assert best([accurate, fast], Budget(max_drop=0.05)) is fast
    assert best([accurate, fast], Budget(max_drop=0.01)) is accurate
    assert best([accurate, fast], Budget()) is accurate  # without a limit, a drop of 3 points more is not the price of speed
    assert best([accurate, fast], Budget(max_drop=0.0005)) is accurate  # none holds: the least drop


def test_a_file_that_is_too_large_is_not_recommended() -> None:
    small, large = contender("small", 10, 9, size_bytes=5), contender("large", 10, 5, size_bytes=50)
    assert best([small, large], Budget(size_bytes=10)) is small


def test_a_target_may_name_several_runtimes_once_each() -> None:
    target = Target("onnxruntime, openvino", threads=2, batch=3)
    assert [one.runtime for one in target.each()] == ["onnxruntime", "openvino"]
    assert {(one.threads, one.batch) for one in target.each()} == {(2, 3)}
    with pytest.raises(InputError, match="twice"):
        Target("openvino,openvino")
    with pytest.raises(InputError, match="hint must be one of latency, throughput"):
        Target(hint="speed")


def test_a_plan_does_not_ask_for_what_runs_in_float() -> None:
    class Prepared:
        """Gentler: static becomes weights only, that becomes float."""

        def gentler(self, site: str, spec: Any) -> Any:
            return Keep() if spec.activations is None or spec.weights is None else Quant(activations=None)

    sites = [Site("a", "conv3d", "a", ("a.weight",)), Site("b", "conv2d", "b", ("b.weight",)), Site("c", "average_pool", "c")]
    plan = Plan({"a": Quant(), "b": Quant(), "c": Quant(None)})
    prepared: Any = Prepared()
    found = executable(plan, sites, prepared, in_float=lambda kind, form: kind in ("conv3d", "average_pool"))
    assert dict(found) == {"a": Quant(activations=None), "b": Quant(), "c": Keep()}
