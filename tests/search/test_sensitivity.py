"""Harms by trial and from derivatives: known answers, and each other."""

import math

import pytest
import torch
from networks import Tensors, encoder, images, residual, sentences
from torch import nn

from lighten.analyze.trace import trace
from lighten.core.data import Batch
from lighten.core.model import Model, Origin
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Quant
from lighten.engine.memory import FolderMemory
from lighten.methods.quantize.integer import Quantize
from lighten.search.curvature import fisher_rises, hessian_traces, rounding_errors
from lighten.search.sensitivity import (
    SOLVED_ON,
    Answers,
    Effect,
    Trying,
    answers_to_judge_by,
    effects_alone,
    judged_on,
    mean_bits,
    weights_of,
)

WIDTHS = (8, 4, 2)


class Shifted(nn.Module):
    """The outputs x, and the same times a factor: what changes is known."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def two_classes(count: int = 40, *, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 2, generator=generator)
    return Batch((logits,), torch.arange(count) % 2 if labelled else None, tuple(range(count)))


def linear() -> Model:
    torch.manual_seed(0)
    return Model(
        nn.Sequential(nn.Linear(6, 3)).eval(), (torch.zeros(2, 6),), Origin("module", "linear", dynamic=({0: "batch"},))
    )


def test_no_change_has_no_effect() -> None:
    answers = Answers.of(Shifted(), [two_classes()], task="classification")
    assert answers.effect(Shifted()) == Effect(0.0, 0.0, 0.0)


def test_the_effect_of_a_factor_is_the_formula() -> None:
    batch = two_classes()
    answers = Answers.of(Shifted(), [batch], task="classification")
    effect = answers.effect(Shifted(0.5))
    (x,), target = batch.inputs, batch.target
    p, q = x.softmax(1), (0.5 * x).softmax(1)
    assert effect.noise == pytest.approx(0.25)
    assert effect.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    rise = nn.functional.cross_entropy(0.5 * x, target) - nn.functional.cross_entropy(x, target)
    assert effect.loss_rise == pytest.approx(float(rise), rel=1e-4)
    assert effect.harm == effect.kl


def test_batches_of_any_size_have_the_same_effect() -> None:
    whole = two_classes()
    parts = [
        Batch((whole.inputs[0][low:high],), whole.target[low:high], whole.index[low:high]) for low, high in ((0, 7), (7, 40))
    ]
    effects = [Answers.of(Shifted(), batches, task="classification").effect(Shifted(0.7)) for batches in ([whole], parts)]
    assert effects[0].noise == pytest.approx(effects[1].noise, rel=1e-5)
    assert effects[0].kl == pytest.approx(effects[1].kl, rel=1e-5)
    assert effects[0].loss_rise == pytest.approx(effects[1].loss_rise, rel=1e-4)


def test_without_labels_the_network_s_own_answers_are_the_labels() -> None:
    batch = two_classes(labelled=False)
    own = Batch(batch.inputs, batch.inputs[0].argmax(1), batch.index)
    effects = [Answers.of(Shifted(), [one], task="classification").effect(Shifted(0.5)) for one in (batch, own)]
    assert effects[0] == effects[1]
    assert effects[0].loss_rise > 0


def test_outputs_that_are_no_classes_have_noise_alone() -> None:
    batch = two_classes(labelled=False)
    effect = Answers.of(Shifted(), [batch], task="regression").effect(Shifted(0.5))
    assert effect == Effect(pytest.approx(0.25), None, None)
    assert effect.harm == effect.noise


def test_a_language_model_is_judged_by_token() -> None:
    ids = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0))
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(1))
    batch = Batch((ids,), None, tuple(range(4)))

    class Bigrams(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, ids):
            return self.factor * table[ids]

    effect = Answers.of(Bigrams(1.0), [batch], task="language-model").effect(Bigrams(0.5))
    logits = table[ids[:, :-1]].reshape(-1, 9)
    p, q = logits.softmax(1), (0.5 * logits).softmax(1)
    assert effect.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    expected = nn.functional.cross_entropy(0.5 * logits, ids[:, 1:].flatten()) - nn.functional.cross_entropy(
        logits, ids[:, 1:].flatten()
    )
    assert effect.loss_rise == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("count", "expected"), [(SOLVED_ON + 100, range(SOLVED_ON, SOLVED_ON + 20)), (64, range(44, 64)), (12, range(12))]
)
def test_examples_to_judge_on_are_others_than_codes_are_solved_on(count: int, expected: range) -> None:
    split = Tensors((torch.arange(count)[:, None],))
    judged = judged_on(split, most=20)
    assert [index for batch in judged.batches(8) for index in batch.index] == list(expected)
    assert len(judged) == len(expected)


@pytest.fixture(scope="module")
def prepared():
    data = images(200)
    model = residual()
    return Quantize().prepare(model, trace(model), data=data, run=Run())


def test_fewer_bits_do_more_harm_to_every_layer(prepared) -> None:
    (plan,) = prepared.proposals()
    weights = weights_of(prepared.graph, plan)
    assert list(weights) == ["stem", "depthwise", "project", "head"]
    assert weights["stem"] == 16 * 3 * 9
    answers = answers_to_judge_by(prepared, images(200))
    found = effects_alone(prepared, plan, weights, answers=answers, how=Trying(WIDTHS), run=Run())
    for effects in found.values():
        assert effects[0].noise < effects[1].noise < effects[2].noise
        assert effects[0].kl < effects[1].kl < effects[2].kl


def test_solved_codes_do_less_harm_than_the_nearest(prepared) -> None:
    (plan,) = prepared.proposals()
    answers = answers_to_judge_by(prepared, images(200))
    nearest, solved = (
        effects_alone(prepared, plan, ["project"], answers=answers, how=Trying((2,), repair=repair), run=Run())["project"][0]
        for repair in (False, True)
    )
    assert solved.kl < 0.5 * nearest.kl


def test_what_was_tried_is_remembered(prepared, tmp_path) -> None:
    (plan,) = prepared.proposals()
    run = Run(memory=FolderMemory(tmp_path, identity={}))
    answers = answers_to_judge_by(prepared, images(200))
    first = effects_alone(prepared, plan, ["head"], answers=answers, how=Trying(WIDTHS), run=run)
    assert effects_alone(None, plan, ["head"], answers=answers, how=Trying(WIDTHS), run=run) == first


def test_the_mean_width_counts_every_weight_once(prepared) -> None:
    (plan,) = prepared.proposals()
    weights = weights_of(prepared.graph, plan)
    assert mean_bits(prepared.graph, plan) == 8
    narrow = plan.with_widths({"head": 2})
    assert mean_bits(prepared.graph, narrow) == 8 - 6 * weights["head"] / sum(weights.values())
    assert mean_bits(prepared.graph, Plan()) == 32


def test_along_the_change_the_fisher_information_is_the_divergence_of_a_small_one() -> None:
    """One linear layer: the second order of KL is d'F d / 2 exactly, so a small step's divergence is known; drawn labels make
    the estimate's relative error about sqrt(2 / 4000).
    """
    model, split = linear(), Tensors((torch.randn(400, 6, generator=torch.Generator().manual_seed(1)),))
    graph = trace(model)
    change = 0.01 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    batches = [batch for _ in range(10) for batch in split.batches(1)]
    (rise,) = fisher_rises(graph, {"0": [change]}, batches=batches, task="classification", seed=0)["0"]
    x = split.inputs[0]
    with torch.no_grad():
        p = model.module(x).softmax(1)
        model.module[0].weight += change
        q = model.module(x).softmax(1)
    assert rise.along == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=0.1)


def test_the_diagonal_is_exact_where_only_one_weight_changes() -> None:
    graph = trace(linear())
    change = torch.zeros(3, 6)
    change[1, 2] = 0.1
    batches = list(Tensors((torch.randn(50, 6, generator=torch.Generator().manual_seed(1)),)).batches(1))
    (rise,) = fisher_rises(graph, {"0": [change]}, batches=batches, task="classification", seed=0)["0"]
    assert rise.along == pytest.approx(rise.diagonal, rel=1e-5)


def test_for_outputs_that_are_no_classes_the_rise_is_the_noise() -> None:
    """y = W x: the noise of d is |d x|^2 over |y|^2, whatever signs were drawn, in the mean."""
    model, x = linear(), torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    graph = trace(model)
    change = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    batches = Tensors((x,)).batches(1)
    (rise,) = fisher_rises(graph, {"0": [change]}, batches=batches, task="regression", seed=0)["0"]
    noise = float((x @ change.T).square().sum() / model.module(x).square().sum())
    assert rise.along == pytest.approx(noise, rel=4 * math.sqrt(2 / 500))


def test_the_trace_of_a_quadratic_is_known() -> None:
    """Mean of (y - y0)^2 over one output: the Hessian is 2 x x' / 1, its trace 2 |x|^2, its mean over weights that over 6."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(6, 1)).eval(), (torch.zeros(2, 6),), Origin("module", "l", dynamic=({0: "batch"},)))
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    traces = hessian_traces(trace(model), ["0"], batches=Tensors((x,)).batches(1), num_draws=4000, seed=0)
    assert traces["0"] == pytest.approx(2 * float(x.square().sum()) / 6, rel=0.1)


def test_estimates_rank_layers_as_trials_do(prepared) -> None:
    """At 4 bits the change is small enough for the second order: the order of the layers is that of the real divergence."""
    (plan,) = prepared.proposals()
    weights = weights_of(prepared.graph, plan)
    stored = Plan({site: Quant(activations=None) for site in weights})
    data = images(200)
    answers = answers_to_judge_by(prepared, data)
    tried = effects_alone(prepared, stored, weights, answers=answers, how=Trying((4,)), run=Run())
    changes = rounding_errors(prepared.graph, weights, widths=(4,))
    rises = fisher_rises(prepared.graph, changes, batches=data.calibration.batches(1), task=data.task, seed=0)
    truth = sorted(weights, key=lambda site: tried[site][0].kl)
    assert sorted(weights, key=lambda site: rises[site][0].along) == truth
    for site in weights:
        assert 0.3 < rises[site][0].along / tried[site][0].kl < 3


def test_a_text_encoder_has_its_linear_layers_tried() -> None:
    model, data = encoder(), sentences()
    text = Quantize().prepare(model, trace(model), data=data, run=Run())
    plan = text.proposals()[0]
    answers = answers_to_judge_by(text, data)
    found = effects_alone(text, plan, weights_of(text.graph, plan), answers=answers, how=Trying((8, 2)), run=Run())
    assert list(found) == ["up", "down"]
    assert all(effects[0].noise < effects[1].noise for effects in found.values())
    assert all(effect.kl is None for effects in found.values() for effect in effects)
