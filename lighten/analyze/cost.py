"""What each layer costs, and the whole network: parameters, multiply-accumulates, weight bytes, activation bytes.

Everything follows from shapes, so nothing is computed and the answer does not depend on the machine.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx, nn

from lighten.analyze.liveness import peak_bytes
from lighten.analyze.macs import macs
from lighten.analyze.shapes import Values, propagate
from lighten.analyze.trace import KINDS, export_program, find_sites, tensor_of
from lighten.core.cost import Cost, LayerCost
from lighten.core.model import Model

# Where an operator takes its weight and bias. A tensor there counts as parameters even when it is held as a buffer, as folded
# and integer weights are; elsewhere (running statistics, position numbers) only a true parameter does.
_WEIGHT_POSITIONS = {
    "conv": (1, 2),
    "linear": (1, 2),
    "embedding": (0,),
    "lstm": (2,),
    "gru": (2,),
}


@dataclass(frozen=True)
class Inspection:
    """layers: every weight and every operator that multiplies, largest first. total: their sum, and the peak of activations."""

    layers: tuple[LayerCost, ...]
    total: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "total": asdict(self.total),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def table(self) -> str:
        """A text table, largest layer first, the totals below."""
        head = ("layer", "operator", "parameters", "MACs", "weight bytes", "output")
        rows = [_row(layer) for layer in self.layers]
        total = (
            "total",
            "",
            f"{self.total.params:,}",
            f"{self.total.macs:,}",
            f"{self.total.weight_bytes:,}",
            "",
        )
        widths = [max(len(cells[column]) for cells in (head, *rows, total)) for column in range(len(head))]
        rule = "  ".join("-" * width for width in widths)
        lines = [
            _line(head, widths),
            rule,
            *(_line(cells, widths) for cells in rows),
            rule,
            _line(total, widths),
        ]
        peak = f"Peak activations: {self.total.peak_activation_bytes:,} bytes for one example (estimated)."
        return "\n".join([*lines, peak])


def inspect(model: Model) -> Inspection:
    """The cost of `model` as it was given, layer by layer; MACs and activations are for one example of its example batch.

    Batch normalization still has its own parameters here; compression folds them into the convolution before it.
    Raises UnfitError when the model cannot be traced.
    """
    # the example's own sizes are enough here, and tracing without symbolic ones takes about half the time
    module = export_program(model.module, model.example, ()).module()
    layers, total_cost = _measure(module, model.example)
    shown = [layer for layer in layers if layer.params or layer.macs]
    return Inspection(
        tuple(sorted(shown, key=lambda layer: (-layer.weight_bytes, -layer.macs))),
        total_cost,
    )


def costs(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> tuple[LayerCost, ...]:
    """Each site's cost in execution order, one row for every site and every other operator that holds parameters.

    graph: ATen operators, float or with integer weights. example: one batch; dimension 0 of its first tensor is the batch,
    over which MACs and activations are averaged. A tensor used at several sites is counted at the first of them.
    Raises UnfitError when a size depends on the data.
    """
    return _measure(graph, example)[0]


def total(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> Cost:
    """The cost of the whole network; takes the same as `costs` and counts every tensor once."""
    return _measure(graph, example)[1]


def _measure(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> tuple[tuple[LayerCost, ...], Cost]:
    values = propagate(graph, example)
    stored = stored_nodes(graph)
    batch = example[0].shape[0] if example[0].dim() else 1
    layers = tuple(_layers(graph, values, stored=stored, batch=batch))
    cost = Cost(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        peak_activation_bytes=math.ceil(peak_bytes(values, stored) / batch),
    )
    return layers, cost


def stored_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes that do not depend on any input: weights, and what is made of weights alone."""
    stored: set[fx.Node] = set()
    for node in graph.graph.nodes:
        made_of_weights = node.op == "call_function" and node.all_input_nodes and stored.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or made_of_weights:
            stored.add(node)
    return stored


def _layers(graph: fx.GraphModule, values: Values, *, stored: set[fx.Node], batch: int) -> Iterator[LayerCost]:
    names = {site.node: site.name for site in find_sites(graph)}
    taken = set(names.values())
    counted: set[int] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in stored:
            continue
        num_macs = macs(node.target, _arguments(node, values), output=values[node])
        owned = _parameters(graph, node, stored)
        if node.name not in names and not num_macs and not owned:
            continue
        site = names.get(node.name) or _free_name(owned, node, taken)
        params, weight_bytes = _held(graph, owned, counted)
        output = _first_tensor(values[node])
        yield LayerCost(
            site=site,
            kind=_kind(node),
            params=params,
            macs=num_macs // batch,
            weight_bytes=weight_bytes,
            output_bytes=math.ceil(output.numel() * output.element_size() / batch),
            output_shape=tuple(output.shape[1:] if output.shape[:1] == (batch,) else output.shape),
        )


def _arguments(node: fx.Node, values: Values) -> tuple[Any, ...]:
    return fx.node.map_arg(node.args, lambda source: values[source])


def _parameters(graph: fx.GraphModule, node: fx.Node, stored: set[fx.Node]) -> dict[fx.Node, bool]:
    """The stored tensors that make up a node's weights: True for values, False for the scales and zero points beside them."""
    owned: dict[fx.Node, bool] = {}
    kind = _kind(node)
    family = "conv" if kind.startswith("conv") else kind
    for position, argument in enumerate(node.args):
        for source in _nodes(argument):
            if source in stored:
                is_weight = position in _WEIGHT_POSITIONS.get(family, ())
                owned |= _leaves(graph, source, is_weight=is_weight)
    return owned


def _leaves(graph: fx.GraphModule, source: fx.Node, *, is_weight: bool) -> dict[fx.Node, bool]:
    """The tensors behind `source`, through operators on weights alone (transpose, dequantize); the first input is the value."""
    if source.op == "get_attr":
        value = tensor_of(graph, str(source.target))
        return {source: True} if is_weight or isinstance(value, nn.Parameter) else {}
    first, *rest = source.all_input_nodes
    leaves = _leaves(graph, first, is_weight=is_weight)
    beside = [leaf for node in rest for leaf in _leaves(graph, node, is_weight=is_weight)]
    is_dequantize = "dequantize" in str(source.target)
    return {**dict.fromkeys(beside, not is_dequantize), **leaves}


def _held(graph: fx.GraphModule, owned: dict[fx.Node, bool], counted: set[int]) -> tuple[int, int]:
    """Parameters and bytes of tensors not counted before; tied weights are one tensor, whatever their names."""
    params, num_bytes = 0, 0
    for leaf, is_value in owned.items():
        tensor = tensor_of(graph, str(leaf.target))
        if id(tensor) in counted:
            continue
        counted.add(id(tensor))
        params += tensor.numel() if is_value else 0
        num_bytes += tensor.numel() * tensor.element_size()
    return params, num_bytes


def _free_name(owned: dict[fx.Node, bool], node: fx.Node, taken: set[str]) -> str:
    """The module that owns the first parameter (the parameter where that is the network), else the node's name."""
    target = str(next(iter(owned)).target) if owned else node.name
    name = target.rpartition(".")[0] or target
    name = f"{name}@{node.name}" if name in taken else name
    taken.add(name)
    return name


def _kind(node: fx.Node) -> str:
    """The site's kind, or ATen's own name of the operator."""
    return KINDS.get(node.target) or str(node.target).removeprefix("aten.").partition(".")[0]


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


def _first_tensor(value: Any) -> Tensor:
    while isinstance(value, tuple | list):
        value = value[0]
    return value  # type: ignore[no-any-return]


def _row(layer: LayerCost) -> tuple[str, ...]:
    shape = "x".join(str(size) for size in layer.output_shape)
    return (
        layer.site,
        layer.kind,
        f"{layer.params:,}",
        f"{layer.macs:,}",
        f"{layer.weight_bytes:,}",
        shape,
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    padded = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
