"""Pruning as a step: what is cut, what it costs, and what the repair gives back."""

from dataclasses import replace

import pytest
import torch
from networks import Tensors, encoder, images, residual, sentences
from torch import nn

import lighten
from lighten.analyze.cost import total
from lighten.analyze.coupling import couple
from lighten.analyze.trace import traced
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin
from lighten.core.recipe import Recipe, Step
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune
from lighten.methods.prune.schedule import Recovery, gradual
from lighten.methods.prune.score import SCORES


def error(model: Model, smaller: Model, x: torch.Tensor) -> float:
    """Relative error of the output."""
    with torch.no_grad():
        before, after = model.module(x), smaller.module(x)
    return float((after - before).square().sum() / before.square().sum())


def chain(width: int = 16) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 3, padding=1), nn.Flatten())
    return Model(module.eval(), (torch.zeros(2, 3, 16, 16),), Origin("module", "chain", dynamic=({0: "batch"},)))


def test_twin_channels_go_without_a_trace() -> None:
    model = chain()
    with torch.no_grad():
        model.module[0].weight[8:] = model.module[0].weight[:8]
        model.module[0].bias[8:] = model.module[0].bias[:8]
        model.module[0].weight[8:] *= 0.5  # smaller, so they are the ones to go
        model.module[0].bias[8:] *= 0.5
        model.module[2].weight[:, 8:] *= 0.1
    smaller = Prune(ratio=0.5).rewrite(model, data=images(), run=Run())
    assert [tuple(value.shape) for name, value in smaller.module.named_parameters() if "weight" in name] == [
        (8, 3, 3, 3),
        (5, 8, 3, 3),
    ]
    # what is left is the ridge: 1 % of the mean diagonal
    assert error(model, smaller, images().test.inputs[0]) < 1e-3
    assert error(model, Prune(ratio=0.5, repair=False).rewrite(model, data=images(), run=Run()), images().test.inputs[0]) > 1e-3


def test_the_given_network_is_not_changed() -> None:
    model = residual()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    Prune(macs=0.5, round_to=1).rewrite(model, data=images(), run=Run())
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("score", [score for score in SCORES if score != "batch_norm_scale"])
def test_every_score_keeps_the_budget_and_the_repair_helps(score: str) -> None:
    model, data, x = residual(), images(), images().test.inputs[0]
    repaired = Prune(macs=0.6, round_to=1, score=score).rewrite(model, data=data, run=Run())
    bare = Prune(macs=0.6, round_to=1, score=score, repair=False).rewrite(model, data=data, run=Run())
    assert error(model, repaired, x) < error(model, bare, x)
    full = total(traced(model), model.example).macs
    assert 0.3 * full < total(traced(repaired), model.example).macs <= 0.6 * full


def test_norms_as_repair_takes_the_statistics_of_what_is_left_and_nothing_else() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 3))
    module, data = nn.Sequential(*layers, nn.Flatten()).eval(), images()
    model = Model(module, (torch.zeros(2, 3, 16, 16),), Origin("module", "normed", dynamic=({0: "batch"},)))
    renormed, bare = (
        dict(Prune(ratio=0.5, repair=knob).rewrite(model, data=data, run=Run()).module.state_dict())
        for knob in ("norms", False)
    )
    x = data.calibration.inputs[0]
    kept = nn.functional.conv2d(torch.relu(nn.functional.conv2d(x, bare["0.weight"], bare["0.bias"])), bare["2.weight"])
    mean = (kept + bare["2.bias"][:, None, None]).mean((0, 2, 3))
    torch.testing.assert_close(renormed["3.running_mean"], mean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(bare["3.running_mean"], mean, atol=1e-2)
    assert all(torch.equal(renormed[name], bare[name]) for name in bare if "running" not in name)


def test_parameters_are_a_budget_too() -> None:
    model = residual()
    smaller = Prune(params=0.5, round_to=1).rewrite(model, data=images(), run=Run())
    full = sum(value.numel() for value in model.module.parameters())
    assert sum(value.numel() for value in smaller.module.parameters()) <= 0.5 * full


def test_widths_are_multiples_where_that_is_asked() -> None:
    run = Run()
    Prune(macs=0.7, round_to=4).rewrite(residual(), data=images(), run=run)
    assert all(after % 4 == 0 or after == before for before, after in run.ledger.entries[-1]["widths"].values())


def test_a_pinned_site_keeps_its_channels() -> None:
    run = Run()
    Prune(ratio=0.5, round_to=1).rewrite(chain(), data=images(), run=Run())
    with pytest.raises(Exception, match="no group that can be cut"):
        Prune(ratio=0.5, round_to=1).rewrite(chain(), data=images(), run=run, pins=("0",))


def test_neurons_of_a_transformer_are_cut_alone_when_asked() -> None:
    run = Run()
    Prune(ratio=0.5, round_to=1, unit="neuron").rewrite(encoder(), data=sentences(), run=run)
    widths = run.ledger.entries[-1]["widths"]
    assert list(widths) == ["up"]
    assert widths["up"][1] == widths["up"][0] // 2


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "one of macs, params, bytes, latency, ratio"),
        ({"macs": 0.5, "ratio": 0.5}, "one of macs, params, bytes, latency, ratio"),
        ({"macs": 1.0}, "must be in"),
        ({"ratio": -0.1}, "must be in"),
        ({"macs": 0.5, "score": "tailor"}, "Unknown score"),
        ({"macs": 0.5, "unit": "chanel"}, "Unknown unit"),
        ({"macs": 0.5, "round_to": 0}, "round_to"),
        ({"macs": 0.5, "least": 1}, "least"),
        ({"bytes": 0}, "bytes must be in"),
        ({"latency": 1}, "latency must be in"),
        ({"macs": 0.5, "aggregate": "men"}, "Unknown aggregate 'men'. Did you mean 'mean'"),
        ({"macs": 0.5, "schedule": "gradul"}, "Unknown schedule 'gradul'. Did you mean 'gradual'"),
        ({"macs": 0.5, "rounds": 3}, "rounds need schedule: iterative or gradual"),
        ({"macs": 0.5, "training": {"epochs": 1}}, "training need schedule"),
        ({"macs": 0.5, "schedule": "iterative", "rounds": 1}, "rounds must be an integer >= 2"),
        ({"macs": 0.5, "schedule": "iterative", "training": {"epoch": 1}}, "Did you mean 'epochs'"),
        ({"macs": 0.5, "schedule": "iterative", "training": {"lr": -1}}, "lr must be"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Prune(**knobs)  # type: ignore[arg-type]


def test_a_budget_below_the_limits_says_the_least_there_is() -> None:
    with pytest.raises(InputError, match=r"cannot be reached; the least is 0\.\d+"):
        Prune(macs=0.01).rewrite(residual(), data=images(), run=Run())


def test_a_ratio_beyond_the_limits_says_how_much_can_go() -> None:
    # of 16 channels 8 stay at least when counts are multiples of 8
    with pytest.raises(InputError, match=r"ratio 0\.9 cannot be reached; at most 0\.500 of the channels can go"):
        Prune(ratio=0.9).rewrite(chain(), data=images(), run=Run())


def test_a_network_of_inputs_and_outputs_has_nothing_to_cut() -> None:
    model = Model(nn.Linear(8, 5).eval(), (torch.zeros(2, 8),), Origin("module", "linear", dynamic=({0: "batch"},)))
    with pytest.raises(UnfitError, match="every channel reaches an input or the output"):
        Prune(macs=0.5).rewrite(model, data=images(), run=Run())


def test_scores_from_labels_need_labels() -> None:
    data = images()
    unlabelled = replace(data, train=Tensors(data.test.inputs))
    for score in ("taylor", "obd"):
        with pytest.raises(InputError, match="needs targets"):
            Prune(macs=0.5, score=score).check(residual(), data=unlabelled)
    Prune(macs=0.5, round_to=1, score="reconstruction").check(residual(), data=unlabelled)


def test_a_schedule_that_trains_needs_a_training_split() -> None:
    with pytest.raises(InputError, match="schedule iterative trains, and the data has no training split"):
        Prune(macs=0.5, schedule="iterative").check(residual(), data=replace(images(), train=None))


def test_a_site_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    # a batch norm is no site of the folded graph, but a tensor that prune can be told to keep
    recipe = Recipe((Step("prune", {"macs": 0.5}),), sites={"nrom": "keep"})
    with pytest.raises(InputError, match=r"Unknown site 'nrom'\. Did you mean 'norm'"):
        lighten.compress(residual(), images(), recipe=recipe)


def test_iterative_pruning_ends_at_the_budget() -> None:
    run = Run()
    knobs = Prune(macs=0.5, round_to=1, schedule="iterative", rounds=3, training={"epochs": 1, "batch_size": 32})
    model = residual()
    smaller = knobs.rewrite(model, data=images(), run=run)
    full = total(traced(model), model.example).macs
    assert 0.4 * full < total(traced(smaller), model.example).macs <= 0.5 * full
    entries = [entry["what"] for entry in run.ledger.entries if entry["what"] in ("prune", "trained an epoch")]
    # epoch 0 is before each training; none after the last cut
    assert entries == ["prune", *["trained an epoch"] * 2, "prune", *["trained an epoch"] * 2, "prune"]
    widths = [entry["widths"]["stem"][1] for entry in run.ledger.entries if entry["what"] == "prune"]
    assert widths[0] > widths[1] > widths[2]


def test_gradual_pruning_shrinks_what_it_will_cut() -> None:
    model, data = residual(), images()
    graph = traced(model)
    groups = list(couple(graph).groups)
    gone = {group.name: torch.arange(group.size // 2, group.size) for group in groups}
    before = graph.stem.weight.detach().clone()
    # 40 steps, momentum 0.9: exp(-sum of 10 lr strength) = exp(-6) but for what the loss pulls back
    training = Training(epochs=20, batch_size=32, lr=0.1, keep="last")
    recover = Recovery(data.train, loss_for(data.task), training, Run())
    gradual(graph, groups, select=lambda _: gone, rounds=1, recover=recover)
    shrunk = graph.stem.weight.detach().flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    assert float(shrunk[:8].max()) < 0.2
    assert float(shrunk[8:].min()) > 0.5


def test_fine_tuning_lowers_the_loss_of_a_cut_network() -> None:
    run, data = Run(), images()
    smaller = Prune(macs=0.5, round_to=1).rewrite(residual(), data=data, run=run)
    tuned = Finetune(epochs=20, lr=0.05, batch_size=32).rewrite(smaller, data=data, run=run)
    x, target = data.test.inputs[0], data.test.target
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(one.module(x), target) for one in (smaller, tuned))
    assert after < before


def test_fine_tuning_needs_a_training_split() -> None:
    with pytest.raises(InputError, match="training split"):
        Finetune(epochs=1).rewrite(residual(), data=replace(images(), train=None), run=Run())
