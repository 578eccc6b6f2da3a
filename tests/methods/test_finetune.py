"""Fine-tuning as a step of a recipe: validation, resumption, interrupts, dropout, and what is refused before any work."""

import os
from dataclasses import replace

import pytest
import torch
from networks import Tensors, residual
from torch import nn

import lighten
from lighten import InputError, Recipe, UnfitError
from lighten.analyze.trace import trace
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.recipe import Step
from lighten.core.run import Run, Stopped
from lighten.engine.modes import set_training
from lighten.engine.rewriting import rewritten
from lighten.methods.finetune import Finetune


def network(seed: int = 0) -> Model:
    """With dropout and batch statistics, and dynamic in its batch."""
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    return Model(nn.Sequential(*layers).eval(), (torch.randn(2, 6),), Origin("module", "network", dynamic=({0: "batch"},)))


def points(count: int = 240) -> Data:
    """Three classes that can be told apart, 240 to train on and 60 to test."""

    def split(count: int, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        target_B = torch.randint(3, (count,), generator=generator)
        x_BI = torch.randn(count, 6, generator=generator)
        x_BI[torch.arange(count), target_B] += 3
        return Tensors((x_BI,), target_B)

    return Data("points", "classification", "accuracy", split(60, 2), split(count, 1), digest="points")


class Interrupting:
    """Progress that is Ctrl-C at `step` of all trainings together, and counts the steps made."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.made, self.shown, self.said = step, 0, [], []

    def track(self, items, *, what, total):
        self.shown.append(what if isinstance(what, str) else what())
        for item in items:
            yield item
            if not isinstance(what, str):
                self.made += 1
                if self.made == self.step:
                    raise KeyboardInterrupt

    def say(self, line):
        self.said.append(line)


def accuracy(model: Model, split: Tensors) -> float:
    with torch.no_grad():
        return float((model.module(*split.inputs).argmax(1) == split.target).float().mean())


def entries(run_or_report, what="trained an epoch"):
    steps = run_or_report["steps"] if isinstance(run_or_report, dict) else run_or_report.ledger.entries
    return [entry for entry in steps if entry["what"] == what]


def test_a_tenth_of_the_training_split_is_held_out_and_the_test_split_is_never_seen():
    data, run = points(), Run()
    unseen = replace(data, test=None)  # any look at it would fail
    model = Finetune(epochs=6, batch_size=16, lr=0.05).rewrite(network(), data=unseen, run=run)
    history = entries(run)
    # 216 of 240 train: 13 batches of 16, 6 epochs
    assert entries(run, "finetune")[0]["steps"] == 6 * 13
    assert [entry["epoch"] for entry in history] == list(range(7))
    assert all(entry["validation"] > 0 for entry in history)
    assert history[-1]["validation"] < 0.5 * history[0]["validation"]
    assert accuracy(model, data.test) > 0.9


def test_a_training_that_only_makes_things_worse_gives_the_network_back():
    data, start = points(), Finetune(epochs=6, batch_size=16, lr=0.05).rewrite(network(), data=points(), run=Run())
    run = Run()
    kept = Finetune(epochs=2, batch_size=16, lr=200.0).rewrite(start, data=data, run=run)
    assert entries(run, "finetune")[0]["kept_epoch"] == 0
    assert all(torch.equal(value, start.module.state_dict()[name]) for name, value in kept.module.state_dict().items())


def test_patience_ends_a_training_in_a_recipe():
    run = Run()
    Finetune(epochs=30, batch_size=16, lr=0.2, final_lr=1.0, patience=2).rewrite(network(), data=points(), run=run)
    (done,), history = entries(run, "finetune"), entries(run)
    assert done["stopped_early"]
    assert len(history) == 1 + done["kept_epoch"] + 2 < 31


def test_too_few_examples_train_without_validation_and_say_so():
    data, progress = points(count=60), Interrupting()
    run = Run(progress=progress)
    Finetune(epochs=1, batch_size=16).rewrite(network(), data=data, run=run)
    assert [entry["validation"] for entry in entries(run)] == [None, None]
    assert progress.said == ["Too few training examples for a validation (below 10); the last weights are kept."]
    assert entries(run, "finetune")[0]["kept_epoch"] == 1


def test_bf16_trains_a_traced_network_to_nearly_the_same_and_keeps_float32_weights():
    data, results = points(), []
    for precision in ("float32", "bf16"):
        model = Finetune(epochs=3, batch_size=16, lr=0.02, precision=precision).rewrite(network(), data=data, run=Run())
        assert {value.dtype for value in model.module.parameters()} == {torch.float32}
        results.append(model.module(*data.test.inputs).softmax(1).detach())
    apart = (results[0] - results[1]).abs()
    assert not torch.equal(results[0], results[1])
    # 39 steps whose gradients carry 8 bits: relative noise of 2^-8 a step moves a probability by a few percent at most
    assert float(apart.max()) < 0.1
    assert float(apart.mean()) < 0.01


def test_dropout_layers_come_back_while_a_traced_network_trains():
    seen = []
    model = Finetune(epochs=0.1, batch_size=16).rewrite(residual(), data=with_images(), run=Run())
    for is_training in (True, False):
        set_training(model.module, is_training, freeze_norm=True)
        torch.manual_seed(0)
        seen.append([model.module(model.example[0]) for _ in range(2)])
    assert not torch.equal(*seen[0])
    assert torch.equal(*seen[1])


def with_images() -> Data:
    generator = torch.Generator().manual_seed(0)
    split = Tensors((torch.randn(32, 3, 16, 16, generator=generator),), torch.randint(5, (32,), generator=generator))
    return Data("images", "image-classification", "accuracy", split, split, digest="images")


STEPS = (Finetune(epochs=2, batch_size=16, lr=0.02), Finetune(epochs=3, batch_size=16, lr=0.01, clip_norm=0.5, ema=0.9))


def go(folder, progress, steps=STEPS, pins=()):
    run = Run(progress=progress, folder=folder)
    model, stopped = rewritten(network(), steps, data=points(), run=run, pins=pins, identity={"model": "network"})
    return model, stopped, run


@pytest.mark.parametrize(("step", "repeated"), [(5, 65), (20, 52), (30, 39), (50, 26)])
def test_an_interrupted_recipe_goes_on_at_its_last_epoch_to_the_same_bits(tmp_path, step, repeated):
    # 13 steps an epoch: 26 in the first training, 39 in the second
    whole, _, reference = go(tmp_path / "whole", Interrupting())
    first = Interrupting(step)
    if step in (5, 30):  # no epoch of that training is done
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut", first)
    else:
        assert go(tmp_path / "cut", first)[1]
    second = Interrupting()
    resumed, stopped, run = go(tmp_path / "cut", second)
    assert not stopped
    assert second.made == repeated
    expected, found = whole.module.state_dict(), resumed.module.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [(entry["epoch"], entry["loss"]) for entry in entries(run)] == [
        (entry["epoch"], entry["loss"]) for entry in entries(reference)
    ]


def test_a_change_of_a_later_step_repeats_that_step_alone(tmp_path):
    go(tmp_path, Interrupting())
    other, again = Interrupting(), Interrupting()
    go(tmp_path, other, steps=(STEPS[0], replace(STEPS[1], label_smoothing=0.1)))
    go(tmp_path, again, steps=(replace(STEPS[0], label_smoothing=0.1), STEPS[1]))
    assert (other.made, again.made) == (39, 65)


def test_tied_weights_stay_tied_in_what_a_step_left_behind(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    module[2].weight = module[0].weight
    model = Model(module, (torch.randn(2, 6),), Origin("module", "tied", dynamic=({0: "batch"},)))
    run = Run(folder=tmp_path)
    made, _ = rewritten(model, STEPS, data=points(), run=run, pins=(), identity={})
    first, second = (made.module.get_parameter(f"{layer}.weight") for layer in (0, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, module[0].weight)


@pytest.mark.slow  # exports, scores and times the network twice
def test_ctrl_c_after_an_epoch_gives_what_was_trained_and_the_next_run_the_rest(tmp_path):
    recipe = Recipe.from_yaml("steps: [{finetune: {epochs: 4, batch_size: 16, lr: 0.05}}, {keep: {}}]")
    progress = Interrupting(20)
    result = lighten.compress(network(), points(), recipe=recipe, out=tmp_path, progress=progress)
    assert result.interrupted
    assert [entry["epoch"] for entry in entries(result.report)] == [0, 1]
    assert entries(result.report, "interrupted training")[0]["kept_epoch"] == 1
    assert "The run was interrupted; this is the best result until then." in result.report["notes"]
    result.save(tmp_path)
    assert ".work" in os.listdir(tmp_path)
    rest = Interrupting()
    again = lighten.compress(network(), points(), recipe=recipe, out=tmp_path, progress=rest)
    assert (again.interrupted, rest.made) == (False, 3 * 13)
    again.save(tmp_path)
    assert ".work" not in os.listdir(tmp_path)
    whole = Finetune(epochs=4, batch_size=16, lr=0.05).rewrite(network(), data=points(), run=Run())
    x_BI = points().test.inputs[0]
    assert torch.equal(again.compressed.graph(x_BI), trace(whole).module(x_BI))


def test_each_training_step_has_its_curves_in_a_folder_of_its_own(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tensorboard=tmp_path)
    rewritten(network(), STEPS, data=points(), run=run, pins=(), identity={})
    assert sorted(os.listdir(tmp_path)) == ["1-finetune", "2-finetune"]
    for name, num_epochs in (("1-finetune", 2), ("2-finetune", 3)):
        events = EventAccumulator(str(tmp_path / name)).Reload()
        assert len(events.Scalars("train/loss")) == 13 * num_epochs
        assert len(events.Scalars("validation/loss")) == num_epochs + 1


def test_tensorboard_for_a_recipe_that_does_not_train_is_refused(tmp_path):
    with pytest.raises(InputError, match="No step of the recipe trains"):
        lighten.compress(network(), points(), tensorboard=tmp_path)


def test_a_missing_tensorboard_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    recipe = Recipe.from_yaml("steps: [finetune]")
    with pytest.raises(InputError, match=r"pip install 'lighten\[tensorboard\]'"):
        lighten.compress("gone", "gone", recipe=recipe, tensorboard=tmp_path)


@pytest.mark.parametrize(
    ("change", "knobs", "message"),
    [
        ({"train": None}, {}, "needs a training split"),
        ({"train": Tensors((torch.zeros(0, 6),), torch.zeros(0))}, {}, "has no examples"),
        ({"train": Tensors((torch.zeros(20, 6),))}, {}, "has no labels"),
        ({"train": Tensors((torch.zeros(20, 6),), torch.full((20,), 7))}, {}, "A label is 7, the network has 3 classes"),
        ({}, {"patience": 1, "validation": 0.01}, "patience needs a validation; 0.01 of 240 training examples is less than 10"),
        ({}, {"patience": 1, "validation": 0}, "patience needs a validation"),
    ],
    ids=["one split", "empty", "no labels", "labels out of range", "too few to validate", "no validation"],
)
def test_what_a_later_step_lacks_is_told_before_the_first_one_works(change, knobs, message):
    steps = (Step("finetune"), Step("finetune", knobs))
    progress = Interrupting()
    data = replace(points(), **change)
    with pytest.raises((InputError, UnfitError), match=message):
        lighten.compress(network(), data, recipe=Recipe(steps), progress=progress)
    assert (progress.shown, progress.said) == ([], [])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"validation": 0.6}, r"finetune: validation must be in \[0, 0.5\]. Got 0.6."),
        ({"validation": True}, r"finetune: validation must be in \[0, 0.5\]. Got True."),
        ({"label_smoothing": 1}, r"finetune: label_smoothing must be in \[0, 1\). Got 1."),
        ({"lr": -1}, "lr must be > 0. Got -1."),
    ],
)
def test_a_knob_out_of_range_is_refused(knobs, message):
    with pytest.raises(InputError, match=message):
        Finetune(**knobs)


def test_an_interrupted_step_gives_a_model_whose_given_one_is_unchanged():
    model = network()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(Stopped) as caught:
        STEPS[0].rewrite(model, data=points(), run=Run(progress=Interrupting(15)))
    assert type(caught.value.result) is Model
    assert not torch.equal(caught.value.result.module.get_parameter("0.weight"), before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
