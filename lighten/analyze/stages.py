"""A traced network cut across its depth into stages of equal work, each a graph of its own.

A stage ends where few values cross: behind a residual block there is one. What depends on no parameter, such as a mask or
position numbers, is not sent: every stage that reads it makes it again from the network's inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.macs import macs
from lighten.analyze.shapes import propagate
from lighten.analyze.trace import tensor_of, traced
from lighten.core.errors import UnfitError
from lighten.core.model import Model
from lighten.core.parallel import Stage
from lighten.ops.partition import linear_partition

aten = torch.ops.aten
_UNSENT = 1_000_000  # as wide as no place is: a size made of activations is no tensor and cannot be sent


def stages(model: Model, count: int) -> tuple[Stage, ...]:
    """The network as `count` graphs, one behind the other, on shared tensors of their own; `model` is not changed.

    The cuts are those of which the costliest stage costs least (ops.partition), in multiply-accumulates and, so that a stage
    of element-wise work is not free, values made. They fall where a single value crosses if there are enough such places.
    Raises UnfitError when the network cannot be traced or has fewer operators than stages.
    """
    module = traced(model)
    for node in module.graph.find_nodes(op="call_module", target="_guards_fn"):
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    cutter = _Cutter(module, tuple(_works(module)))
    costs, macs_of = _costs(module, model.example)
    places = cutter.places(count)
    sums = [sum(costs[node] for node in cutter.works[start:end]) for start, end in pairwise([0, *places, len(cutter.works)])]
    ends = [[*places, len(cutter.works)][end - 1] for end in linear_partition(sums, count)]
    return tuple(
        Stage(*cutter.stage(start, end), macs=sum(macs_of[node] for node in cutter.works[start:end]))
        for start, end in pairwise([0, *ends])
    )


def _works(module: fx.GraphModule) -> list[fx.Node]:
    """Operators that depend on a parameter, in execution order: what is divided."""
    trained: set[fx.Node] = set()
    for node in module.graph.nodes:
        is_parameter = node.op == "get_attr" and isinstance(tensor_of(module, str(node.target)), nn.Parameter)
        if is_parameter or (node.op == "call_function" and trained.intersection(node.all_input_nodes)):
            trained.add(node)
    return [node for node in module.graph.nodes if node.op == "call_function" and node in trained]


@dataclass(frozen=True)
class _Cutter:
    """works: the operators to be divided. A place is a number of them: what lies before it and what behind."""

    module: fx.GraphModule
    works: tuple[fx.Node, ...]

    def places(self, count: int) -> list[int]:
        """Where stages may end, ascending."""
        inside = range(1, len(self.works))
        if len(inside) < count - 1:
            raise UnfitError(f"The network has {len(self.works)} operators and cannot be cut into {count} stages.")
        for most in (1, 2, _UNSENT - 1):
            narrow = [place for place, width in zip(inside, self._widths(), strict=True) if width <= most]
            if len(narrow) >= count - 1:
                return narrow
        raise UnfitError(f"The network cannot be cut into {count} stages.")

    def _widths(self) -> list[int]:
        """How many values cross each place."""
        number = {node: place for place, node in enumerate(self.works)}
        changes = [0] * (len(self.works) + 2)
        for node, place in number.items():
            last = self._last_use(node, number)
            weight = 1 if isinstance(node.meta.get("val"), Tensor) else _UNSENT
            changes[place + 1] += weight
            changes[max(last, place) + 1] -= weight
        widths, width = [], 0
        for place in range(1, len(self.works)):
            width += changes[place]
            widths.append(width)
        return widths

    def _last_use(self, node: fx.Node, number: dict[fx.Node, int]) -> int:
        """The number of the last operator that reads it; what the network gives is read behind all."""
        return max((number.get(user, len(self.works)) for user in node.users), default=0)

    def stage(self, start: int, end: int) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """The operators from `start` to before `end`, and the names of the network's inputs that they need."""
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        mine, received = self.works[start:end], self._crossing(start)
        needed = _reached(mine, set(mine) | set(received))
        for node in received:
            made[node] = graph.placeholder(node.name)
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder" and node in needed]
        for node in inputs:
            made[node] = graph.placeholder(node.name)
        if any(_is_mutable(node) for node in mine):
            # what came over the wire is a leaf of autograd, which may not be changed in place
            for node in received:
                made[node] = graph.call_function(aten.clone.default, (made[node],))
        for node in self.module.graph.nodes:
            if node in needed and node not in made:
                made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(self._output(graph, made, end))
        return fx.GraphModule(self.module, graph), tuple(node.name for node in inputs)

    def _output(self, graph: fx.Graph, made: dict[fx.Node, fx.Node], end: int) -> Any:
        if end == len(self.works):
            (output,) = self.module.graph.find_nodes(op="output")
            results = fx.node.map_arg(output.args[0], made.__getitem__)
            return results[0] if len(results) == 1 else tuple(results)
        # only memory in one piece can be sent
        sent = tuple(graph.call_function(aten.contiguous.default, (made[node],)) for node in self._crossing(end))
        return sent[0] if len(sent) == 1 else sent

    def _crossing(self, place: int) -> list[fx.Node]:
        behind = set(self.works[place:])
        (output,) = self.module.graph.find_nodes(op="output")
        return [
            node
            for node in self.works[:place]
            if behind.intersection(node.users) or (place < len(self.works) and output in node.users)
        ]


def _reached(nodes: Sequence[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are made of up to what is known."""
    found, pending = set(nodes), [source for node in nodes for source in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in known and node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _costs(module: fx.GraphModule, example: tuple[Tensor, ...]) -> tuple[dict[fx.Node, float], dict[fx.Node, int]]:
    """Of one example: multiply-accumulates and values made, and the former alone."""
    values = propagate(module, example)
    batch = example[0].shape[0] if example[0].dim() else 1
    costs, macs_of = {}, {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            arguments = fx.node.map_arg(node.args, lambda source: values[source])
            macs_of[node] = macs(node.target, arguments, output=values[node]) // batch
            made = values[node]
            costs[node] = macs_of[node] + (made.numel() / batch if isinstance(made, Tensor) else 0.0)
    return costs, macs_of


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
