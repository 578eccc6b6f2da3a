"""The rewrites for int8 runtimes change no number but that of a rounded result. No runtime is needed to see that."""

import copy

import pytest
import torch
from networks import Tensors, encoder, images, residual, sentences
from torch import nn

from lighten.analyze.trace import tensor_of, trace
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.export.signed import (
    DEQUANTIZE,
    DEQUANTIZE_ROWS,
    QUANTIZE,
    drop_dynamic,
    fold_constants,
    is_dynamic,
    is_integer,
    to_signed,
)
from lighten.methods.quantize.integer import Quantize

aten = torch.ops.aten


def compressed(model, data, **knobs):
    prepared = Quantize(**knobs).prepare(model, trace(model), data=data, run=Run())
    return prepared.realize(prepared.proposals()[0])


def signed(made):
    return to_signed(copy.deepcopy(made.graph), made.outputs)


def nodes(graph, target):
    return [node for node in graph.graph.nodes if node.target is target]


@pytest.mark.parametrize("knobs", [{}, {"weights": 4, "activations": 4}])
def test_only_the_result_is_rounded_and_to_half_a_step_at_most(knobs) -> None:
    made = compressed(residual(), images(), **knobs)
    inputs = images().calibration.inputs
    (scale, _), *_ = made.outputs.values()
    assert list(made.outputs) == ["linear"]
    # calibration saw these examples through the float network: the quantized one's results leave the range by its own noise
    assert (signed(made)(*inputs) - made.graph(*inputs)).abs().median() <= scale / 2


def test_every_code_is_int8_over_the_whole_type() -> None:
    graph = signed(compressed(residual(), images(), weights=4, activations=4))
    rounded = nodes(graph, QUANTIZE) + nodes(graph, DEQUANTIZE)
    assert {node.args[3:] for node in rounded} == {(-128, 127, torch.int8)}


def test_few_bits_are_clipped_in_place_of_an_activation_that_cuts_less() -> None:
    made = compressed(residual(), images(), activations=4)
    assert len(nodes(made.graph, aten.relu6.default)) == 2
    graph = signed(made)
    clips = nodes(graph, aten.hardtanh.default)
    assert clips
    for clip in clips:
        (reader,) = clip.users
        scale, zero = reader.args[1:3]
        low, high = (round(end / scale) + zero for end in clip.args[1:])
        assert (low, high) == (-128, -113)  # 16 codes


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        both = torch.cat([self.left(x), 3 * self.right(x)], 1)
        return self.head(self.last(nn.functional.max_pool2d(both, 2)).mean((2, 3)))


def joined() -> tuple[Model, Data]:
    torch.manual_seed(0)
    split = Tensors((torch.randn(16, 3, 8, 8),))
    data = Data("joined", "regression", "mse", split, split, digest="joined")
    return Model(Joined().eval(), (torch.randn(2, 3, 8, 8),), Origin("module", "joined", dynamic=({0: "batch"},))), data


def test_joins_maxima_and_means_get_the_forms_that_kernels_know() -> None:
    model, data = joined()
    made = compressed(model, data)
    graph = signed(made)
    (join,) = nodes(graph, aten.cat.default)
    (reader,) = join.users
    assert {part.args[1:] for part in join.args[0]} == {reader.args[1:]}
    (maximum,) = nodes(graph, aten.max_pool2d.default)
    (reader,) = maximum.users
    assert reader.target is QUANTIZE
    assert reader.args[1:] == maximum.args[0].args[1:]
    (mean,) = nodes(graph, aten.mean.dim)
    assert mean.args[2] is True
    (reader,) = mean.users
    assert reader.target is QUANTIZE
    inputs = data.test.inputs
    (scale, _), *_ = made.outputs.values()
    assert (graph(*inputs) - made.graph(*inputs)).abs().median() <= scale / 2


def test_dynamic_layers_lose_their_rounding_where_a_kernel_brings_its_own() -> None:
    graph = signed(compressed(encoder(), sentences()))
    assert sum(is_dynamic(node) for node in graph.graph.nodes) == 2
    assert drop_dynamic(graph) == ["up.weight", "down.weight"]
    assert not any("quantize_per_tensor" in str(node.target) or is_integer(node) for node in graph.graph.nodes)


def test_constants_fold_but_what_is_kept_and_nothing_unread_stays() -> None:
    made = compressed(residual(), images(), activations="float")
    graph = copy.deepcopy(made.graph)
    inputs, expected = images().test.inputs, made.graph(*images().test.inputs)
    fold_constants(graph, keeps=lambda node: node.target is DEQUANTIZE_ROWS and "stem" in node.args[0].target)
    assert len(nodes(graph, DEQUANTIZE_ROWS)) == 1
    torch.testing.assert_close(graph(*inputs), expected, rtol=1e-6, atol=1e-6)
    assert tensor_of(graph, "stem.weight_codes").dtype is torch.int8
    assert not any(name.endswith("weight_codes") and "stem" not in name for name, _ in graph.named_buffers())
