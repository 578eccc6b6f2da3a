"""How axes flow through a traced graph: each operator carries the dimensions of its operands to its output.

Every parameter dimension starts as an axis of its own; a rule (layout.py, lookup.py, pointwise.py, contractions.py) says
for an operator which axes are the same, which are made of others, and which literals in the graph are their sizes. An operator
without a rule fixes all that it touches, and names itself as the reason. So does a rule whose answer disagrees with the
traced sizes: a missed cut is possible, a wrong one is not. After DepGraph (Fang et al. 2023, arXiv:2301.12900), whose rules go
by layer class and pass whole channels; here they go by ATen operator and pass products and concatenations of channels.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.axes import Axis, Misfit, Size, atom, fix, unify
from lighten.analyze.trace import tensor_of

INPUT, OUTPUT = "is an input of the network", "is an output of the network"
Origin = tuple[str, int]  # a tensor's name, and one of its dimensions


@dataclass(frozen=True)
class Dim:
    """One dimension of a value. origins: the parameter dimensions that it is a view of, for values made of parameters alone."""

    axis: Axis
    origins: frozenset[Origin] = frozenset()


@dataclass(frozen=True)
class Value:
    """What a node gives. weight: whether it is made of parameters and buffers alone, or of rows of them that were picked.
    points: the axis that its numbers are positions of, as those of the largest are.
    """

    dims: tuple[Dim, ...]
    weight: bool = False
    points: Axis | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Of each dimension."""
        return tuple(dim.axis for dim in self.dims)

    def index(self, dim: int) -> int:
        """The dimension counted from the front."""
        return dim % len(self.dims) if self.dims else 0

    def moved(self, dims: Iterable[Dim]) -> "Value":
        """The same numbers under other dimensions."""
        return replace(self, dims=tuple(dims))


Values = tuple[Value, ...]
Result = Value | Values
Rule = Callable[["Call"], Result]


@dataclass(frozen=True)
class Use:
    """An operator of `kind` takes a dimension of a tensor as `role` ("out" or "in")."""

    tensor: str
    dim: int
    role: str
    kind: str


@dataclass(frozen=True)
class Attention:
    """A product of two activations. batch: axes it runs over, heads among them. inner: axes inside one such product."""

    batch: tuple[Axis, ...]
    inner: tuple[Axis, ...]


@dataclass(frozen=True)
class Literal:
    """An argument of a node that depends on sizes of axes.

    form: "size", the size of the one axis; "sizes", a list with the size of each; "bound", a position along the one axis;
    "parts", the node splits its operand into these.
    """

    argument: str
    axes: tuple[Axis, ...]
    form: str


@dataclass
class Flow:
    """Everything found on the way. values: by node. literals: by node name. uses: in execution order. floors: how many
    positions of an axis the network picks at a time. picked: axes of which it takes those positions.
    """

    values: dict[fx.Node, Values] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    literals: dict[str, list[Literal]] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)
    floors: list[tuple[Axis, int]] = field(default_factory=list)
    picked: list[Axis] = field(default_factory=list)


class Call:
    """One node with its arguments by schema name, and what a rule needs to say about it."""

    def __init__(self, flow: Flow, node: fx.Node) -> None:
        self.flow, self.node = flow, node
        self.name = operator_name(node)
        self.arguments = bound_arguments(node)
        self.read: list[Axis] = []  # axes whose positions it takes by number

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of the output, or of the first output."""
        return shapes(self.node)[0]

    @property
    def why(self) -> str:
        """The reason this operator gives when it fixes a dimension."""
        return f"goes through {self.name} ({self.node.name}), which depends on each position"

    def has(self, name: str) -> bool:
        """Whether the argument is a tensor whose axes are known."""
        given = self.arguments.get(name)
        return isinstance(given, fx.Node) and given in self.flow.values

    def value(self, name: str) -> Value:
        """The one tensor given as `name`."""
        (value,) = self.flow.values[self.arguments[name]]
        return value

    def values(self, name: str) -> list[Value]:
        """The tensors in the list given as `name`."""
        nodes = [item for item in self.arguments[name] if isinstance(item, fx.Node)]
        return [value for node in nodes for value in self.flow.values[node]]

    def operands(self) -> list[Value]:
        """All tensors among the arguments."""
        nodes = [node for node in self.node.all_input_nodes if node in self.flow.values]
        return [value for node in nodes for value in self.flow.values[node]]

    def unify(self, left: Axis, right: Axis) -> None:
        """The two are the same positions."""
        unify(left, right, f"is laid out in two ways that do not fit ({self.node.name})")

    def fix(self, axis: Axis, reason: str = "") -> None:
        """No part of the axis can be cut."""
        fix(axis, reason or self.why)

    def fixed(self, size: Size, reason: str = "") -> Dim:
        """A new dimension that cannot be cut."""
        return Dim(atom(size, reason or self.why))

    def literal(self, argument: str, axes: Iterable[Axis], form: str) -> None:
        """The argument depends on the sizes of the axes."""
        self.flow.literals.setdefault(self.node.name, []).append(Literal(argument, tuple(axes), form))

    def look_up(self, dim: Dim, numbers: Value) -> None:
        """Takes positions of the dimension by number. Numbers that the network found by comparing these positions are right in
        a smaller one too, and weights so picked make what comes of it; any other number means one certain position.
        """
        if numbers.points is None:
            self.fix(dim.axis, "is looked up by number")
        else:
            self.unify(dim.axis, numbers.points)
            self.read.append(numbers.points)
            self.flow.picked.append(numbers.points)
            self.use(dim, "out", "linear")

    def common_points(self, values: list[Value], count: Size) -> Axis | None:
        """The axis that the numbers of all of them are positions of, `count` of which are picked side by side."""
        points = [value.points for value in values if value.points]
        if not points or len(points) < len(values):
            return None
        for other in points[1:]:
            self.unify(points[0], other)
        self.read += points
        self.flow.floors.append((points[0], count))
        return points[0]

    def use(self, dim: Dim, role: str, kind: str) -> None:
        """The operator takes the parameter dimensions behind `dim` as "out" or "in"."""
        self.flow.uses += [Use(tensor, index, role, kind) for tensor, index in sorted(dim.origins)]


def follow(module: fx.GraphModule, rules: Mapping[str, Rule], pointwise: Rule) -> Flow:
    """Runs the rules over the graph. rules: by operator name without overload and without the underscore of in-place forms."""
    flow = Flow()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            flow.values.update(_outputs(node, INPUT))
        elif node.op == "get_attr":
            flow.values.update(_attribute(flow, module, node))
        elif node.op == "output":
            for source in node.all_input_nodes:
                _fix_all(flow.values.get(source, ()), OUTPUT)
        elif node.target is operator.getitem:
            flow.values.update(_item(flow, node))
        elif _gives_tensors(node):
            flow.values[node] = _apply(flow, node, rules, pointwise)
    return flow


def words(names: str) -> list[str]:
    """Operator names written as one line of text: the tables of rules name a hundred of them."""
    return names.split()


def operator_name(node: fx.Node) -> str:
    """`add` for both aten.add.Tensor and aten.add_.Tensor; the full name outside the aten namespace."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    space, _, name = schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if space == "aten" else f"{space}.{name}"


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by their schema name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}


def shapes(node: fx.Node) -> list[tuple[Size, ...]]:
    """Of each tensor the node gives; a dynamic size is its sympy expression."""
    given = node.meta.get("val")
    items = given if isinstance(given, (list, tuple)) else [given]
    tensors = [item for item in items if isinstance(item, Tensor)]
    return [tuple(_size(size) for size in tensor.shape) for tensor in tensors]


def _size(size: Any) -> Size:
    if isinstance(size, int):
        return size
    constant = size.node.maybe_as_int()
    return constant if constant is not None else size.node.expr


def _apply(flow: Flow, node: fx.Node, rules: Mapping[str, Rule], pointwise: Rule) -> Values:
    call = Call(flow, node)
    rule = rules.get(call.name)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = pointwise
    try:
        result = rule(call) if rule is not None else ()
    except (Misfit, LookupError, ValueError):
        # beside layouts without a rule, overloads whose arguments the rule does not know
        result = ()
    values = result if isinstance(result, tuple) else (result,)
    if values and [_sizes(value) for value in values] == shapes(node):
        known = [*call.read, *(value.points for value in values)]
        _fix_all((value.moved(()) for value in call.operands() if value.points not in known), call.why)
        return values
    flow.literals.pop(node.name, None)
    _fix_all(call.operands(), call.why)
    return _outputs(node, call.why)[node]


def _outputs(node: fx.Node, reason: str) -> dict[fx.Node, Values]:
    values = tuple(Value(tuple(Dim(atom(size, reason)) for size in shape)) for shape in shapes(node))
    return {node: values} if values else {}


def _attribute(flow: Flow, module: fx.GraphModule, node: fx.Node) -> dict[fx.Node, Values]:
    name = str(node.target)
    if not shapes(node):
        return {}
    if name not in flow.tensors:
        sizes = tensor_of(module, name).shape
        flow.tensors[name] = Value(tuple(Dim(atom(n), frozenset({(name, d)})) for d, n in enumerate(sizes)), weight=True)
    return {node: (flow.tensors[name],)}


def _item(flow: Flow, node: fx.Node) -> dict[fx.Node, Values]:
    source, index = node.args[:2]
    if not isinstance(index, int) or not _gives_tensors(node):
        return {}
    # outputs that are no tensors leave gaps: count only those before it
    given = source.meta["val"]  # type: ignore[union-attr]
    place = sum(isinstance(item, Tensor) for item in given[: index % len(given)])
    return {node: (flow.values[source][place],)}  # type: ignore[index]


def _gives_tensors(node: fx.Node) -> bool:
    return bool(shapes(node)) if node.op == "call_function" else False


def _sizes(value: Value) -> tuple[Size, ...]:
    return tuple(axis.size for axis in value.axes)


def _fix_all(values: Iterable[Value], reason: str) -> None:
    for value in values:
        for axis in (*value.axes, *([value.points] if value.points else [])):
            fix(axis, reason)
