"""Rewrites on the quantized torch graph, so that ONNX can say what it means.

* A linear layer becomes a product with the transposed codes: ONNX Runtime has integer kernels for MatMul with a constant
right side,
  but leaves a transpose between the codes and the product in float.
* Average pooling to one value becomes GlobalAveragePool.
* A dynamically quantized linear layer becomes DynamicQuantizeLinear and MatMulInteger.
* Activations of fewer than 8 bits are uint8 codes that are clipped after rounding: the same numbers as rounding to the narrow
  grid, and the integer kernels on both sides of the Clip stay.

Dimension key: O outputs, I inputs of a linear layer.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.export import packed
from lighten.export.packed import pack_weights

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
_MOST_CODE = 255
_ROUNDING = 1e-5  # of a scale in float32
# by operator, the bounds where the node gives none
_CLIPS: dict[Any, tuple[float | None, float | None]] = {
    aten.relu.default: (0.0, None),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-1.0, 1.0),
    aten.clamp.default: (None, None),
}


def lower(module: fx.GraphModule, *, plain: bool = False) -> fx.GraphModule:
    """The same function in ONNX's terms; changes `module` in place and returns it. plain: without operators that are ONNX
    Runtime's own.
    """
    pack_weights(module, plain=plain)
    for node in list(module.graph.nodes):
        if node.target is quantized.quantize_per_tensor.default and node.args[4] < _MOST_CODE:
            _clip_codes(module, node)
        if _is_global_average(node):
            node.target, node.args = torch.ops.lighten.global_average.default, node.args[:1]
        if node.target is not aten.linear.default:
            continue
        weight = node.args[1]
        if weight.target is quantized.dequantize_per_channel.default:
            source = node.args[0]
            is_dynamic = source.target is quantized.dequantize_per_tensor.tensor
            is_static = source.target is quantized.dequantize_per_tensor.default
            if is_dynamic or is_static:
                _lower_linear(module, node, dynamic=is_dynamic)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _clip_codes(module: fx.GraphModule, node: fx.Node) -> None:
    """round, clip to [0, 255], clip to [0, high]: in this order, as one node cannot say it."""
    arguments: Any = node.args
    value, scale, zero, low, high, dtype = arguments
    readers = list(node.users)
    with module.graph.inserting_after(node):
        clipped = module.graph.call_function(aten.clamp.default, (node, low, high))
    if len(value.users) == 1 and clips_no_more(value, low=-zero * scale, high=(high - zero) * scale):
        value = value.args[0]
    for reader in (node, *readers):
        first = value if reader is node else clipped
        reader.args = (first, scale, zero, 0, _MOST_CODE, dtype)


def clips_no_more(value: fx.Node, *, low: float, high: float) -> bool:
    """True for an activation that cuts nothing off which the codes do not. Left in float, it would keep the convolution before
    it from being one integer kernel with the rounding.
    """
    if value.target not in _CLIPS:
        return False
    bounds: list[Any] = [*value.args[1:3], *_CLIPS[value.target][len(value.args) - 1 :]]
    least, most = (default if given is None else given for given, default in zip(bounds, (-math.inf, math.inf), strict=True))
    return bool(least <= low and high <= most * (1 + _ROUNDING))


def translations(*, plain: bool = False) -> dict[Callable[..., Any], Any]:
    """Our operators in ONNX, for torch.onnx.export(custom_translation_table=...). plain: a product whose range is found at run
    time says only that its weights are codes; the runtime itself decides whether to round what flows in.
    """
    from onnxscript import opset20 as op

    def dynamic_linear(x: Any, codes_IO: Any, scale_O: Any) -> Any:
        codes, scale, zero = op.DynamicQuantizeLinear(x)
        product = op.Cast(op.MatMulInteger(codes, codes_IO, zero), to=1)
        return op.Mul(product, op.Mul(scale, scale_O))

    def stored_linear(x: Any, codes_IO: Any, scale_O: Any) -> Any:
        return op.MatMul(x, op.DequantizeLinear(codes_IO, scale_O, axis=1))

    def global_average(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    return {
        **packed.translations(),
        torch.ops.lighten.dynamic_linear.default: stored_linear if plain else dynamic_linear,
        torch.ops.lighten.global_average.default: global_average,
    }


@torch.library.custom_op("lighten::dynamic_linear", mutates_args=())
def _dynamic_linear(x: Tensor, codes_IO: Tensor, scale_O: Tensor) -> Tensor:
    """x @ (codes * scale) with x rounded to 8 bits over its own range."""
    eps = torch.finfo(torch.float32).eps
    scale, zero = quantized.choose_qparams.tensor(x, 0, 255, eps, torch.uint8)
    codes = quantized.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)
    rounded = quantized.dequantize_per_tensor.tensor(codes, scale, zero, 0, 255, torch.uint8)
    return torch.matmul(rounded, codes_IO.float() * scale_O)


@_dynamic_linear.register_fake
def _(x: Tensor, codes_IO: Tensor, scale_O: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes_IO.shape[1])


@torch.library.custom_op("lighten::global_average", mutates_args=())
def _global_average(x: Tensor) -> Tensor:
    """The mean over all dimensions but the first two, kept as size 1."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@_global_average.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], *[1] * (x.dim() - 2))


def _is_global_average(node: fx.Node) -> bool:
    """ONNX Runtime averages int8 in GlobalAveragePool, not in the ReduceMean that the exporter writes."""
    return node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]  # type: ignore[arg-type]


def _lower_linear(module: fx.GraphModule, node: fx.Node, *, dynamic: bool) -> None:
    source, weight = node.args[0], node.args[1]
    codes, scale, zero = weight.args[:3]  # type: ignore[union-attr]
    name = f"{codes.target}_transposed"  # type: ignore[union-attr]
    set_tensor(module, name, tensor_of(module, str(codes.target)).t().contiguous())  # type: ignore[union-attr]
    with module.graph.inserting_before(node):
        codes_IO = module.graph.get_attr(name)
        if dynamic:
            value = source.args[0].args[0]  # type: ignore[union-attr]
            product = module.graph.call_function(torch.ops.lighten.dynamic_linear.default, (value, codes_IO, scale))
            bias = node.args[2] if len(node.args) > 2 else None
            result = product if bias is None else module.graph.call_function(aten.add.Tensor, (product, bias))
        else:
            facts = (codes_IO, scale, zero, 1, -127, 127, torch.int8)
            weight_IO = module.graph.call_function(quantized.dequantize_per_channel.default, facts)
            result = _product(module, node, weight_IO)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _product(module: fx.GraphModule, node: fx.Node, weight_IO: fx.Node) -> fx.Node:
    """Two-dimensional layers become one Gemm, the only form whose bias ONNX Runtime adds in integers."""
    source, bias = node.args[0], node.args[2] if len(node.args) > 2 else None
    if bias is not None and node.meta["val"].dim() == 2:
        return module.graph.call_function(aten.addmm.default, (bias, source, weight_IO))
    product = module.graph.call_function(aten.matmul.default, (source, weight_IO))
    return product if bias is None else module.graph.call_function(aten.add.Tensor, (product, bias))
