"""Weights of few bits: solved for layer by layer, better than rounding to nearest, and small in the file."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from networks import Tensors, residual
from torch import nn

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.method import Compressed
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Calibrated, Quantize
from lighten.methods.quantize.rounding import SOLVERS

EDGE = 16


def smooth_images() -> Data:
    """Neighbouring pixels of real images are alike; only then can one weight make up for another."""
    noise = torch.randn(256, 3, EDGE + 4, EDGE + 4, generator=torch.Generator().manual_seed(1))
    pixels = torch.nn.functional.avg_pool2d(noise, 5, stride=1) * 5
    split = Tensors((pixels,), torch.zeros(256, dtype=torch.int64))
    return Data("images", "image-classification", "agreement", split, split, digest="images")


def network(width: int = 32) -> Model:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(*sizes, 3, padding=1) for sizes in pairwise((3, width, width, width, 5))]
    layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())][:-1]
    module = nn.Sequential(*layers).eval()
    return Model(module, (torch.zeros(2, 3, EDGE, EDGE),), Origin("module", "plain", dynamic=({0: "batch"},)))


def prepare(model: Model, **knobs: object) -> Calibrated:
    return Quantize(**knobs).prepare(model, trace(model), data=smooth_images(), run=Run())  # type: ignore[arg-type]


def realize(model: Model, **knobs: object) -> Compressed:
    prepared = prepare(model, **knobs)
    return prepared.realize(prepared.proposals()[0])


def noise(model: Model, compressed: Compressed) -> float:
    """Mean squared difference of the outputs on images that were not calibrated on, over the output's variance."""
    x = smooth_images().test.inputs[0].flip(-1)
    with torch.no_grad():
        signal = model.module(x)
        return float((compressed.graph(x) - signal).square().mean() / signal.var())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solving_leaves_less_noise_than_rounding_to_nearest(solver: str, bits: int) -> None:
    model = network()
    solved, rounded = (noise(model, realize(model, weights=bits, rounding=rounding)) for rounding in (solver, "nearest"))
    assert solved < 0.7 * rounded


def test_inner_layers_have_the_bits_that_were_asked_for_and_the_edges_eight() -> None:
    plan = prepare(residual(), weights=4).proposals()[0]
    assert {name: spec.weights for name, spec in plan.items() if type(spec) is Quant and spec.weights} == {
        **{"stem": 8, "depthwise": 4, "project": 4, "head": 8}
    }


def test_codes_stay_within_their_bits() -> None:
    compressed = realize(residual(), weights=3)
    codes = dict(compressed.graph.named_buffers())["project.weight_codes"]
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -4
    assert int(codes.max()) <= 3


def test_few_bits_stay_few_where_the_computation_goes_back_to_float() -> None:
    prepared = prepare(residual(), weights=4)
    stored = prepared.gentler("project", Quant(weights=4))
    assert stored == Quant(weights=4, activations=None)
    assert prepared.gentler("project", stored) == Keep()


@pytest.mark.parametrize("bits", [4, 2])
def test_the_file_shrinks_by_the_bits_and_computes_the_same(tmp_path: Path, bits: int) -> None:
    model = network(width=64)
    eight, few = (realize(model, weights=weights, rounding="gptq") for weights in (8, bits))
    sizes = [OnnxExporter().write(one, tmp_path / f"{number}.onnx").size_bytes for number, one in enumerate((eight, few))]
    # the two inner layers; a Cast with two names comes on top of each, zero points of 128 go where 8 bits would saturate
    saved = 2 * 64 * 64 * 9 * (8 - bits) // 8
    assert abs(sizes[0] - sizes[1] - saved) < 400
    x = smooth_images().test.inputs[0][:8]
    session = OnnxExporter().open(tmp_path / "1.onnx", Target(threads=1))
    wanted = few.graph(x)
    # integer kernels may round single codes the other way: a step of 1/255 of the range, or two
    torch.testing.assert_close(session(x), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.parametrize("knobs", [{"weights": 1}, {"weights": 9}, {"rounding": "up"}])
def test_widths_and_solvers_that_do_not_exist_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="must be one of"):
        Quantize(**knobs)  # type: ignore[arg-type]
