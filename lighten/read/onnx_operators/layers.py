"""Layers with weights: real torch modules where the weights are constants, so that every method finds them.

Dimension key: N batch, O output channels, I input channels, Q the places of a kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators.numbers import is_numbers, sizes, to_tensor
from lighten.read.onnx_operators.shapes import parts_of
from lighten.read.onnx_operators.windows import Windows, padded, windows_of

_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # of 2, 3, 4 and 5 dimensions
_ON_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_ON_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def convolve(x: Tensor, weight: Tensor, bias: Any, *, windows: Windows, groups: int) -> Tensor:
    """A convolution whose weight is computed."""
    x, padding = padded(x, windows)
    apply = _ON_CONV[len(windows.kernel) - 1]
    return apply(x, weight, None if bias is None else to_tensor(bias), windows.stride, padding, windows.dilation, groups)


def convolve_transposed(x: Tensor, weight: Tensor, bias: Any, **settings: Any) -> Tensor:
    """A transposed convolution whose weight is computed."""
    return _ON_TRANSPOSED[weight.dim() - 3](x, weight, None if bias is None else to_tensor(bias), **settings)


def pad_for(x: Tensor, windows: Windows) -> Tensor:
    """The zeros that a layer itself cannot add: more on one side than on the other, or as many as the size asks for."""
    return padded(x, windows, always=True)[0]


def crop(x: Tensor, amounts: list[int]) -> Tensor:
    """Takes away (or adds zeros, where negative) at the beginnings and ends of the last dimensions: [first, last] of each."""
    num_dims = len(amounts) // 2
    flat = [-amount for dim in reversed(range(num_dims)) for amount in amounts[2 * dim : 2 * dim + 2]]
    return functional.pad(x, flat)


def matmul(a: Any, b: Any) -> Tensor:
    """As numpy multiplies."""
    return torch.matmul(to_tensor(a), to_tensor(b))


def gemm(a: Tensor, b: Tensor, c: Any, *, factors: tuple[float, float], turned: tuple[bool, bool]) -> Tensor:
    """factors: of the product and of c. turned: whether a and b are transposed."""
    a, b = (x.t() if turn else x for x, turn in zip((a, b), turned, strict=True))
    found = a @ b if factors[0] == 1 else factors[0] * (a @ b)
    if c is None:
        return found
    return found + (to_tensor(c) if factors[1] == 1 else factors[1] * to_tensor(c))


def normalize(x: Tensor, *statistics: Any, eps: float) -> Tensor:
    """Batch normalization whose scale, shift, mean and variance are computed."""
    scale, shift, mean, var = statistics
    mean, var, scale, shift = (to_tensor(value) for value in (mean, var, scale, shift))
    return functional.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)


def normalize_layer(x: Tensor, scale: Any, shift: Any, *, dim: int, eps: float) -> Tensor:
    """Over the dimensions from `dim` on."""
    shape = list(x.shape[dim:])
    scale = to_tensor(scale).expand(shape)
    return functional.layer_norm(x, shape, scale, None if shift is None else to_tensor(shift).expand(shape), eps)


def layer_statistics(x: Tensor, scale: Any, shift: Any, *, dim: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `normalize_layer`, with the mean and the inverse of the deviation."""
    dims = tuple(range(dim % x.dim(), x.dim()))
    inverse = torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)
    return normalize_layer(x, scale, shift, dim=dim, eps=eps), x.mean(dims, keepdim=True), inverse


def normalize_mean(x: Tensor, dims: list[int]) -> Tensor:
    """Mean 0 and variance 1 over these dimensions; ONNX adds 1e-9 to the deviation."""
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, correction=0, keepdim=True) + 1e-9)


def normalize_rms(x: Tensor, scale: Any, *, dim: int, eps: float) -> Tensor:
    """x / root of the mean square over the dimensions from `dim` on, times the scale."""
    dims = tuple(range(dim % x.dim(), x.dim()))
    return torch.mul(x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps), to_tensor(scale))


def normalize_instance(x: Tensor, scale: Any, shift: Any, *, eps: float) -> Tensor:
    """Over the places of each channel of each example."""
    return functional.instance_norm(x, None, None, to_tensor(scale), to_tensor(shift), True, 0.0, eps)


def normalize_group(x: Tensor, scale: Any, shift: Any, *, groups: int, eps: float) -> Tensor:
    """Over the channels of a group; before version 21 the scale is one number a group."""
    scale, shift = (value.repeat_interleave(x.shape[1] // len(value)) for value in (to_tensor(scale), to_tensor(shift)))
    return functional.group_norm(x, groups, scale, shift, eps)


def normalize_response(x: Tensor, *, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Local response normalization over neighbouring channels."""
    wide = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
    wide = functional.pad(wide, (0, 0, (size - 1) // 2, size // 2))
    mean = functional.avg_pool2d(wide, (size, 1), stride=1).reshape(x.shape)
    return x / (bias + alpha * mean) ** beta


def normalize_length(x: Tensor, *, dim: int, order: int) -> Tensor:
    """Vectors along `dim` of length 1."""
    length = torch.linalg.vector_norm(x, order, dim, keepdim=True)
    return x / torch.where(length == 0, torch.ones_like(length), length)


def einsum(equation: str, *values: Any) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(equation, *(to_tensor(value) for value in values))


def det(x: Tensor) -> Tensor:
    """Determinants."""
    found: Tensor = torch.linalg.det(x)
    return found


def _conv(step: Step, build: Build) -> Value:
    x, weight, bias = step.input(0), step.input(1), step.input(2)
    groups, rank = step.get("group", 1), len(_shape(weight)) - 2
    windows = windows_of(step, kernel=tuple(_shape(weight)[2:]))
    if not (isinstance(weight, Tensor) and _is_learned(bias) and isinstance(x, fx.Node) and 1 <= rank <= 3):
        return build.emit(convolve, x, weight, bias, windows=windows, groups=groups)
    symmetric = windows.symmetric()
    x = x if symmetric is not None else build.emit(pad_for, x, windows)
    settings = {"stride": windows.stride, "padding": symmetric or 0, "dilation": windows.dilation, "groups": groups}
    with torch.device("meta"):
        layer = _CONVOLUTIONS[rank - 1](
            weight.shape[1] * groups, weight.shape[0], windows.kernel, bias=bias is not None, **settings
        )
    return _with_weights(layer, weight, bias, build=build, path=build.path_of(weight, step), x=x)


def _conv_transpose(step: Step, build: Build) -> Value:
    x, weight, bias = step.input(0), step.input(1), step.input(2)
    groups, rank = step.get("group", 1), len(_shape(weight)) - 2
    windows = windows_of(step, kernel=tuple(_shape(weight)[2:]))
    extra = list(step.get("output_padding", [0] * rank))
    cuts = _cuts(step, windows, extra, x)
    symmetric = all(first == last for first, last in zip(cuts[::2], cuts[1::2], strict=True)) and min(cuts) >= 0
    # torch takes an output padding below the stride only; what it cannot take is cropped afterwards
    fits = symmetric and all(more < max(s, d) for more, s, d in zip(extra, windows.stride, windows.dilation, strict=True))
    padding = tuple(cuts[::2]) if fits else (0,) * rank
    settings = {"stride": windows.stride, "padding": padding, "output_padding": tuple(extra) if fits else 0, "groups": groups}
    settings |= {"dilation": windows.dilation}
    if isinstance(weight, Tensor) and _is_learned(bias) and isinstance(x, fx.Node) and 1 <= rank <= 3:
        with torch.device("meta"):
            make = _TRANSPOSED[rank - 1]
            layer = make(weight.shape[0], weight.shape[1] * groups, windows.kernel, bias=bias is not None, **settings)
        found = _with_weights(layer, weight, bias, build=build, path=build.path_of(weight, step), x=x)
    else:
        found = build.emit(convolve_transposed, x, weight, bias, **settings)
    if fits:
        return found
    ends = [last - more for last, more in zip(cuts[1::2], extra, strict=True)]
    return build.emit(crop, found, [value for pair in zip(cuts[::2], ends, strict=True) for value in pair])


def _cuts(step: Step, windows: Windows, extra: list[int], x: Value) -> list[int]:
    """What is cut from the full result: [first, last] of each dimension, before the output padding is added."""
    rank = len(windows.kernel)
    full_Q = [d * (k - 1) + 1 for k, d in zip(windows.kernel, windows.dilation, strict=True)]
    wanted = step.get("output_shape")
    if wanted is None and windows.auto == "NOTSET":
        return [value for pair in zip(windows.before, windows.after, strict=True) for value in pair]
    if wanted is None and windows.auto == "VALID":
        return [0] * (2 * rank)
    given = _shape(x)[2:]
    wanted = [size * s for size, s in zip(given, windows.stride, strict=True)] if wanted is None else wanted[-rank:]
    cuts: list[int] = []
    for dim in range(rank):
        total = windows.stride[dim] * (given[dim] - 1) + extra[dim] + full_Q[dim] - wanted[dim]
        half = total // 2 if windows.auto == "SAME_UPPER" else total - total // 2
        cuts += [half, total - half]
    return cuts


def _with_weights(layer: Any, weight: Tensor, bias: Value, *, build: Build, path: str, x: Value) -> Value:
    layer.weight = build.parameter(weight)
    if bias is not None:
        layer.bias = build.parameter(to_tensor(bias))
    return build.layer(path, layer, x)


def _matmul(step: Step, build: Build) -> Value:
    x, weight = step.inputs
    is_layer = isinstance(weight, Tensor) and weight.dim() == 2 and weight.dtype == torch.float32 and len(_shape(x)) >= 2
    if not is_layer or not isinstance(x, fx.Node):
        return build.emit(matmul, x, weight)
    return _linear(x, weight.t(), None, build=build, path=build.path_of(weight, step))


def _gemm(step: Step, build: Build) -> Value:
    a, b, c = step.input(0), step.input(1), step.input(2)
    factors = (step.get("alpha", 1.0), step.get("beta", 1.0))
    turned = (bool(step.get("transA", 0)), bool(step.get("transB", 0)))
    is_plain = factors[0] == 1 and (c is None or factors[1] == 1) and not turned[0]
    is_layer = isinstance(b, Tensor) and b.dim() == 2 and b.dtype == torch.float32 and isinstance(a, fx.Node)
    if is_plain and is_layer and _is_learned(c):
        weight_OI = b if turned[1] else b.t()
        bias = None if c is None else to_tensor(c).float()
        if bias is None or (
            bias.numel() == len(weight_OI) and bias.dim() <= 1 + (bias.shape[0] == 1 if bias.dim() == 2 else 0)
        ):
            return _linear(a, weight_OI, bias, build=build, path=build.path_of(b, step))
    return build.emit(gemm, a, b, c, factors=factors, turned=turned)


def _linear(x: Value, weight_OI: Tensor, bias: Tensor | None, *, build: Build, path: str) -> Value:
    with torch.device("meta"):
        layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None)
    layer.weight = build.parameter(weight_OI)
    if bias is not None:
        layer.bias = build.parameter(bias if bias.dim() == 1 else bias.reshape(-1))
    return build.layer(path, layer, x)


def _batch_norm(step: Step, build: Build) -> Value:
    x, *statistics = step.inputs
    if step.get("training_mode", 0) or (step.opset < 9 and step.get("spatial", 1) != 1):
        raise UnfitError("batch normalization by the batch's own statistics is not read.")
    if not all(isinstance(value, Tensor) for value in statistics) or not isinstance(x, fx.Node):
        return build.emit(normalize, x, *statistics, eps=step.get("epsilon", 1e-5))
    scale_O, shift_O, mean_O, var_O = statistics
    # ONNX's momentum is what stays, torch's what comes in
    settings = {"eps": step.get("epsilon", 1e-5), "momentum": 1 - step.get("momentum", 0.9)}
    layer = _NORMS[min(len(_shape(x)), 5) - 2](len(scale_O), **settings)
    layer.weight, layer.bias = build.parameter(scale_O), build.parameter(shift_O)
    layer.running_mean, layer.running_var = mean_O.float().clone(), var_O.float().clone()
    return build.layer(build.path_of(scale_O, step), layer.eval(), x)


def _layer_norm(step: Step, build: Build) -> Value | tuple[Value, ...]:
    x, scale, shift = step.input(0), step.input(1), step.input(2)
    dim, eps = step.get("axis", -1), step.get("epsilon", 1e-5)
    if any(step.outputs[1:]):
        return parts_of(build.emit(layer_statistics, x, scale, shift, dim=dim, eps=eps), 3, build)
    fits = isinstance(scale, Tensor) and isinstance(x, fx.Node) and scale.dim() == len(_shape(x)[dim:])
    if not fits or tuple(scale.shape) != tuple(_shape(x)[dim:]) or not _is_learned(shift):
        return build.emit(normalize_layer, x, scale, shift, dim=dim, eps=eps)
    layer = nn.LayerNorm(tuple(scale.shape), eps=eps, bias=shift is not None)
    layer.weight = build.parameter(scale)
    if shift is not None:
        layer.bias = build.parameter(shift)
    return build.layer(build.path_of(scale, step), layer, x)


def _instance_norm(step: Step, build: Build) -> Value:
    return build.emit(normalize_instance, *step.inputs, eps=step.get("epsilon", 1e-5))


def _group_norm(step: Step, build: Build) -> Value:
    return build.emit(normalize_group, *step.inputs, groups=step.get("num_groups"), eps=step.get("epsilon", 1e-5))


def _rms_norm(step: Step, build: Build) -> Value:
    return build.emit(normalize_rms, *step.inputs, dim=step.get("axis", -1), eps=step.get("epsilon", 1e-5))


def _response(step: Step, build: Build) -> Value:
    settings = {"alpha": step.get("alpha", 1e-4), "beta": step.get("beta", 0.75), "bias": step.get("bias", 1.0)}
    return build.emit(normalize_response, step.input(0), size=step.get("size"), **settings)


def _dropout(step: Step, build: Build) -> Value | tuple[Value, ...]:
    ratio = step.setting("ratio", 1, 0.5)
    if not isinstance(step.input(0), fx.Node) or not isinstance(ratio, float):
        return step.input(0)
    if any(step.outputs[1:]):
        return step.input(0), build.emit(_all_true, step.input(0))
    return build.layer(step.path, nn.Dropout(min(max(ratio, 0.0), 1.0)).eval(), step.input(0))


def _all_true(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _is_learned(bias: Value) -> bool:
    return bias is None or (not isinstance(bias, fx.Node) and (not is_numbers(bias) or isinstance(bias, float)))


def _shape(value: Value) -> list[int]:
    found = value.meta.get("val") if isinstance(value, fx.Node) else value
    if found is None:
        raise UnfitError("the sizes here depend on the data.")
    return list(found.shape) if isinstance(found, Tensor) else [len(sizes(found))]


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "LRN": _response,
    "LpNormalization": lambda step, build: build.emit(
        normalize_length, step.input(0), dim=step.get("axis", -1), order=step.get("p", 2)
    ),
    "MeanVarianceNormalization": lambda step, build: build.emit(normalize_mean, step.input(0), step.get("axes", [0, 2, 3])),
    "Dropout": _dropout,
    "Einsum": lambda step, build: build.emit(einsum, step.get("equation"), *step.inputs),
    "Det": lambda step, build: build.emit(det, step.input(0)),
}
