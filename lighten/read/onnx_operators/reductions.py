"""Reductions over dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators.numbers import is_numbers, sizes, to_tensor

Dims = tuple[int, ...]


def reduce(name: str, x: Any, dims: Any, *, keep: bool, skip_none: bool) -> Any:
    """One of _REDUCTIONS over these dimensions; None or none: all of them, unless `skip_none`."""
    listed = None if dims is None else sizes(dims)
    if not listed and skip_none:
        return x
    if is_numbers(x) and name == "ReduceProd" and isinstance(x, list):
        found = 1
        for item in x:
            found = found * item
        return [found] if keep else found
    x = to_tensor(x)
    wanted = tuple(dim % max(x.dim(), 1) for dim in listed) if listed else tuple(range(x.dim()))
    return _REDUCTIONS[name](x, wanted, keep) if x.dim() else _REDUCTIONS[name](x.reshape(1), (0,), False)


def place(x: Tensor, dim: int, *, keep: bool, largest: bool, last: bool) -> Tensor:
    """The place of the extreme; of equal ones the first, or the last."""
    x = x.flip(dim) if last else x
    found = x.argmax(dim, keepdim=keep) if largest else x.argmin(dim, keepdim=keep)
    return x.shape[dim] - 1 - found if last else found


def _product(x: Tensor, dims: Dims, keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[[Tensor, Dims, bool], Tensor]:
    return lambda x, dims, keep: function(x, dims, keepdim=keep)


def _mean(x: Tensor, dims: Dims, keep: bool) -> Tensor:
    if (
        x.dim() == 4 and sorted(dims) == [2, 3] and x.dtype.is_floating_point
    ):  # the pool at the end of a network of convolutions
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return pooled if keep else pooled.flatten(1)
    return x.mean(dims, keepdim=keep) if x.dtype.is_floating_point else _sum(x, dims, keep) // _count(x, dims)


def _count(x: Tensor, dims: Dims) -> Any:
    count = 1
    for dim in dims:
        count = count * x.shape[dim]
    return count


def _sum(x: Tensor, dims: Dims, keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, Dims, bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme(torch.amax),
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _product,
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": lambda x, dims, keep: _sum(x * x, dims, keep).sqrt(),
    "ReduceLogSum": lambda x, dims, keep: _sum(x, dims, keep).log(),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep),
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
}


def _reduce(step: Step, build: Build) -> Value:
    settings = {"keep": bool(step.get("keepdims", 1)), "skip_none": bool(step.get("noop_with_empty_axes", 0))}
    return build.emit(reduce, step.op_type, step.input(0), step.setting("axes", 1), **settings)


def _place(step: Step, build: Build) -> Value:
    settings = {"largest": step.op_type == "ArgMax", "last": bool(step.get("select_last_index", 0))}
    return build.emit(place, step.input(0), step.get("axis", 0), keep=bool(step.get("keepdims", 1)), **settings)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "ArgMax": _place,
    "ArgMin": _place,
}
