"""Multiply-accumulates of one ATen operator, from the shapes of what flows in and out. One MAC is two FLOPs.

Only products that are summed count: convolutions, matrix products, attention, recurrent cells. Additions, activations,
normalization and look-ups are zero, as in torch.utils.flop_counter, with which the tests compare.

Dimension key: L queries, S keys, E query features, V value features, I inner (summed) size.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Arguments = tuple[Any, ...]
Count = Callable[[Arguments, Any], int]


def _convolution(arguments: Arguments, output: Tensor) -> int:
    """Each output value sums over a kernel of input channels / groups."""
    weight: Tensor = arguments[1]
    return output.numel() * math.prod(weight.shape[1:])


def _transposed_convolution(arguments: Arguments, output: Tensor) -> int:
    """Each input value is spread over a kernel of output channels / groups."""
    inputs: Tensor = arguments[0]
    weight: Tensor = arguments[1]
    return inputs.numel() * math.prod(weight.shape[1:])


def _any_convolution(arguments: Arguments, output: Tensor) -> int:
    transposed = arguments[6]
    return (_transposed_convolution if transposed else _convolution)(arguments, output)


def _product(arguments: Arguments, output: Tensor) -> int:
    """Each output value sums over the last dimension of the first factor."""
    return output.numel() * int(arguments[0].shape[-1])


def _product_and_sum(arguments: Arguments, output: Tensor) -> int:
    return _product(arguments[1:], output)


def _attention(arguments: Arguments, output: Tensor) -> int:
    """Scores over E features, then a weighted sum of V features, for every pair; a causal mask saves nothing."""
    shape_LE, shape_SE, shape_SV = (tuple(map(int, tensor.shape)) for tensor in arguments[:3])
    num_pairs = math.prod(shape_LE[:-1]) * shape_SE[-2]
    return num_pairs * (shape_LE[-1] + shape_SV[-1])


def _recurrent(arguments: Arguments, output: Any) -> int:
    """Every weight matrix is applied once to every step of every sequence (also the projections of an LSTM)."""
    inputs: Tensor = arguments[0]
    weights: list[Tensor] = arguments[2]
    return math.prod(inputs.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _recurrent_cell(arguments: Arguments, output: Any) -> int:
    return _recurrent((arguments[0], arguments[1], arguments[2:4]), output)


def _einsum(arguments: Arguments, output: Any) -> int:
    """One MAC for each combination of the labels of two operands; other numbers of operands and `...` are not counted."""
    equation, operands = arguments[:2]
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(operands) != 2 or "..." in equation:
        return 0
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        sizes |= zip(term, operand.shape, strict=True)
    return math.prod(sizes.values())


COUNTS: dict[Any, Count] = {
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.convolution.default: _any_convolution,
    aten.linear.default: _product,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.matmul.default: _product,
    aten.mv.default: _product,
    aten.dot.default: _product,
    aten.addmm.default: _product_and_sum,
    aten.baddbmm.default: _product_and_sum,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
    aten.lstm_cell.default: _recurrent_cell,
    aten.gru_cell.default: _recurrent_cell,
    aten.rnn_tanh_cell.default: _recurrent_cell,
    aten.rnn_relu_cell.default: _recurrent_cell,
}


def macs(operator: Any, arguments: Arguments, *, output: Any) -> int:
    """Multiply-accumulates of one call, the whole batch. operator: an ATen overload; zero for one that is not in COUNTS.

    arguments: as in the graph, with tensors (fake ones will do) in place of nodes. output: what the call gives.
    """
    count = COUNTS.get(operator)
    return count(arguments, output) if count else 0
