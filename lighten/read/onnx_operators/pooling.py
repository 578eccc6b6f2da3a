"""Pools: the largest, the mean or the norm of each window.

torch pads a pool by at most half its kernel, and the same on both sides; everything else is padded before.
Dimension key: N batch, C channels, Q places of a kernel, one dimension each.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators.shapes import parts_of
from lighten.read.onnx_operators.windows import Windows, windows_of

_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_MEAN = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_GLOBAL = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)


def max_pool(x: Tensor, windows: Windows, *, ceil: bool) -> Tensor:
    """The largest of each window. ceil: the last window may reach beyond the end."""
    rank = len(windows.kernel)
    amounts = windows.amounts(x.shape)
    if _fits(amounts, windows):
        padding = tuple(first for first, _ in amounts)
        return _MAX[rank - 1](x, windows.kernel, windows.stride, padding, windows.dilation, ceil_mode=ceil)
    lowest = float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    wide = functional.pad(x, [amount for pair in reversed(amounts) for amount in pair], value=lowest)
    return _MAX[rank - 1](wide, windows.kernel, windows.stride, 0, windows.dilation, ceil_mode=ceil)


def max_places(x: Tensor, windows: Windows, *, ceil: bool, columns_first: bool) -> tuple[Tensor, Tensor]:
    """The largest of each window, and their places in the whole tensor."""
    rank = len(windows.kernel)
    amounts = windows.amounts(x.shape)
    if not _fits(amounts, windows):
        raise UnfitError("places of a pool that pads unevenly are not read.")
    padding = tuple(first for first, _ in amounts)
    values, place = _MAX[rank - 1](x, windows.kernel, windows.stride, padding, windows.dilation, ceil, True)
    if columns_first and rank == 2:
        height, width = x.shape[-2:]
        place = place % width * height + place // width
    area = math.prod(x.shape[2:])
    image = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return values, place + image * area


def mean_pool(x: Tensor, windows: Windows, *, ceil: bool, count_padding: bool) -> Tensor:
    """The mean of each window, padding counted or not."""
    rank = len(windows.kernel)
    amounts = windows.amounts(x.shape)
    if _fits(amounts, windows) and set(windows.dilation) == {1} and not (ceil and count_padding):
        padding = tuple(first for first, _ in amounts)
        return _MEAN[rank - 1](x, windows.kernel, windows.stride, padding, ceil, count_padding)
    flat = [amount for pair in reversed(amounts) for amount in pair]
    ones = torch.ones_like(x[:1, :1])
    counted = functional.pad(ones, flat, value=float(count_padding))
    wide = functional.pad(x, flat)
    more = _beyond(x, amounts, windows) if ceil else [0] * (2 * rank)
    wide, counted = functional.pad(wide, more), functional.pad(counted, more)
    return _sums(wide, windows) / _sums(counted, windows)


def norm_pool(x: Tensor, windows: Windows, *, order: int, ceil: bool) -> Tensor:
    """The p-norm of each window."""
    amounts = windows.amounts(x.shape)
    wide = functional.pad(x, [amount for pair in reversed(amounts) for amount in pair])
    wide = functional.pad(wide, _beyond(x, amounts, windows)) if ceil else wide
    return _sums(wide.abs() ** order, windows) ** (1 / order)


def global_pool(name: str, x: Tensor, order: int) -> Tensor:
    """Over all places of each channel."""
    dims = tuple(range(2, x.dim()))
    if name == "GlobalMaxPool":
        return x.amax(dims, keepdim=True)
    if name == "GlobalLpPool":
        length: Tensor = torch.linalg.vector_norm(x, order, dims, keepdim=True)
        return length
    return _GLOBAL[len(dims) - 1](x, 1) if 1 <= len(dims) <= 3 else x.mean(dims, keepdim=True)


def unpool(x: Tensor, place: Tensor, *, shape: list[int]) -> Tensor:
    """Each value at its place in the whole tensor, zeros elsewhere."""
    flat = torch.zeros(math.prod(shape), dtype=x.dtype, device=x.device)
    return flat.scatter(0, place.reshape(-1), x.reshape(-1)).reshape(shape)


def _fits(amounts: list[tuple[Any, Any]], windows: Windows) -> bool:
    """Whether torch's pools can pad like this themselves."""
    return all(
        isinstance(first, int) and first == last and 0 <= first <= k // 2
        for (first, last), k in zip(amounts, windows.kernel, strict=True)
    )


def _beyond(x: Tensor, amounts: list[tuple[Any, Any]], windows: Windows) -> list[Any]:
    """What the last windows need behind the padding; those that would begin in it are left out."""
    flat: list[Any] = []
    for dim in reversed(range(len(windows.kernel))):
        span = windows.dilation[dim] * (windows.kernel[dim] - 1) + 1
        size, stride = x.shape[2 + dim] + sum(amounts[dim]), windows.stride[dim]
        count = -(-(size - span) // stride) + 1
        count = count - 1 if (count - 1) * stride >= size - amounts[dim][1] else count
        flat += [0, (count - 1) * stride + span - size]
    return flat


def _sums(x: Tensor, windows: Windows) -> Tensor:
    rank = len(windows.kernel)
    ones = torch.ones(1, 1, *windows.kernel, dtype=x.dtype, device=x.device)
    wide = x.reshape(-1, 1, *x.shape[2:])
    found = _CONVOLVE[rank - 1](wide, ones, None, windows.stride, 0, windows.dilation)
    return found.reshape(*x.shape[:2], *found.shape[2:])


def _windows(step: Step) -> Windows:
    kernel = tuple(step.get("kernel_shape") or ())
    if not 1 <= len(kernel) <= 3:
        raise UnfitError(f"a pool with a kernel of {len(kernel)} dimensions is not read.")
    return windows_of(step, kernel=kernel)


def _max_pool(step: Step, build: Build) -> Value | tuple[Value, ...]:
    ceil = bool(step.get("ceil_mode", 0))
    if any(step.outputs[1:]):
        settings = {"ceil": ceil, "columns_first": bool(step.get("storage_order", 0))}
        return parts_of(build.emit(max_places, step.input(0), _windows(step), **settings), 2, build)
    return build.emit(max_pool, step.input(0), _windows(step), ceil=ceil)


def _mean_pool(step: Step, build: Build) -> Value:
    settings = {"ceil": bool(step.get("ceil_mode", 0)), "count_padding": bool(step.get("count_include_pad", 0))}
    return build.emit(mean_pool, step.input(0), _windows(step), **settings)


def _norm_pool(step: Step, build: Build) -> Value:
    return build.emit(norm_pool, step.input(0), _windows(step), order=step.get("p", 2), ceil=bool(step.get("ceil_mode", 0)))


def _unpool(step: Step, build: Build) -> Value:
    wanted = step.numbers("output_shape", 2)
    if wanted is None:
        given = list(step.input(0).meta["val"].shape)
        windows = _windows(step)
        each = zip(given[2:], windows.kernel, windows.stride, windows.before, windows.after, strict=True)
        wanted = given[:2] + [(size - 1) * s + k - first - last for size, k, s, first, last in each]
    return build.emit(unpool, *step.inputs[:2], shape=wanted)


def _global(step: Step, build: Build) -> Value:
    return build.emit(global_pool, step.op_type, step.input(0), step.get("p", 2))


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "MaxPool": _max_pool,
    "AveragePool": _mean_pool,
    "LpPool": _norm_pool,
    "MaxUnpool": _unpool,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global),
}
