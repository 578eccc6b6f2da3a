"""Cuts that are measured: what a latency takes, what gains nothing, and what the target's blocks ask for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from networks import images
from torch import fx, nn

from lighten import Target
from lighten.analyze.cost import total
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin
from lighten.core.run import Run, Times
from lighten.export.onnx import OnnxExporter
from lighten.methods.prune.prune import Prune
from lighten.search.clock import FileClock
from lighten.search.trials import representative_batch


def chain(first: int = 64, second: int = 64) -> Model:
    """Two groups, "0" and "2"."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, second, 3, padding=1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Conv2d(second, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Model(module.eval(), (torch.zeros(2, 3, 16, 16),), Origin("module", "chain", dynamic=({0: "batch"},)))


def sizes(model: Model) -> tuple[int, int]:
    """Channels of the two groups."""
    state = model.module.state_dict()
    return state["0.weight"].shape[0], state["2.weight"].shape[0]


def macs(model: Model) -> int:
    assert isinstance(model.module, fx.GraphModule)
    return total(model.module, model.example).macs


@dataclass
class Formula:
    """A clock that computes: seconds of a network from its two widths, without noise."""

    seconds: Callable[[int, int], float]
    calls: int = 0

    def __call__(self, models: Mapping[str, Callable[[], Model]], /) -> Times:
        self.calls += 1
        return Times({name: self.seconds(*sizes(build())) for name, build in models.items()}, 0.02)


def pruned(clock: Formula, **knobs: object) -> tuple[Model, Run]:
    run = Run(clock=clock)
    return Prune(repair=False, **knobs).rewrite(chain(), data=images(), run=run), run  # type: ignore[arg-type]


def test_a_latency_is_reached_by_measuring() -> None:
    # half of the time is there at any width: 0.75 of the time is half of the work
    clock = Formula(lambda first, second: 64 * 64 + first * second)
    smaller, run = pruned(clock, latency=0.75, round_to=1)
    first, second = sizes(smaller)
    assert 0.45 * 64 * 64 < first * second <= 0.5 * 64 * 64
    probes = next(entry for entry in run.ledger.entries if entry["what"] == "timed cuts")["probes"]
    assert any(probe["latency"] == pytest.approx((1 + first * second / 64**2) / 2, abs=1e-4) for probe in probes)


def test_a_latency_that_no_cut_reaches_says_the_least() -> None:
    clock = Formula(lambda first, second: 1000 + first + second)
    with pytest.raises(InputError, match=r"latency 0\.5 cannot be reached; the least is 0\.9\d\d"):
        pruned(clock, latency=0.5)


def test_a_latency_needs_a_clock() -> None:
    with pytest.raises(InputError, match="no target to measure on"):
        Prune(latency=0.5).rewrite(chain(), data=images(), run=Run())


def test_a_group_whose_cut_gains_nothing_stays_whole_and_others_go_in_its_place() -> None:
    clock = Formula(lambda first, second: 100 + second)
    smaller, run = pruned(clock, macs=0.5)
    assert sizes(smaller)[0] == 64
    # 3 x 64 x 9 + 64 s 9 + s 5 x 9 multiplications a position, at most half of them
    assert sizes(smaller)[1] == 24
    assert next(entry for entry in run.ledger.entries if entry["what"] == "timed cuts")["whole"] == ["0"]


def test_a_group_stays_cut_where_the_budget_needs_it() -> None:
    clock = Formula(lambda first, second: 100 + second)
    smaller, _ = pruned(clock, macs=0.1, least=0.25)
    assert sizes(smaller) == (16, 16)


def test_without_any_gain_a_budget_for_speed_is_refused_and_one_for_size_is_kept() -> None:
    clock = Formula(lambda first, second: 1.0)
    with pytest.raises(UnfitError, match="cutting gains nothing here"):
        pruned(clock, macs=0.5)
    smaller, _ = pruned(clock, params=0.5)
    assert sum(value.numel() for value in smaller.module.parameters()) <= 0.5 * sum(
        value.numel() for value in chain().module.parameters()
    )


def test_only_faster_can_be_switched_off() -> None:
    clock = Formula(lambda first, second: 1.0)
    pruned(clock, macs=0.5, only_faster=False)
    assert clock.calls == 0


def test_widths_follow_the_blocks_of_the_target() -> None:
    # a kernel that computes 32 channels at a time; with multiples of 8 it would compute channels that are not there
    clock = Formula(lambda first, second: math.ceil(first / 32) + math.ceil(second / 32))
    smaller, _ = pruned(clock, macs=0.55)
    assert all(size % 32 == 0 for size in sizes(smaller))


def test_bytes_are_those_of_the_exported_file(tmp_path: object) -> None:
    model = chain()
    smaller, _ = pruned(Formula(lambda first, second: first * second), bytes=0.5)
    exporter, folder = OnnxExporter(), tmp_path
    before, after = (
        exporter.write_float(one, folder / f"{number}.onnx").size_bytes  # type: ignore[operator]
        for number, one in enumerate((model, smaller))
    )
    weights = [4 * sum(value.numel() for value in one.module.parameters()) for one in (model, smaller)]
    assert weights[1] <= 0.5 * weights[0]
    # names and shapes of the nodes are the rest
    assert before - after == pytest.approx(weights[0] - weights[1], rel=0.02)


def test_files_are_timed_on_the_target(tmp_path: object) -> None:
    model, target = chain(), Target()
    clock = FileClock(OnnxExporter(), target, representative_batch(images(), target), tmp_path, Run().progress)  # type: ignore[arg-type]
    small = replace(model, module=chain(8, 8).module)
    times = clock({"whole": lambda: model, "small": lambda: small})
    # 64 times fewer multiplications; even on a busy machine that is less than half of the time
    assert times.ratio("small", "whole") < 0.5
    again = clock({"whole": lambda: pytest.fail("written twice"), "small": lambda: small})
    assert again.ratio("small", "whole") < 0.5
