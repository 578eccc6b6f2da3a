import pytest
import torch
from networks import encoder, sentences

from lighten.analyze.trace import trace
from lighten.core.run import Run
from lighten.methods.quantize.integer import Quantize
from lighten.methods.quantize.smooth import smooth


@pytest.mark.parametrize("alpha", [0.3, 0.75, 1.0])
def test_smoothing_leaves_the_float_function_unchanged(alpha: float) -> None:
    model, data = encoder(), sentences()
    graph = smooth(trace(model), data.test.batches(16), alpha=alpha)
    inputs = data.test.inputs
    # a product with s and one with 1 / s: two more float32 roundings
    torch.testing.assert_close(graph.module(*inputs), model.module(*inputs), rtol=1e-4, atol=1e-5)


def test_an_outlier_channel_costs_less_after_smoothing() -> None:
    model, data = encoder(), sentences()
    with torch.no_grad():
        model.module.table.weight[:, 3] *= 50  # one channel far above the others
        model.module.up.weight[:, 3] /= 50

    def noise(smoothing: float) -> float:
        prepared = Quantize(smoothing=smoothing, bias_correction=False).prepare(model, trace(model), data=data, run=Run())
        output = prepared.realize(prepared.proposals()[0]).graph(*data.test.inputs)
        return float((output - model.module(*data.test.inputs)).square().mean())

    assert noise(0.75) < 0.5 * noise(0.0)
