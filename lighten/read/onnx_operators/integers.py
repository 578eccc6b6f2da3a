"""Quantized files: integers where ONNX has them, computed in float.

A constant that a DequantizeLinear reads becomes the float weight it stands for, so that layers behind it are ordinary layers. A
pair of QuantizeLinear and DequantizeLinear on an activation is torch's fake quantization, whose gradient passes straight
through.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_normalize import torch_type
from lighten.read.onnx_operators.layers import convolve, matmul
from lighten.read.onnx_operators.numbers import to_tensor
from lighten.read.onnx_operators.windows import Windows, windows_of

_UINT8 = 2  # TensorProto.UINT8
_NARROW = (torch.int8, torch.uint8, torch.int16)


def quantize(x: Tensor, scale: Any, zero: Any, *, dtype: torch.dtype, dim: int, block: int) -> Tensor:
    """round(x / scale) + zero, clamped to the type. Halves go to even."""
    scale, zero = (_along(value, x, dim, block) for value in (to_tensor(scale), to_tensor(0 if zero is None else zero)))
    limits = torch.iinfo(dtype)
    return torch.clamp(torch.round(x / scale) + zero, limits.min, limits.max).to(dtype)


def dequantize(x: Any, scale: Any, zero: Any, *, dim: int, block: int) -> Tensor:
    """(x - zero) scale."""
    x = to_tensor(x)
    scale, zero = (_along(value, x, dim, block) for value in (to_tensor(scale), to_tensor(0 if zero is None else zero)))
    found: Tensor = (x.to(torch.float32) - zero) * scale
    return found


def pass_through(x: Tensor, scale: float, zero: int, *, limits: list[int]) -> Tensor:
    """Quantized and dequantized."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, *limits)


def quantize_dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 over the range of x with zero in it: the codes, the scale, the zero point."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def matmul_integers(a: Any, b: Any, *, a_zero: Any, b_zero: Any) -> Tensor:
    """Exact as long as sums stay below 2^24, where float32 has all integers."""
    a, b = (to_tensor(x).to(torch.float32) for x in (a, b))
    a_zero = None if a_zero is None else to_tensor(a_zero).to(torch.float32)
    a = a if a_zero is None else a - (a_zero[..., None] if a_zero.dim() else a_zero)
    b = b if b_zero is None else b - to_tensor(b_zero).to(torch.float32)
    return matmul(a, b).to(torch.int32)


def convolve_integers(x: Any, weight: Any, zeros: list[Any], *, windows: Windows, groups: int) -> Tensor:
    """As `matmul_integers`."""
    x_zero, weight_zero = (0.0 if zero is None else to_tensor(zero).to(torch.float32) for zero in zeros)
    weight_zero = weight_zero.reshape(-1, *[1] * (weight.dim() - 1)) if isinstance(weight_zero, Tensor) else weight_zero
    return convolve(
        x.to(torch.float32) - x_zero, weight.to(torch.float32) - weight_zero, None, windows=windows, groups=groups
    ).to(torch.int32)


def _along(value: Tensor, x: Tensor, dim: int, block: int) -> Tensor:
    """A number for each index along `dim`, or for each block of them."""
    value = value.to(torch.float32)
    if block:
        return value.repeat_interleave(block, dim).narrow(dim, 0, x.shape[dim])
    if value.dim() != 1 or value.numel() == 1:
        return value.reshape(()) if value.numel() == 1 else value
    shape = [1] * x.dim()
    shape[dim] = -1
    return value.reshape(shape)


def _quantize(step: Step, build: Build) -> Value:
    zero = step.input(2)
    kind = _kind(zero, step)
    return build.emit(quantize, *step.inputs[:2], zero, dtype=kind, dim=step.get("axis", 1), block=step.get("block_size", 0))


def _kind(zero: Value, step: Step) -> torch.dtype:
    if isinstance(zero, fx.Node):
        zero = zero.meta["val"]
    kind = zero.dtype if isinstance(zero, Tensor) else torch_type(step.get("output_dtype", 0) or _UINT8)
    if kind not in (torch.int8, torch.uint8, torch.int16, torch.uint16):
        raise UnfitError(f"codes of type {str(kind).removeprefix('torch.')} are not read.")
    return kind


def _dequantize(step: Step, build: Build) -> Value:
    x, scale, zero = step.input(0), step.input(1), step.input(2)
    dim, block = step.get("axis", 1), step.get("block_size", 0)
    plain = _plain_pair(x, scale, zero, build)
    if plain is not None:
        return plain
    found = build.emit(dequantize, x, scale, zero, dim=dim, block=block)
    if isinstance(found, Tensor):
        build.keep(_name_of_codes(step.names[0]), found)
    return found


def _name_of_codes(name: str) -> str:
    """model.layer.weight_quantized, weight_codes and the like are layers' weights."""
    for ending in ("_quantized", "_codes", "_q", "_int8"):
        name = name.removesuffix(ending)
    return name


def _plain_pair(x: Value, scale: Value, zero: Value, build: Build) -> Value:
    """The fake quantization that a QuantizeLinear and this DequantizeLinear are together; None where they are not."""
    if not isinstance(x, fx.Node) or x.target is not quantize or not isinstance(scale, float):
        return None
    kind: Any = x.kwargs["dtype"]
    if kind not in _NARROW or x.args[1] != scale or not _same(x.args[2], zero, build):
        return None
    limits = torch.iinfo(kind)
    number = 0 if zero is None else int(to_tensor(zero).item())
    return build.emit(pass_through, x.args[0], scale, number, limits=[limits.min, limits.max])


def _same(first: Any, second: Any, build: Build) -> bool:
    if isinstance(first, fx.Node):  # a constant as the graph reads it
        return isinstance(second, Tensor) and build.attribute_of(second) is first
    return first is None and second is None


def _dynamic(step: Step, build: Build) -> tuple[Value, ...]:
    from lighten.read.onnx_operators.shapes import parts_of

    return parts_of(build.emit(quantize_dynamic, step.input(0)), 3, build)


def _matmul_integers(step: Step, build: Build) -> Value:
    return build.emit(matmul_integers, *step.inputs[:2], a_zero=step.input(2), b_zero=step.input(3))


def _conv_integers(step: Step, build: Build) -> Value:
    x, weight = step.inputs[:2]
    kernel = tuple((weight.meta["val"] if isinstance(weight, fx.Node) else weight).shape[2:])
    settings = {"windows": windows_of(step, kernel=kernel), "groups": step.get("group", 1)}
    return build.emit(convolve_integers, x, weight, [step.input(2), step.input(3)], **settings)


def _back(step: Step, build: Build, value: Value, place: int) -> Value:
    """Quantized by the scale and the zero point at these inputs."""
    scale, zero = step.input(place), step.input(place + 1)
    return build.emit(quantize, value, scale, zero, dtype=_kind(zero, step), dim=1, block=0)


def _qlinear_matmul(step: Step, build: Build) -> Value:
    a = build.emit(dequantize, *step.inputs[:3], dim=-2, block=0)
    b = build.emit(dequantize, *step.inputs[3:6], dim=-1, block=0)
    return _back(step, build, build.emit(matmul, a, b), 6)


def _qlinear_conv(step: Step, build: Build) -> Value:
    from lighten.read.onnx_operators.layers import OPERATORS as LAYERS

    x = build.emit(dequantize, *step.inputs[:3], dim=1, block=0)
    weight = build.emit(dequantize, *step.inputs[3:6], dim=0, block=0)
    bias = step.input(8)
    if bias is not None:
        scale = build.emit(_product, step.input(1), step.input(4))
        bias = build.emit(dequantize, bias, scale, None, dim=0, block=0)
    inner = Step("Conv", (x, weight, bias), step.names[:3], step.attributes, step.opset, step.path, step.outputs)
    return _back(step, build, LAYERS["Conv"](inner, build), 6)


def _product(a: Any, b: Any) -> Tensor:
    return to_tensor(a) * to_tensor(b)


def _on_floats(name: str) -> Callable[[Step, Build], Value]:
    """ONNX Runtime's operators on codes: A, its scale and zero, B, its scale and zero, the result's."""
    from lighten.read.onnx_operators.elementwise import binary

    def add(step: Step, build: Build) -> Value:
        a = build.emit(dequantize, *step.inputs[:3], dim=1, block=0)
        b = build.emit(dequantize, *step.inputs[3:6], dim=1, block=0)
        return _back(step, build, build.emit(binary, name, a, b), 6)

    return add


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "com.microsoft::QuantizeLinear": _quantize,
    "com.microsoft::DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integers,
    "ConvInteger": _conv_integers,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearConv": _qlinear_conv,
    "com.microsoft::QLinearAdd": _on_floats("Add"),
    "com.microsoft::QLinearMul": _on_floats("Mul"),
}
