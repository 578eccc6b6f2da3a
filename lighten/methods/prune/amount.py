"""What a network would cost with fewer channels, without building it.

The axes of the coupling say which sizes of which tensors follow each group. With the new sizes in place of the old ones, the
multiply-accumulates of every operator are counted as they are for any network, products of two activations among them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.axes import ATOM, PRODUCT, Axis, atoms, normal
from lighten.analyze.coupling import Coupling
from lighten.analyze.macs import macs
from lighten.analyze.shapes import Values, propagate
from lighten.analyze.trace import tensor_of

Counts = Mapping[str, int]
MEASURES = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Amount:
    """The cost with any number of kept channels. fixed: what no cut changes. parts: the rest, each a function of the counts."""

    fixed: float
    parts: tuple[Callable[[Counts], float], ...]

    @property
    def total(self) -> float:
        """With every channel."""
        return self({})

    def __call__(self, counts: Counts) -> float:
        """With `counts` channels of each group; groups that are not named stay whole."""
        return self.fixed + math.fsum(part(counts) for part in self.parts)


def amount(module: fx.GraphModule, example: tuple[Tensor, ...], coupling: Coupling, *, measure: str) -> Amount:
    """measure: "macs" of one example, "params", or "bytes" of every parameter and buffer that the graph reads, as held."""
    found = _multiplications(module, example, coupling) if measure == "macs" else _tensors(module, coupling, measure)
    parts, fixed = [], 0.0
    for cost, part in found:
        if part is None:
            fixed += cost
        else:
            parts.append(part)
    return Amount(fixed, tuple(parts))


Found = Iterator[tuple[float, Callable[[Counts], float] | None]]  # a cost, and how it follows the counts if it does


def _tensors(module: fx.GraphModule, coupling: Coupling, measure: str) -> Found:
    """One tensor is counted once, whatever its names; for "params" those that no operator reads too."""
    nodes = {id(value): node for node in module.graph.nodes if (value := _stored(module, node)) is not None}
    counted: dict[int, Tensor] = {id(value): value for value in module.parameters()} if measure == "params" else {}
    if measure == "bytes":
        counted = {key: value for node in nodes.values() if (value := _stored(module, node)) is not None for key in [id(value)]}
    for key, value in counted.items():
        unit = value.element_size() if measure == "bytes" else 1
        sized = _sized(value, coupling, nodes[key].name) if key in nodes else None
        yield float(unit * value.numel()), None if sized is None else _scaled(sized, unit)


def _scaled(sized: "_Sized", unit: int) -> Callable[[Counts], float]:
    return lambda counts: unit * math.prod(sized(counts))


def _stored(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    is_tensor = node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)
    return tensor_of(module, str(node.target)) if is_tensor else None


def _multiplications(module: fx.GraphModule, example: tuple[Tensor, ...], coupling: Coupling) -> Found:
    """Of one example: dimension 0 of its first tensor is the batch. What is made of weights alone costs nothing at run time."""
    values = propagate(module, example)
    batch = example[0].shape[0] if example[0].dim() else 1
    stored: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node.all_input_nodes and stored.issuperset(node.all_input_nodes)
        ):
            stored.add(node)
        if node.op != "call_function" or node in stored:
            continue
        cost = macs(node.target, fx.node.map_arg(node.args, values.__getitem__), output=values[node])
        if cost:
            yield cost / batch, _counted(node, values, coupling, batch=batch)


def _counted(node: fx.Node, values: Values, coupling: Coupling, *, batch: int) -> Callable[[Counts], float] | None:
    """The operator's multiply-accumulates for given counts; None where no group reaches it."""
    given = {source: values[source] for source in (*node.all_input_nodes, node)}
    sized = {source: found for source, value in given.items() if (found := _sized(value, coupling, source.name)) is not None}
    if not sized:
        return None

    def count(counts: Counts) -> float:
        now = given | {source: torch.empty(one(counts), device="meta") for source, one in sized.items()}
        return macs(node.target, fx.node.map_arg(node.args, now.__getitem__), output=now[node]) / batch

    return count


@dataclass(frozen=True)
class _Sized:
    """The shape of a tensor for given counts. shape: before. changing: by dimension, what of its axis the groups change."""

    shape: tuple[int, ...]
    changing: Mapping[int, tuple[Axis, ...]]
    names: Mapping[Axis, str]

    def __call__(self, counts: Counts) -> tuple[int, ...]:
        return tuple(self._size(dim, size, counts) for dim, size in enumerate(self.shape))

    def _size(self, dim: int, size: int, counts: Counts) -> int:
        for part in self.changing.get(dim, ()):
            size = size // part.size * self._count(part, counts)
        return size

    def _count(self, axis: Axis, counts: Counts) -> int:
        if axis.joint == ATOM:
            name = self.names.get(axis)
            return axis.size if name is None else counts.get(name, axis.size)
        sizes = [self._count(part, counts) for part in axis.parts]
        return math.prod(sizes) if axis.joint == PRODUCT else sum(sizes)


def _sized(value: Any, coupling: Coupling, name: str) -> _Sized | None:
    """None where no group changes the tensor, and for what is not one tensor."""
    outputs = coupling.axes.get(name, ())
    if not isinstance(value, Tensor) or len(outputs) != 1:
        return None
    changing = {}
    for dim, axis in enumerate(map(normal, outputs[0])):
        parts = axis.parts if axis.joint == PRODUCT else (axis,)
        # dynamic factors stay beside those that change
        free = tuple(part for part in parts if isinstance(part.size, int) and any(one in coupling.names for one in atoms(part)))
        changing.update({dim: free} if free else {})
    return _Sized(tuple(value.shape), changing, coupling.names) if changing else None
