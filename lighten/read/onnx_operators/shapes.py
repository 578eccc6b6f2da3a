"""Operators that move elements and change shapes, and those that compute with shapes.

Shapes are numbers here (numbers.py); a shape that comes as a tensor depends on data.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value, constant
from lighten.read.onnx_operators.numbers import is_numbers, like, size, sizes, to_tensor

_WINDOWS = {"HannWindow": (0.5, -0.5), "HammingWindow": (25 / 46, -21 / 46), "BlackmanWindow": (0.42, -0.5, 0.08)}
_PADDINGS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def shape(x: Any, start: int, end: int | None) -> list[Any]:
    """The sizes of the dimensions from `start` to `end`."""
    return list(x.shape)[start:end] if isinstance(x, Tensor) else ([len(x)] if isinstance(x, list) else [])[start:end]


def num_elements(x: Any) -> Any:
    """The product of all sizes."""
    return math.prod(shape(x, 0, None))


def reshape(x: Any, new: Any, *, keep_zeros: bool) -> Any:
    """A 0 among the sizes stands for the size that is there, unless `keep_zeros`."""
    wanted = sizes(new)
    if is_numbers(x):
        if len(wanted) == 0:
            return size(x)
        if len(wanted) == 1:
            return sizes(x)
        x = to_tensor(x)
    if not keep_zeros:
        wanted = [x.shape[dim] if isinstance(item, int) and item == 0 else item for dim, item in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Tensor, dim: int) -> Tensor:
    """To two dimensions: those before `dim`, and the others."""
    dim = dim if dim >= 0 else x.dim() + dim
    if dim == 0:
        return x.reshape(1, -1)
    return x.flatten(1) if dim == 1 and x.dim() > 1 else x.reshape(math.prod(x.shape[:dim]), math.prod(x.shape[dim:]))


def squeeze(x: Any, dims: list[int] | None) -> Any:
    """Without these dimensions of size 1, or without all that have it."""
    if is_numbers(x):
        return size(x)
    dims = [dim for dim, number in enumerate(x.shape) if number == 1] if dims is None else dims
    bad = [dim for dim in dims if x.shape[dim] != 1]
    if bad:
        raise ValueError(f"the size of dimension {bad[0]} is {x.shape[bad[0]]}, not 1")
    return x.squeeze(tuple(dims)) if dims else x


def unsqueeze(x: Any, dims: list[int]) -> Any:
    """With dimensions of size 1 at these places of the result."""
    if is_numbers(x):
        if not isinstance(x, list) and len(dims) == 1:
            return [x]
        x = to_tensor(x)
    rank = x.dim() + len(dims)
    for dim in sorted(dim if dim >= 0 else dim + rank for dim in dims):
        x = x.unsqueeze(dim)
    return x


def transpose(x: Any, dims: list[int] | None) -> Any:
    """In the order of `dims`, or reversed."""
    return x if is_numbers(x) else x.permute(tuple(reversed(range(x.dim()))) if dims is None else tuple(dims))


def expand(x: Any, new: Any) -> Tensor:
    """Broadcast against the shape; sizes of 1 in it keep what is there."""
    x, wanted = to_tensor(x), sizes(new)
    lead = max(len(wanted) - x.dim(), 0)
    given = [1] * lead + list(x.shape)
    wanted = [1] * (len(given) - len(wanted)) + wanted
    found: Tensor = x.expand([b if isinstance(a, int) and a == 1 else a for a, b in zip(given, wanted, strict=True)])
    return found


def tile(x: Any, repeats: Any) -> Any:
    """Repeated so often in each dimension."""
    return to_tensor(x).repeat(sizes(repeats))


def concat(values: list[Any], dim: int) -> Any:
    """Side by side."""
    if all(is_numbers(value) for value in values):
        return [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    kind = next(value for value in values if isinstance(value, Tensor))
    return torch.cat([like(value, kind) for value in values], dim)


def stack(values: list[Any]) -> Any:
    """One behind the other in a new first dimension."""
    if all(is_numbers(value) and not isinstance(value, list) for value in values):
        return list(values)
    return torch.stack([to_tensor(value) for value in values])


def split(x: Any, parts: list[Any] | int, dim: int) -> Any:
    """parts: sizes, or how many; the last of equal parts is smaller where they do not fit."""
    if isinstance(parts, int):
        length = len(x) if isinstance(x, list) else x.shape[dim]
        step = -(-length // parts)
        parts = [step] * (parts - 1) + [length - step * (parts - 1)]
    if is_numbers(x):
        ends = [sum(parts[: number + 1]) for number in range(len(parts))]
        return tuple(x[end - part : end] for part, end in zip(parts, ends, strict=True))
    return torch.split(x, parts, dim)


def full(new: Any, value: Any) -> Any:
    """A vector of integers as numbers, where it is short."""
    wanted = sizes(new)
    number = value.reshape(()).item() if isinstance(value, Tensor) else size(value)
    kind = value.dtype if isinstance(value, Tensor) else to_tensor(value).dtype
    is_short = len(wanted) == 1 and isinstance(wanted[0], int) and wanted[0] <= 16
    if is_short and kind in (torch.int32, torch.int64):
        return [number] * wanted[0]
    return torch.full(wanted, number, dtype=kind)


def arange(start: Any, limit: Any, delta: Any) -> Tensor:
    """From `start`, below `limit`."""
    kind = next((value.dtype for value in (start, limit, delta) if isinstance(value, Tensor)), None)
    return torch.arange(size(start), size(limit), size(delta), dtype=kind)


def take(x: Any, ranges: list[tuple[int, Any, Any, int]]) -> Any:
    """Slices: dimension, start, end, step of each."""
    if is_numbers(x):
        _, start, end, step = ranges[0]
        return x[slice(start, end, step)] if step > 0 else x[_reversed(len(x), start, end, step)]
    for dim, start, end, step in ranges:
        if step > 0:
            x = x[(slice(None),) * (dim % x.dim()) + (slice(start, end, step),)]
        else:
            cut = _reversed(x.shape[dim], start, end, step)
            index = torch.arange(cut.start, -1 if cut.stop is None else cut.stop, step, device=x.device)
            x = x.index_select(dim, index)
    return x


def _reversed(length: Any, start: Any, end: Any, step: int) -> slice:
    """Of a slice that runs backwards: places clamped as ONNX says, None for the end before the first."""
    start = start + length if start < 0 else start
    end = end + length if end < 0 else end
    last = min(max(end, -1), length - 1)
    return slice(min(max(start, 0), length - 1), None if last == -1 else last, step)


def slice_ranges(x: Any, starts: Any, ends: Any, *, axes: Any, steps: Any) -> Any:
    """As `take`, with all that it needs as numbers."""
    starts, ends = sizes(starts), sizes(ends)
    axes = list(range(len(starts))) if axes is None else sizes(axes)
    steps = [1] * len(starts) if steps is None else sizes(steps)
    return take(x, list(zip(axes, starts, ends, steps, strict=True)))


def pad(x: Tensor, amounts: Any, mode: str, *, value: float, axes: list[int] | None) -> Tensor:
    """amounts: at the beginnings of all dimensions, then at the ends; negative ones cut."""
    wide = sizes(amounts)
    dims = list(range(x.dim())) if axes is None else [dim % x.dim() for dim in axes]
    before, after = dict(zip(dims, wide, strict=False)), dict(zip(dims, wide[len(dims) :], strict=True))
    flat: list[Any] = []
    for dim in reversed(range(x.dim())):
        flat += [before.get(dim, 0), after.get(dim, 0)]
    while len(flat) > 2 and all(isinstance(item, int) and item == 0 for item in flat[-2:]):
        del flat[-2:]
    if mode == "constant":
        return functional.pad(x, flat, value=value)
    for number in range(len(flat) // 2):  # torch pads the last dimensions alone, and not all of them at once
        x = _pad_one(x, x.dim() - 1 - number, flat[2 * number : 2 * number + 2], mode)
    return x


def _pad_one(x: Tensor, dim: int, amounts: list[Any], mode: str) -> Tensor:
    if all(isinstance(item, int) and item == 0 for item in amounts):
        return x
    wide = x.movedim(dim, -1)
    if any(isinstance(item, int) and item < 0 for item in amounts):
        wide, amounts = functional.pad(wide, [min(item, 0) for item in amounts]), [max(item, 0) for item in amounts]
    lead = wide.shape[:-1]
    whole = functional.pad(wide.reshape(1, -1, wide.shape[-1]), amounts, mode=_PADDINGS[mode])
    return whole.reshape(*lead, whole.shape[-1]).movedim(-1, dim)


def depth_to_space(x_NCHW: Tensor, block: int, mode: str) -> Tensor:
    """Blocks of channels become blocks of pixels; DCR: the block is the outer part of the channels, CRD: the inner one."""
    if mode == "CRD":
        return functional.pixel_shuffle(x_NCHW, block)
    n, c, h, w = x_NCHW.shape
    wide = x_NCHW.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return wide.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x_NCHW: Tensor, block: int, mode: str) -> Tensor:
    """The inverse of `depth_to_space`."""
    if mode == "CRD":
        return functional.pixel_unshuffle(x_NCHW, block)
    n, c, h, w = x_NCHW.shape
    wide = x_NCHW.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return wide.reshape(n, c * block**2, h // block, w // block)


def eye(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    """Ones on the k-th diagonal, in the shape of x."""
    row, column = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
    return (column - row == k).to(dtype or x.dtype)


def window(name: str, length: Any, *, periodic: bool) -> Tensor:
    """Hann, Hamming or Blackman."""
    count = size(length)
    place = torch.arange(count, dtype=torch.float32) * (2 * math.pi / (count if periodic else count - 1))
    terms = _WINDOWS[name]
    return sum(factor * torch.cos(number * place) for number, factor in enumerate(terms))  # type: ignore[return-value]


def reverse(x: Tensor, lengths: Tensor, *, batch_dim: int, time_dim: int) -> Tensor:
    """The first `lengths` steps of each example backwards."""
    wide = x.movedim((batch_dim, time_dim), (0, 1))
    time_T, length_B1 = torch.arange(wide.shape[1]), to_tensor(lengths)[:, None]
    index_BT = torch.where(time_T < length_B1, length_B1 - 1 - time_T, time_T)
    index = index_BT.reshape(*index_BT.shape, *[1] * (wide.dim() - 2)).expand(wide.shape)
    return wide.gather(1, index).movedim((0, 1), (batch_dim, time_dim))


def parts_of(value: Value, count: int, build: Build) -> tuple[Value, ...]:
    """The results of a function that gives several."""
    return tuple(build.emit(operator.getitem, value, number) for number in range(count))


def _split(step: Step, build: Build) -> tuple[Value, ...]:
    parts = step.numbers("split", 1)
    made = build.emit(split, step.input(0), parts or step.get("num_outputs", len(step.outputs)), step.get("axis", 0))
    return parts_of(made, len(step.outputs), build)


def _full(step: Step, build: Build) -> Value:
    return build.emit(full, step.input(0), step.get("value", torch.zeros(1)))


def _slice(step: Step, build: Build) -> Value:
    starts, ends, axes = step.setting("starts", 1), step.setting("ends", 2), step.setting("axes", 3)
    return build.emit(slice_ranges, step.input(0), starts, ends, axes=axes, steps=step.input(4))


def _pad(step: Step, build: Build) -> Value:
    amounts, value = step.setting("pads", 1), step.setting("value", 2, 0.0)
    mode = step.get("mode", "constant")
    if mode != "constant" and mode not in _PADDINGS:
        raise UnfitError(f"padding of the kind {mode!r} is not read.")
    number = constant(value, "padding value")
    number = number.item() if isinstance(number, Tensor) else number
    return build.emit(pad, step.input(0), amounts, mode, value=number, axes=step.numbers("axes", 3))


def _eye(step: Step, build: Build) -> Value:
    from lighten.read.onnx_normalize import torch_type

    kind = step.get("dtype")
    return build.emit(eye, step.input(0), step.get("k", 0), None if kind is None else torch_type(kind))


def _reverse(step: Step, build: Build) -> Value:
    dims = {"batch_dim": step.get("batch_axis", 1), "time_dim": step.get("time_axis", 0)}
    return build.emit(reverse, *step.inputs, **dims)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "Shape": lambda step, build: build.emit(shape, step.input(0), step.get("start", 0), step.get("end")),
    "Size": lambda step, build: build.emit(num_elements, step.input(0)),
    "Reshape": lambda step, build: build.emit(
        reshape, step.input(0), step.setting("shape", 1), keep_zeros=bool(step.get("allowzero", 0))
    ),
    "Flatten": lambda step, build: build.emit(flatten, step.input(0), step.get("axis", 1)),
    "Squeeze": lambda step, build: build.emit(squeeze, step.input(0), step.numbers("axes", 1)),
    "Unsqueeze": lambda step, build: build.emit(unsqueeze, step.input(0), step.numbers("axes", 1)),
    "Transpose": lambda step, build: build.emit(transpose, step.input(0), step.get("perm")),
    "Expand": lambda step, build: build.emit(expand, *step.inputs),
    "Tile": lambda step, build: build.emit(tile, *step.inputs[:2]),
    "Concat": lambda step, build: build.emit(concat, list(step.inputs), step.get("axis", 1)),
    "Split": _split,
    "ConstantOfShape": _full,
    "Range": lambda step, build: build.emit(arange, *step.inputs),
    "Slice": _slice,
    "Pad": _pad,
    "DepthToSpace": lambda step, build: build.emit(
        depth_to_space, step.input(0), step.get("blocksize"), step.get("mode", "DCR")
    ),
    "SpaceToDepth": lambda step, build: build.emit(
        space_to_depth, step.input(0), step.get("blocksize"), step.get("mode", "DCR")
    ),
    "EyeLike": _eye,
    **dict.fromkeys(
        _WINDOWS, lambda step, build: build.emit(window, step.op_type, step.input(0), periodic=bool(step.get("periodic", 1)))
    ),
    "ReverseSequence": _reverse,
}
