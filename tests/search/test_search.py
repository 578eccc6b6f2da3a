"""The search with a real exporter and runtime on small networks."""

import pytest
import torch
from networks import images, residual

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize
from lighten.search.restore import rank, restore
from lighten.search.trials import Trials


@pytest.fixture
def trials(tmp_path):
    model, data = residual(), images(100)
    prepared = Quantize().prepare(model, trace(model), data=data, run=Run())
    return Trials(model, prepared, data, OnnxExporter(), Target(), Run(), tmp_path)


def test_the_same_plan_is_tried_once(trials) -> None:
    (plan,) = trials.prepared.proposals()
    assert trials.attempt(plan, "first") is trials.attempt(Plan(dict(plan)), "second")
    assert len(trials.seen) == 1


def test_the_float_plan_agrees_with_the_original_everywhere(trials) -> None:
    comparison = trials.attempt(Plan(), "float").comparison
    assert comparison.compressed_score == 1.0
    assert comparison.flips.num_changed == 0


def test_the_site_that_is_made_worst_ranks_first(trials) -> None:
    prepared = trials.prepared
    # an outlier in one weight of `project` leaves its channel's other weights hardly a level each
    weight = prepared.graph.module.project.weight
    with torch.no_grad():
        weight[:, 0] = 30.0
    plan = Plan({name: Quant(activations=None) for name in ("stem", "depthwise", "project", "head")})
    damage = rank(prepared, plan, inputs=trials.data.test.inputs, run=Run())
    assert max(damage, key=damage.__getitem__) == "project"


def test_restoring_takes_the_fewest_layers_that_hold(trials) -> None:
    (plan,) = trials.prepared.proposals()
    start = trials.attempt(plan, "int8")

    def at_most_four(trial) -> bool:
        return sum(type(spec) is Quant for spec in trial.plan.values()) <= 4

    found = restore(trials, start, holds=at_most_four, inputs=trials.data.test.inputs, run=Run())
    restored = [name for name in plan if found.plan.spec(name) == Keep()]
    assert len(restored) == 2  # six sites, the shortest prefix of the ranking that leaves four


def test_when_nothing_holds_the_least_drop_is_kept(trials) -> None:
    (plan,) = trials.prepared.proposals()
    start = trials.attempt(plan, "int8")
    found = restore(trials, start, holds=lambda trial: False, inputs=trials.data.test.inputs, run=Run())
    assert found.comparison.drop == min(trial.comparison.drop for trial in trials.seen.values())
    assert any(all(type(spec) is Keep for spec in trial.plan.values()) for trial in trials.seen.values())
