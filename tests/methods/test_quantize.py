"""The int8 method on networks with the patterns of real ones."""

from dataclasses import replace

import pytest
import torch
from networks import encoder, frames, images, recurrent, residual, sentences

from lighten.analyze.trace import tensor_of, trace
from lighten.core.errors import InputError, UnfitError
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant, Spec
from lighten.methods.quantize.bias import fake_quantized
from lighten.methods.quantize.integer import Quantize
from lighten.ops.ranges import RANGES


def prepare(model, data, **knobs):
    return Quantize(**knobs).prepare(model, trace(model), data=data, run=Run())


def sqnr_db(signal: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(signal.square().sum() / (signal - other).square().sum()))


def count(graph: torch.fx.GraphModule, name: str) -> int:
    return sum(name in str(node.target) for node in graph.graph.nodes)


def test_an_empty_plan_changes_nothing() -> None:
    model, data = residual(), images()
    x = data.test.inputs[0]
    kept = prepare(model, data).realize(Plan()).graph
    torch.testing.assert_close(kept(x), model.module(x), rtol=1e-4, atol=1e-5)


def test_every_site_of_a_small_mobile_network_becomes_int8() -> None:
    prepared = prepare(residual(), images())
    (plan,) = prepared.proposals()
    assert set(plan) == {"stem", "depthwise", "project", "add", "adaptive_avg_pool2d", "head"}
    graph = prepared.realize(plan).graph
    assert count(graph, "dequantize_per_channel") == 4
    assert all(tensor.dtype == torch.int8 for name, tensor in graph.named_buffers() if name.endswith("_codes"))


# 8 bits give about 6.02 * 8 - 7 = 41 dB for one rounding of a Gaussian spread over +-4 sigma (arXiv:2106.08295, section 2); a
# handful of roundings in a row costs 10 log10(number of roundings), so 25 dB leaves room for over twenty
@pytest.mark.parametrize("ranges", RANGES)
def test_int8_is_close_to_float(ranges: str) -> None:
    model, data = residual(), images()
    prepared = prepare(model, data, ranges=ranges)
    x = data.test.inputs[0]
    floor = {"moving_average": 15, "entropy": 15}.get(ranges, 25)  # these two clip on purpose
    assert sqnr_db(model.module(x), prepared.realize(prepared.proposals()[0]).graph(x)) > floor


def test_no_quantize_node_stands_between_convolution_and_relu6() -> None:
    prepared = prepare(residual(), images())
    graph = prepared.realize(prepared.proposals()[0]).graph
    clips = [node for node in graph.graph.nodes if "relu6" in str(node.target)]
    assert len(clips) == 2
    assert all("conv2d" in str(node.args[0].target) for node in clips)


def test_bias_correction_restores_the_channel_means() -> None:
    model, data = residual(), images()
    x = data.test.inputs[0][:16]  # the examples that correction takes

    def shift(correct: bool) -> float:
        prepared = prepare(model, data, bias_correction=correct, weight_ranges="minmax")
        output = prepared.realize(prepared.proposals()[0]).graph(x)
        return float((output - model.module(x)).mean(0).abs().max())

    # the mean is matched on these very inputs: what remains is that biases are whole numbers of the accumulator's unit
    assert shift(False) > 10 * shift(True)


def test_biases_are_whole_numbers_of_the_accumulators_unit() -> None:
    prepared = prepare(residual(), images(), weights=2, activations=2)
    graph = prepared.realize(prepared.proposals()[0]).graph
    node = next(node for node in graph.graph.nodes if node.name == "conv2d_2")
    unit_O = node.args[0].args[1] * tensor_of(graph, "project.weight_scale")
    counts_O = tensor_of(graph, "project.bias").detach() / unit_O
    torch.testing.assert_close(counts_O, counts_O.round(), rtol=0, atol=1e-4)
    assert (counts_O.abs() > 0.5).any()


def test_a_transformer_is_offered_dynamic_ranges_first() -> None:
    prepared = prepare(encoder(), sentences())
    first, second = prepared.proposals()
    assert first["up"] == Quant(dynamic=True)
    assert first["table"] == Quant(activations=None)
    assert second["up"] == Quant()


def test_codes_are_solved_on_inputs_that_are_rounded_over_the_range_of_each_example() -> None:
    prepared = prepare(encoder(), sentences(), activations="dynamic")
    graph = prepared.realize(prepared.proposals()[0], repair=False).graph
    inputs = tuple(value[:4] for value in sentences().test.inputs)

    class Solving(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            return fake_quantized(self, n)

    with torch.no_grad():
        one_at_a_time = torch.cat([graph(*(value[row : row + 1] for value in inputs)) for row in range(4)])
        solving, together = Solving(graph).run(*inputs), graph(*inputs)
    torch.testing.assert_close(solving, one_at_a_time, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, one_at_a_time, rtol=1e-4, atol=1e-5)  # one range for all four


def test_an_embedding_holds_codes_and_reads_only_the_rows_asked_for() -> None:
    model, data = encoder(), sentences()
    prepared = prepare(model, data)
    graph = prepared.realize(Plan({"table": Quant(activations=None)})).graph
    x = data.test.inputs
    assert sqnr_db(model.module(*x), graph(*x)) > 35
    names = {name for name, _ in graph.named_buffers()} | {name for name, _ in graph.named_parameters()}
    assert "table.weight_codes" in names
    assert not any(str(node.target) == "table.weight" for node in graph.graph.nodes)


def test_recurrent_weights_are_stored_in_int8() -> None:
    model, data = recurrent(), frames()
    prepared = prepare(model, data)
    (plan,) = prepared.proposals()
    assert plan["lstm"] == Quant(activations=None)
    assert plan["up"] == Quant(activations=None)
    x = data.test.inputs[0]
    assert sqnr_db(model.module(x), prepared.realize(plan).graph(x)) > 25


def test_gentler_goes_from_computing_to_storing_to_float() -> None:
    prepared = prepare(residual(), images())
    assert prepared.gentler("stem", Quant()) == Quant(activations=None)
    assert prepared.gentler("stem", Quant(activations=None)) == Keep()
    assert prepared.gentler("add", Quant(weights=None)) == Keep()


def test_two_runs_with_one_seed_are_equal_bit_for_bit() -> None:
    def tensors() -> dict[str, torch.Tensor]:
        prepared = prepare(residual(), images())
        return dict(prepared.realize(prepared.proposals()[0]).graph.named_buffers())

    first, second = tensors(), tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "spec",
    [Quant(weights=1), Quant(activations=1), Quant(group=8), Quant(symmetric=False)],
)
def test_what_int8_does_not_do_is_refused(spec: Spec) -> None:
    prepared = prepare(encoder(), sentences())
    with pytest.raises(UnfitError, match=r"up \(linear\) cannot become"):
        prepared.realize(Plan({"up": spec}))


def test_a_site_that_cannot_take_its_spec_is_refused() -> None:
    prepared = prepare(encoder(), sentences())
    with pytest.raises(UnfitError, match=r"table \(embedding\) cannot become Quant.*weights only"):
        prepared.realize(Plan({"table": Quant()}))


def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'stem'"):
        prepare(residual(), images()).realize(Plan({"sten": Quant()}))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"bits": 7}, "bits must be one of 8. Got 7"),
        ({"ranges": "max"}, "ranges must be one of 'minmax'"),
        ({"percentile": 30}, r"percentile must be in \(50, 100\]. Got 30"),
        ({"samples": 0}, "samples must be an integer >= 1. Got 0"),
        ({"activations": "int8"}, "activations must be one of None, 2, 3, 4, 5, 6, 7, 8, 'dynamic', 'float'. Got 'int8'"),
    ],
)
def test_bad_knobs_are_refused(knobs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quantize(**knobs)


def test_nan_in_calibration_data_is_refused_with_the_tensor() -> None:
    data = images()
    data.test.inputs[0][3] = float("nan")
    with pytest.raises(InputError, match="Calibration met NaN or infinity at"):
        prepare(residual(), data)


def test_a_network_that_is_quantized_already_is_refused() -> None:
    prepared = prepare(residual(), images())
    once = prepared.realize(prepared.proposals()[0])
    with pytest.raises(UnfitError, match="is quantized already"):
        prepare(replace(residual(), module=once.graph), images())
