import pytest
import torch
from networks import encoder, sentences

from lighten.analyze.trace import trace
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Quant
from lighten.methods.quantize.integer import Quantize
from lighten.methods.quantize.smooth import smooth


@pytest.mark.parametrize("alpha", [0.3, 0.75, 1.0])
def test_smoothing_leaves_the_float_function_unchanged(alpha: float) -> None:
    model, data = encoder(), sentences()
    graph = smooth(trace(model), data.test.batches(16), alpha=alpha)
    inputs = data.test.inputs
    # a product with s and one with 1 / s: two more float32 roundings
    torch.testing.assert_close(graph.module(*inputs), model.module(*inputs), rtol=1e-4, atol=1e-5)


def with_an_outlier() -> Model:
    """One channel of what `up` reads is far above the others."""
    model = encoder()
    with torch.no_grad():
        model.module.table.weight[:, 3] *= 50
        model.module.up.weight[:, 3] /= 50
    return model


def test_a_layer_that_eight_bits_would_ruin_is_offered_in_float_first_and_in_integers_last() -> None:
    model, data = with_an_outlier(), sentences()
    prepared = Quantize(smoothing=0.0).prepare(model, trace(model), data=data, run=Run())
    assert prepared.ruined == {"up"}
    dynamic, static, everything = prepared.proposals()
    assert [plan["up"] for plan in (dynamic, static)] == [Quant(activations=None)] * 2
    assert [plan["down"] for plan in (dynamic, static)] == [Quant(dynamic=True), Quant()]
    assert everything["up"] == Quant(dynamic=True)


def test_no_layer_of_a_plain_network_is_ruined() -> None:
    model, data = encoder(), sentences()
    assert Quantize().prepare(model, trace(model), data=data, run=Run()).ruined == frozenset()


def test_an_outlier_channel_costs_less_after_smoothing() -> None:
    model, data = with_an_outlier(), sentences()
    plan = Plan({"up": Quant(dynamic=True), "down": Quant(dynamic=True)})

    def noise(smoothing: float) -> float:
        prepared = Quantize(smoothing=smoothing, bias_correction=False).prepare(model, trace(model), data=data, run=Run())
        output = prepared.realize(plan).graph(*data.test.inputs)
        return float((output - model.module(*data.test.inputs)).square().mean())

    assert noise(0.75) < 0.5 * noise(0.0)
