"""Activations of fewer than 8 bits: few levels in the graph, integer kernels in the file, the same numbers in both."""

from pathlib import Path

import pytest
import torch
from networks import images, residual
from torch import fx

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize import sites
from lighten.methods.quantize.integer import Calibrated, Quantize

_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def prepare(**knobs: object) -> Calibrated:
    model = residual()
    return Quantize(**knobs).prepare(model, trace(model), data=images(), run=Run())  # type: ignore[arg-type]


class Levels(fx.Interpreter):
    """By reader, the number of distinct values of each quantized tensor that it reads."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.target is _DEQUANTIZE:
            self.counts |= {user.name: len(result.unique()) for user in n.users}
        return result


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_inner_layers_read_no_more_levels_than_their_bits_have(bits: int) -> None:
    prepared = prepare(activations=bits, rounding="nearest")
    levels = Levels(prepared.realize(prepared.proposals()[0]).graph)
    levels.run(*images().test.inputs)
    assert levels.counts["conv2d_1"] <= 2**bits
    assert levels.counts["conv2d_2"] <= 2**bits
    assert levels.counts["pad"] > 16  # the first layer keeps 8 bits
    assert levels.counts["linear"] > 16  # and the last


def test_a_tensor_has_the_width_of_its_most_demanding_reader() -> None:
    prepared = prepare(activations=4)
    widths = sites.widths(prepared.graph, prepared.proposals()[0])
    assert widths["relu6"] == (8, 4)  # read by a 4-bit convolution and, around it, by an addition in 8 bits
    assert widths["relu6_1"] == (4,)
    assert widths["conv2d_2"] == (8,)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_file_computes_the_same_on_integer_kernels(tmp_path: Path, bits: int) -> None:
    prepared = prepare(weights=4, activations=bits)
    compressed = prepared.realize(prepared.proposals()[0])
    exporter = OnnxExporter()
    exporter.write(compressed, tmp_path / "few.onnx")
    x = images().test.inputs[0]
    expected = compressed.graph(x)
    made = exporter.open(tmp_path / "few.onnx", Target())(x)
    # a sum that ties may round either way: one code of the last 8-bit tensor, averaged
    assert (made - expected).abs().max() < 0.02 * expected.abs().max()
    counted = exporter.operators(tmp_path / "few.onnx")
    assert counted["Conv:int8"] == 3
    assert "Conv:fp32" not in counted
    assert counted["Clip:int8"] >= 1


def test_a_layer_goes_back_to_eight_bits_of_activations_first() -> None:
    prepared = prepare(weights=4, activations=4)
    steps = [spec := Quant(4, 4)]
    while spec != Keep():
        steps.append(spec := prepared.gentler("project", spec))  # type: ignore[arg-type]
    assert steps == [Quant(4, 4), Quant(4, 8), Quant(4, None), Keep()]


@pytest.mark.parametrize("bits", [1, 0, 9, 4.0, True])
def test_widths_that_do_not_exist_are_refused(bits: object) -> None:
    with pytest.raises(InputError, match="activations must be one of"):
        Quantize(activations=bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [Quant(None, 4), Quant(4, 4, dynamic=True), Quant(8, 1)])
def test_sites_without_weights_and_dynamic_ranges_have_eight_bits(spec: Quant) -> None:
    site = "add" if spec.weights is None else "head"
    with pytest.raises(UnfitError, match=f"{site} .* cannot become"):
        prepare().realize(Plan({site: spec}))
