"""Operators that take elements by their places, and those that put them there.

Dimension key: O entries of a table, E their width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators.numbers import is_numbers, size, to_tensor
from lighten.read.onnx_operators.shapes import parts_of

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(x: Any, index: Any, dim: int) -> Any:
    """The entries along `dim` at these places, counted from the end where negative."""
    if is_numbers(x):
        if is_numbers(index):
            return [x[item] for item in index] if isinstance(index, list) else x[index]
        x = to_tensor(x)
    if is_numbers(index) and not isinstance(index, list):
        return x.select(dim, index)
    index = to_tensor(index).to(torch.int64)
    dim = dim if dim >= 0 else dim + x.dim()
    flat = x.index_select(dim, torch.where(index < 0, index + x.shape[dim], index).reshape(-1))
    return flat.reshape(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])


def gather_elements(x: Tensor, index: Any, dim: int) -> Tensor:
    """For each place of the index, the entry of x at the same place but along `dim`."""
    return x.gather(dim, _places(to_tensor(index), x.shape[dim]))


def gather_nd(x: Any, index: Any, num_batch: int) -> Tensor:
    """The last dimension of the index holds places in x's dimensions behind the first `num_batch`, which they share."""
    x, index = to_tensor(x), to_tensor(index)
    places = _batch_places(index.shape, num_batch) + list(index.unbind(-1))
    found: Tensor = x[tuple(places)]
    return found


def scatter_elements(x: Tensor, index: Any, updates: Any, *, dim: int, reduction: str) -> Tensor:
    """x with the updates at the places that `gather_elements` would read."""
    places = _places(to_tensor(index), x.shape[dim])
    updates = to_tensor(updates).to(x.dtype)
    if reduction == "none":
        return x.scatter(dim, places, updates)
    return x.scatter_reduce(dim, places, updates, _REDUCTIONS[reduction])


def scatter_nd(x: Any, index: Any, updates: Any, *, reduction: str) -> Tensor:
    """x with the updates at the places that `gather_nd` would read."""
    x, index = to_tensor(x), to_tensor(index)
    updates = to_tensor(updates).to(x.dtype)
    places = tuple(_places(part, x.shape[dim]) for dim, part in enumerate(index.unbind(-1)))
    if reduction in ("none", "add"):
        placed: Tensor = x.index_put(places, updates, accumulate=reduction == "add")
        return placed
    flat_index = torch.zeros_like(places[0])
    for dim, part in enumerate(places):
        flat_index = flat_index * x.shape[dim] + part
    num_dims = len(places)
    flat = x.reshape(-1, *x.shape[num_dims:])
    found: Tensor = flat.index_reduce(0, flat_index.reshape(-1), updates.reshape(-1, *flat.shape[1:]), _REDUCTIONS[reduction])
    return found.reshape(x.shape)


def one_hot(index: Any, depth: Any, values: Any, *, dim: int) -> Tensor:
    """values: off and on. A place outside -depth to depth - 1 has no 1."""
    off, on = to_tensor(values).unbind()
    index, depth = (
        to_tensor(index).to(torch.int64),
        int(size(depth)) if not isinstance(size(depth), torch.SymInt) else size(depth),
    )
    hot = torch.where(index < 0, index + depth, index).unsqueeze(-1) == torch.arange(depth)
    return torch.where(hot, on, off).movedim(-1, dim)


def top(x: Tensor, k: Any, dim: int, *, largest: bool, ordered: bool) -> tuple[Tensor, Tensor]:
    """The k largest or smallest entries and their places; of equal ones any, where ONNX has the first."""
    values, places = torch.topk(to_tensor(x), size(k), dim=dim, largest=largest, sorted=ordered)
    return values, places


def nonzero(x: Any) -> Tensor:
    """The places of what is not zero, a column each."""
    return torch.nonzero(to_tensor(x)).T


def compress(x: Tensor, condition: Any, dim: int | None) -> Tensor:
    """The entries along `dim` where the condition holds; of the flat tensor where that is None."""
    chosen = torch.nonzero(to_tensor(condition))[:, 0]
    return x.reshape(-1)[chosen] if dim is None else x.index_select(dim, chosen)


def cumulative_sum(x: Tensor, dim: Any, *, exclusive: bool, reverse: bool) -> Tensor:
    """exclusive: without the element itself. reverse: from the end."""
    dim = size(dim)
    wide = x.flip(dim) if reverse else x
    found = wide.cumsum(dim, dtype=x.dtype)
    found = found - wide if exclusive else found
    return found.flip(dim) if reverse else found


def cumulative_product(x: Tensor, dim: Any, *, exclusive: bool, reverse: bool) -> Tensor:
    """As `cumulative_sum`."""
    dim = size(dim)
    wide = x.flip(dim) if reverse else x
    if exclusive:
        wide = torch.cat([torch.ones_like(wide.narrow(dim, 0, 1)), wide.narrow(dim, 0, wide.shape[dim] - 1)], dim)
    found = wide.cumprod(dim, dtype=x.dtype)
    return found.flip(dim) if reverse else found


def triangle(x: Tensor, k: Any, *, upper: bool) -> Tensor:
    """What lies on one side of the k-th diagonal."""
    k = 0 if k is None else size(k)
    return torch.triu(x, k) if upper else torch.tril(x, k)


def tensor_scatter(past: Tensor, update: Tensor, start: Any, *, dim: int, circular: bool) -> Tensor:
    """The update from place `start` of each example on."""
    dim = dim % past.dim()
    first_B = torch.zeros(past.shape[0], dtype=torch.int64) if start is None else to_tensor(start)
    place_BT = first_B[:, None] + torch.arange(update.shape[dim])
    place_BT = place_BT % past.shape[dim] if circular else place_BT
    shape = [1] * past.dim()
    shape[0], shape[dim] = place_BT.shape
    return past.scatter(dim, place_BT.reshape(shape).expand(update.shape), update)


def _places(index: Tensor, length: Any) -> Tensor:
    index = index.to(torch.int64)
    return torch.where(index < 0, index + length, index)


def _batch_places(shape: Any, num_batch: int) -> list[Tensor]:
    found = []
    for dim in range(num_batch):
        view = [1] * (len(shape) - 1)
        view[dim] = shape[dim]
        found.append(torch.arange(shape[dim]).reshape(view))
    return found


def _gather(step: Step, build: Build) -> Value:
    """A table of learned rows is an embedding."""
    x, index = step.inputs
    is_table = isinstance(x, Tensor) and x.dim() == 2 and x.dtype == torch.float32 and step.get("axis", 0) == 0
    if not is_table or not isinstance(index, fx.Node) or not isinstance(index.meta.get("val"), Tensor):
        return build.emit(gather, x, index, step.get("axis", 0))
    return build.layer(build.path_of(x, step), _table(x, build), index)


def _table(weight_OE: Tensor, build: Build) -> nn.Embedding:
    layer = nn.Embedding(1, weight_OE.shape[1])
    layer.num_embeddings = weight_OE.shape[0]
    layer.weight = build.parameter(weight_OE)
    return layer


def _top(step: Step, build: Build) -> tuple[Value, ...]:
    wanted = {"largest": bool(step.get("largest", 1)), "ordered": bool(step.get("sorted", 1))}
    return parts_of(build.emit(top, step.input(0), step.setting("k", 1), step.get("axis", -1), **wanted), 2, build)


def _scatter(step: Step, build: Build) -> Value:
    return build.emit(scatter_elements, *step.inputs, dim=step.get("axis", 0), reduction=_reduction(step))


def _reduction(step: Step) -> str:
    name = str(step.get("reduction", "none"))
    if name != "none" and name not in _REDUCTIONS:
        raise UnfitError(f"the reduction {name!r} is not read.")
    return name


def _cumulative(step: Step, build: Build) -> Value:
    wanted = {"exclusive": bool(step.get("exclusive", 0)), "reverse": bool(step.get("reverse", 0))}
    return build.emit(cumulative_sum if step.op_type == "CumSum" else cumulative_product, *step.inputs, **wanted)


def _tensor_scatter(step: Step, build: Build) -> Value:
    wanted = {"dim": step.get("axis", -2), "circular": step.get("mode", "linear") == "circular"}
    return build.emit(tensor_scatter, *step.inputs[:2], step.input(2), **wanted)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "Gather": _gather,
    "GatherElements": lambda step, build: build.emit(gather_elements, *step.inputs, step.get("axis", 0)),
    "GatherND": lambda step, build: build.emit(gather_nd, *step.inputs, step.get("batch_dims", 0)),
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "ScatterND": lambda step, build: build.emit(scatter_nd, *step.inputs, reduction=_reduction(step)),
    "TensorScatter": _tensor_scatter,
    "OneHot": lambda step, build: build.emit(one_hot, *step.inputs, dim=step.get("axis", -1)),
    "TopK": _top,
    "NonZero": lambda step, build: build.emit(nonzero, step.input(0)),
    "Compress": lambda step, build: build.emit(compress, *step.inputs, step.get("axis")),
    "CumSum": _cumulative,
    "CumProd": _cumulative,
    "Trilu": lambda step, build: build.emit(triangle, step.input(0), step.input(1), upper=bool(step.get("upper", 1))),
}
