"""The training loop: known steps, exact resumption, and what a training that fails leaves behind."""

import copy
import json
import math

import pytest
import torch
from networks import Residual, Tensors, images
from torch import nn

from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run, Stopped
from lighten.engine.losses import cross_entropy, loss_for, mean_squared
from lighten.engine.modes import set_training
from lighten.engine.schedule import OPTIMIZERS, Training, optimizer_for
from lighten.engine.train import Extras, train

CONSTANT = {"warmup": 0.0, "final_lr": 1.0}


def line() -> nn.Linear:
    """y = 2x + 0, to be moved towards zero."""
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(2)
        module.bias.zero_()
    return module


TO_ZERO = Tensors((torch.tensor([[1.0], [2.0]]),), torch.zeros(2, dtype=torch.float64))


def network(seed: int = 0) -> nn.Module:
    """With everything that makes training stateful: batch statistics, dropout, weights of one and more dimensions."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def points(count: int = 96, seed: int = 1) -> Tensors:
    """Three classes that a line apart separates: the class is the largest of the first three coordinates by a margin."""
    generator = torch.Generator().manual_seed(seed)
    target_B = torch.randint(3, (count,), generator=generator)
    x_BI = 0.3 * torch.randn(count, 6, generator=generator)
    x_BI[torch.arange(count), target_B] += 3
    return Tensors((x_BI,), target_B)


def accuracy(split: Tensors):
    return lambda module: float((module(split.inputs[0]).argmax(1) == split.target).float().mean())


def errors(split: Tensors):
    return lambda module: 1 - accuracy(split)(module)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def are_identical(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stop_at(step: int):
    """An after_step that is Ctrl-C once `step` steps are done."""

    def interrupt(done: int, progress: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("count", [256, 300])
def test_two_batches_of_32_a_step_are_one_of_64_where_no_batch_norm_looks(count):
    trained = []
    for knobs in ({"batch_size": 64}, {"batch_size": 32, "accumulate": 2}):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
        split = points(count)
        split = Tensors((split.inputs[0].double(),), split.target)
        done = train(module, split, loss=cross_entropy, training=Training(epochs=3, lr=0.1, **knobs), run=Run())
        trained.append((done.num_steps, [epoch.loss for epoch in done.history[1:]], weights(module)))
    assert trained[0][0] == trained[1][0] == 3 * (count // 64)
    # the loss is computed in float32, so sums in another order differ in its last digits
    assert trained[0][1] == pytest.approx(trained[1][1], rel=1e-5)
    for name, value in trained[0][2].items():
        torch.testing.assert_close(trained[1][2][name], value, rtol=1e-4, atol=1e-5)


def test_fewer_batches_than_a_step_takes_make_one_step_of_all():
    done = train(network(), points(96), loss=cross_entropy, training=Training(epochs=2, batch_size=32, accumulate=8), run=Run())
    assert done.num_steps == 2


def test_one_step_of_sgd_is_the_update_computed_by_hand():
    # gradients of mean((wx + b)^2) at w = 2, b = 0: mean(2wx * x) = 10 and mean(2wx) = 6. Nesterov's first step takes
    # (1 + 0.9) of them; decay adds 0.1 * 2 to the weight's and nothing to the bias's
    module = line()
    knobs = Training(epochs=1, batch_size=2, lr=0.01, weight_decay=0.1, **CONSTANT)
    done = train(module, TO_ZERO, loss=mean_squared, training=knobs, run=Run())
    assert module.weight.item() == pytest.approx(2 - 0.01 * 1.9 * 10.2)
    assert module.bias.item() == pytest.approx(-0.01 * 1.9 * 6)
    assert (done.num_steps, done.kept, done.history[1].loss) == (1, 1, pytest.approx(10))


def test_the_first_step_of_adamw_is_the_learning_rate_in_the_gradients_direction():
    module = line()
    knobs = Training(epochs=1, batch_size=2, optimizer="adamw", lr=0.01, weight_decay=0.0, **CONSTANT)
    train(module, TO_ZERO, loss=mean_squared, training=knobs, run=Run())
    # bias-corrected moments of one step: g / sqrt(g^2)
    assert module.weight.item() == pytest.approx(2 - 0.01)
    assert module.bias.item() == pytest.approx(-0.01)


def test_clipping_bounds_the_whole_gradient():
    module = line()
    knobs = Training(epochs=1, batch_size=2, lr=0.01, weight_decay=0.0, clip_norm=1.0, **CONSTANT)
    train(module, TO_ZERO, loss=mean_squared, training=knobs, run=Run())
    norm = math.hypot(10, 6)
    assert module.weight.item() == pytest.approx(2 - 0.01 * 1.9 * 10 / norm)
    assert module.bias.item() == pytest.approx(-0.01 * 1.9 * 6 / norm)


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    knobs = Training(lr=0.4, warmup=0.2, final_lr=0.1)
    known = {0: 0, 0.1: 0.2, 0.2: 0.4, 0.6: 0.4 * (0.1 + 0.9 / 2), 1: 0.04}
    assert {at: knobs.lr_at(at) for at in known} == pytest.approx(known)
    assert Training(warmup=0.0).lr_at(0) == OPTIMIZERS["sgd"]
    assert Training(optimizer="adamw", warmup=0.0).lr_at(0) == OPTIMIZERS["adamw"]


def test_weight_decay_is_kept_from_biases_and_norms():
    module = network()
    decayed, spared = optimizer_for(module, Training(weight_decay=0.3)).param_groups
    assert [tuple(value.shape) for value in decayed["params"]] == [(16, 6), (3, 16)]
    assert [value.dim() for value in spared["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def test_a_frozen_parameter_stays_as_it_was():
    module = line()
    module.weight.requires_grad_(False)
    train(module, TO_ZERO, loss=mean_squared, training=Training(epochs=3, batch_size=2), run=Run())
    assert module.weight.item() == 2
    assert module.bias.item() < 0


@pytest.mark.parametrize("knobs", [{"optimizer": "sgd", "lr": 0.05}, {"optimizer": "adamw", "lr": 0.01}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_separable_problem_is_learnt_to_the_last_example(knobs, precision):
    split, test = points(), points(seed=2)
    module = network()
    training = Training(epochs=8, batch_size=16, precision=precision, **knobs)
    train(module, split, loss=cross_entropy, training=training, run=Run())
    assert accuracy(test)(module) == 1.0
    assert all(value.dtype == torch.float32 for value in module.parameters())


def test_bf16_runs_the_matrix_products_in_bf16():
    seen = []
    module = network()
    module[0].register_forward_hook(lambda layer, args, output: seen.append(output.dtype))
    train(module, points(), loss=cross_entropy, training=Training(epochs=0.1, precision="bf16"), run=Run())
    assert set(seen) == {torch.bfloat16}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    results = []
    for seed, drawn_before in ((3, 0), (3, 7), (4, 0)):
        module = network()
        torch.rand(drawn_before)
        train(module, points(), loss=cross_entropy, training=Training(epochs=2, batch_size=16), run=Run(seed=seed))
        results.append(weights(module))
    assert are_identical(results[0], results[1])
    assert not are_identical(results[0], results[2])


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn():
    module = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(module, points(), loss=cross_entropy, training=Training(epochs=1), run=Run())
    assert torch.equal(torch.rand(3), expected)


def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps():
    for epochs, steps in ((0.5, 3), (2.5, 15), (0.01, 1)):
        done = train(network(), points(), loss=cross_entropy, training=Training(epochs=epochs, batch_size=16), run=Run())
        assert done.num_steps == steps
        assert len(done.history) == 1 + math.ceil(epochs)


@pytest.mark.parametrize("knobs", [{}, {"optimizer": "adamw", "lr": 0.01, "ema": 0.9}], ids=["sgd", "adamw with ema"])
@pytest.mark.parametrize("step", [5, 12, 20])
def test_a_resumed_training_repeats_an_uninterrupted_one_bit_for_bit(tmp_path, knobs, step):
    split, training = points(), Training(epochs=4, batch_size=16, **knobs)  # 6 steps an epoch
    whole = network()
    reference = train(whole, split, loss=cross_entropy, training=training, run=Run(), extras=Extras(errors(split)))
    extras = Extras(errors(split), after_step=stop_at(step), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(network(), split, loss=cross_entropy, training=training, run=Run(), extras=extras)
    resumed, run = network(), Run()
    extras = Extras(errors(split), folder=tmp_path)
    done = train(resumed, split, loss=cross_entropy, training=training, run=run, extras=extras)
    assert are_identical(weights(resumed), weights(whole))
    assert [(epoch.loss, epoch.validation, epoch.lr) for epoch in done.history] == [
        (epoch.loss, epoch.validation, epoch.lr) for epoch in reference.history
    ]
    noted = [entry["epoch"] for entry in run.ledger.entries if entry["what"] == "trained an epoch"]
    assert noted == [0, 1, 2, 3, 4]  # those of the interrupted training too
    resumptions = [entry["step"] for entry in run.ledger.entries if entry["what"] == "resumed training"]
    assert resumptions == ([] if step <= 6 else [(step - 1) // 6 * 6])


def test_the_module_that_an_interrupt_left_behind_is_taken_up_too(tmp_path):
    split, training = points(), Training(epochs=4, batch_size=16)
    whole, module = network(), network()
    train(whole, split, loss=cross_entropy, training=training, run=Run())
    extras = Extras(after_step=stop_at(15), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(module, split, loss=cross_entropy, training=training, run=Run(), extras=extras)
    train(module, split, loss=cross_entropy, training=training, run=Run(), extras=Extras(folder=tmp_path))
    assert are_identical(weights(module), weights(whole))


@pytest.mark.parametrize("step", [3, 9])
def test_an_interrupt_after_an_epoch_carries_what_was_trained(step):
    validate, seen = losses(0.9, 0.5)
    module, extras = network(), Extras(validate, after_step=stop_at(step))  # 6 steps an epoch
    with pytest.raises(KeyboardInterrupt) as caught:
        train(module, points(), loss=cross_entropy, training=Training(batch_size=16), run=Run(), extras=extras)
    assert (type(caught.value) is Stopped) == (step == 9)
    if step == 9:
        assert (caught.value.result.kept, caught.value.result.num_steps) == (1, 9)
        assert caught.value.result.module is module
    assert are_identical(weights(module), seen[-1])


def test_a_finished_training_is_not_repeated(tmp_path):
    split, training, calls = points(), Training(epochs=2, batch_size=16), []
    first, second = network(), network()
    train(first, split, loss=cross_entropy, training=training, run=Run(), extras=Extras(folder=tmp_path))
    extras = Extras(after_step=lambda *done: calls.append(done), folder=tmp_path)
    train(second, split, loss=cross_entropy, training=training, run=Run(), extras=extras)
    assert calls == []
    assert are_identical(weights(first), weights(second))


@pytest.mark.parametrize("change", ["weights", "knobs", "seed", "damage"])
def test_the_checkpoint_of_another_training_is_not_taken_up(tmp_path, change):
    split, training = points(), Training(epochs=2, batch_size=16)
    train(network(), split, loss=cross_entropy, training=training, run=Run(), extras=Extras(folder=tmp_path))
    if change == "damage":
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:-100])
    training = Training(epochs=2, batch_size=16, lr=0.02) if change == "knobs" else training
    module, run = network(seed=9 if change == "weights" else 0), Run(seed=int(change == "seed"))
    fresh = copy.deepcopy(module)
    train(module, split, loss=cross_entropy, training=training, run=run, extras=Extras(folder=tmp_path))
    train(fresh, split, loss=cross_entropy, training=training, run=run)
    assert are_identical(weights(module), weights(fresh))


def test_shared_weights_are_stored_once_and_resumed(tmp_path):
    def tied():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        module[2].weight = module[0].weight
        return module

    split, training = points(), Training(epochs=3, batch_size=16)
    whole, module = tied(), tied()
    train(whole, split, loss=cross_entropy, training=training, run=Run())
    extras = Extras(after_step=stop_at(9), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(module, split, loss=cross_entropy, training=training, run=Run(), extras=extras)
    train(module, split, loss=cross_entropy, training=training, run=Run(), extras=Extras(folder=tmp_path))
    assert are_identical(weights(module), weights(whole))
    assert module[2].weight is module[0].weight


def losses(*values: float):
    """A validation that says these, one after the other, and remembers the weights it saw."""
    seen = []

    def validate(module: nn.Module) -> float:
        seen.append(weights(module))
        return values[len(seen) - 1]

    return validate, seen


def test_training_stops_early_and_keeps_the_best_weights():
    validate, seen = losses(0.9, 0.5, 0.1, 0.2, 0.1, 0.0)
    module = network()
    training = Training(epochs=10, batch_size=16, patience=2)
    done = train(module, points(), loss=cross_entropy, training=training, run=Run(), extras=Extras(validate))
    assert (done.kept, done.stopped_early, len(seen)) == (2, True, 5)
    assert are_identical(weights(module), seen[2])
    assert [epoch.validation for epoch in done.history] == [0.9, 0.5, 0.1, 0.2, 0.1]


def test_weights_that_training_only_made_worse_are_given_back():
    validate, seen = losses(0.1, 0.5, 0.6)
    module = network()
    done = train(module, points(), loss=cross_entropy, training=Training(epochs=2), run=Run(), extras=Extras(validate))
    assert done.kept == 0
    assert are_identical(weights(module), seen[0])


def test_the_last_weights_are_kept_where_that_is_asked():
    validate, seen = losses(0.1, 0.5, 0.6)
    module, training = network(), Training(epochs=2, keep="last")
    done = train(module, points(), loss=cross_entropy, training=training, run=Run(), extras=Extras(validate))
    assert done.kept == 2
    assert are_identical(weights(module), seen[2])


def test_a_validation_that_is_not_a_number_is_never_the_best():
    validate, _ = losses(math.nan, 0.2, math.nan)
    done = train(network(), points(), loss=cross_entropy, training=Training(epochs=2), run=Run(), extras=Extras(validate))
    assert (done.kept, [epoch.validation for epoch in done.history]) == (1, [None, 0.2, None])


def test_validation_sees_the_network_in_evaluation_mode_and_training_does_not():
    modes = []
    module = network()
    extras = Extras(lambda module: modes.append(module[3].training) or 0.0, lambda module, _: module[0].bias.sum() * 0)
    module[3].register_forward_hook(lambda layer, args, output: modes.append(layer.training))
    train(module, points(), loss=cross_entropy, training=Training(epochs=1, batch_size=48), run=Run(), extras=extras)
    assert modes == [False, True, True, False]
    assert not module.training


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_is_refused_and_leaves_the_weights_before(broken):
    def loss(module, batch):
        calls.append(1)
        value = cross_entropy(module, batch)
        if len(calls) < 9:
            return value
        # the square root of 0 has a finite value and an infinite slope
        return value * math.nan if broken == "loss" else value + (module[0].weight * 0).sum().sqrt()

    module, calls, kept = network(), [], []
    extras = Extras(lambda module: kept.append(weights(module)) or -float(len(kept)))
    training = Training(epochs=3, batch_size=16)
    with pytest.raises(UnfitError, match=f"{broken}.* at step 9 of 18; the weights of epoch 1 are kept.*lower lr"):
        train(module, points(), loss=loss, training=training, run=Run(), extras=extras)
    assert are_identical(weights(module), kept[1])
    assert all(value.grad is None for value in module.parameters())


def test_the_penalty_is_added_and_knows_how_far_training_is():
    seen = []

    def penalty(module, progress):
        seen.append(progress)
        return 7 * module.weight.sum()  # a slope of 7 for the weight, none for the bias

    module = line()
    knobs = Training(epochs=1, batch_size=2, lr=0.01, weight_decay=0.0, **CONSTANT)
    done = train(module, TO_ZERO, loss=mean_squared, training=knobs, run=Run(), extras=Extras(penalty=penalty))
    assert module.weight.item() == pytest.approx(2 - 0.01 * 1.9 * 17)
    assert module.bias.item() == pytest.approx(-0.01 * 1.9 * 6)
    assert done.history[1].loss == pytest.approx(10 + 14)
    train(line(), TO_ZERO, loss=mean_squared, training=Training(epochs=4), run=Run(), extras=Extras(penalty=penalty))
    assert seen[1:] == [0, 0.25, 0.5, 0.75]


def test_masks_put_on_after_each_step_hold_to_the_end():
    module, calls = network(), []
    mask = torch.rand(16, 6) > 0.5

    def put_on(step, progress):
        calls.append((step, progress))
        with torch.no_grad():
            module[0].weight.mul_(mask)

    extras = Extras(after_step=put_on)
    train(module, points(), loss=cross_entropy, training=Training(epochs=2, batch_size=48), run=Run(), extras=extras)
    assert calls == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert torch.equal(module[0].weight == 0, ~mask)


def test_the_average_of_the_weights_is_what_is_validated_and_kept():
    # decays of the first three steps are 1/10, 2/11 and 3/12, all below the 0.99 asked for
    steps, seen = [], []
    module = line()
    extras = Extras(
        lambda module: seen.append(module.weight.item()) or 0.0, after_step=lambda *_: steps.append(module.weight.item())
    )
    knobs = Training(epochs=3, batch_size=2, ema=0.99, keep="last", **CONSTANT)
    train(module, TO_ZERO, loss=mean_squared, training=knobs, run=Run(), extras=extras)
    average = 2.0
    for decay, value in zip((1 / 10, 2 / 11, 3 / 12), steps, strict=True):
        average = decay * average + (1 - decay) * value
    assert module.weight.item() == pytest.approx(average)
    assert seen[-1] == module.weight.item() != steps[-1]


def test_the_ledger_and_the_progress_tell_each_epoch():
    told = []

    class Told:
        def track(self, items, *, what, total):
            told.append((what(), total))
            yield from items
            told.append(what())

        def say(self, line):
            told.append(line)

    run = Run(progress=Told())
    split = points()
    extras = Extras(errors(split))
    done = train(network(), split, loss=cross_entropy, training=Training(epochs=2, batch_size=16), run=run, extras=extras)
    last = done.history[-1]
    assert told == [
        ("training, epoch 0 of 2", 12),
        f"training, epoch 2 of 2, loss {last.loss:.4g}, validation {last.validation:.4g}",
    ]
    assert [(entry["epoch"], entry["validation"]) for entry in run.ledger.entries] == [
        (epoch.number, epoch.validation) for epoch in done.history
    ]
    assert json.loads(json.dumps(run.ledger.entries)) == run.ledger.entries


def test_a_graph_in_which_batch_norm_is_frozen_by_a_literal_trains_like_its_module():
    split = images(count=32).test
    torch.manual_seed(0)
    module = Residual()
    module.drop.p = 0.0
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    graph = torch.export.export(module.eval(), (split.inputs[0][:2],), dynamic_shapes=dynamic).module()
    graph = copy.deepcopy(graph)
    training = Training(epochs=2, batch_size=8)
    for trained in (module, graph):
        train(trained, split, loss=cross_entropy, training=training, run=Run())
    # the same kernels in the same order; num_batches_tracked is counted by the module alone
    for name, value in graph.named_parameters():
        torch.testing.assert_close(value, module.get_parameter(name))
    torch.testing.assert_close(graph.get_buffer("norm.running_mean"), module.norm.running_mean)
    assert mode_literals(graph) == {False}


def mode_literals(graph):
    places = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}
    return {node.args[places[node.target]] for node in graph.graph.nodes if node.target in places}


def test_the_mode_of_a_graph_is_switched_at_every_operator_that_has_one():
    graph = torch.export.export(Residual().eval(), (torch.randn(2, 3, 16, 16),)).module()
    assert mode_literals(graph) == {False}
    set_training(graph, True)
    assert mode_literals(graph) == {True}
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(graph(x), graph(x))  # dropout is at work
    set_training(graph, True, freeze_norm=True)
    assert mode_literals(graph) == {True, False}
    set_training(graph, False)
    assert torch.equal(graph(x), graph(x))


def test_frozen_batch_norms_keep_their_statistics_and_train_their_scale():
    module = network()
    before = weights(module)
    training = Training(epochs=1, batch_size=16, freeze_norm=True)
    train(module, points(), loss=cross_entropy, training=training, run=Run())
    assert torch.equal(module[1].running_mean, before["1.running_mean"])
    assert not torch.equal(module[1].weight, before["1.weight"])


def test_tensorboard_is_given_every_step_and_validation(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    split = points()
    extras = Extras(errors(split), tensorboard=tmp_path)
    done = train(network(), split, loss=cross_entropy, training=Training(epochs=2, batch_size=16), run=Run(), extras=extras)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert events.Scalars("train/lr")[-1].value == pytest.approx(done.history[-1].lr)
    validated = [event.value for event in events.Scalars("validation/loss")]
    assert validated == pytest.approx([epoch.validation for epoch in done.history])


def test_a_missing_tensorboard_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard.*pip install 'lighten\[tensorboard\]'"):
        train(line(), TO_ZERO, loss=mean_squared, training=Training(), run=Run(), extras=Extras(tensorboard=tmp_path))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"lr": -1}, "lr must be > 0. Got -1."),
        ({"lr": "1e-3"}, "lr must be > 0. Got '1e-3'."),
        ({"lr": math.nan}, "lr must be > 0. Got nan."),
        ({"epochs": 0}, "epochs must be > 0. Got 0."),
        ({"epochs": None}, "epochs must be > 0. Got None."),
        ({"epochs": math.inf}, "epochs must be > 0. Got inf."),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1. Got 2.5."),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0. Got -0.1."),
        ({"warmup": 1.0}, "warmup must be in [0, 1). Got 1.0."),
        ({"final_lr": 2}, "final_lr must be in [0, 1]. Got 2."),
        ({"clip_norm": 0}, "clip_norm must be > 0. Got 0."),
        ({"patience": 0}, "patience must be an integer >= 1. Got 0."),
        ({"patience": True}, "patience must be an integer >= 1. Got True."),
        ({"ema": 1}, "ema must be in (0, 1). Got 1."),
        ({"optimizer": "adam"}, "Unknown optimizer 'adam'. Did you mean 'adamw'?"),
        ({"precision": "bf61"}, "Unknown precision 'bf61'. Did you mean 'bf16'?"),
    ],
)
def test_a_knob_out_of_range_is_refused_with_what_is_allowed(knobs, message):
    with pytest.raises(InputError) as caught:
        Training(**knobs)
    assert str(caught.value) == message


def test_what_cannot_be_trained_is_refused_before_the_first_step():
    empty = Tensors((torch.zeros(0, 1),), torch.zeros(0))
    frozen = line().requires_grad_(False)
    with pytest.raises(InputError, match="no examples"):
        train(line(), empty, loss=mean_squared, training=Training(), run=Run())
    with pytest.raises(UnfitError, match="no parameters to train"):
        train(frozen, TO_ZERO, loss=mean_squared, training=Training(), run=Run())
    with pytest.raises(InputError, match="patience needs a validation"):
        train(line(), TO_ZERO, loss=mean_squared, training=Training(patience=1), run=Run())
    with pytest.raises(UnfitError, match="does not depend on the weights"):
        train(line(), TO_ZERO, loss=lambda module, batch: torch.tensor(1.0), training=Training(), run=Run())
    with pytest.raises(InputError, match="no labels"):
        train(line(), Tensors(TO_ZERO.inputs), loss=loss_for("regression"), training=Training(), run=Run())
