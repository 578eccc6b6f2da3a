"""How axes flow through a traced graph: each operator carries the dimensions of its operands to its output.

Every parameter dimension starts as an axis of its own; a rule (layout.py, pointwise.py, contractions.py) says for an operator
which axes are the same, which are made of others, and which literals in the graph are their sizes. An operator
without a rule fixes all that it touches, and names itself as the reason. So does a rule whose answer disagrees with the
traced sizes: a missed cut is possible, a wrong one is not. After DepGraph (Fang et al. 2023, arXiv:2301.12900), whose rules go
by layer class and pass whole channels; here they go by ATen operator and pass products and concatenations of channels.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
    """What a node gives. weight: whether it is made of parameters and buffers alone."""

    dims: tuple[Dim, ...]
    weight: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Of each dimension."""
        return tuple(dim.axis for dim in self.dims)

    def index(self, dim: int) -> int:
        """The dimension counted from the front."""
        return dim % len(self.dims) if self.dims else 0


Result = Value | tuple[Value, ...]
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
    """Everything found on the way. values: by node. literals: by node name. uses: in execution order."""

    values: dict[fx.Node, Result] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    literals: dict[str, list[Literal]] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)


class Call:
    """One node with its arguments by schema name, and what a rule needs to say about it."""

    def __init__(self, flow: Flow, node: fx.Node) -> None:
        self.flow, self.node = flow, node
        self.name = operator_name(node)
        self.arguments = bound_arguments(node)

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
        return _single(self.flow.values[self.arguments[name]])

    def values(self, name: str) -> list[Value]:
        """The tensors in the list given as `name`."""
        return [_single(self.flow.values[item]) for item in self.arguments[name] if isinstance(item, fx.Node)]

    def operands(self) -> list[Value]:
        """All tensors among the arguments."""
        nodes = [node for node in self.node.all_input_nodes if node in self.flow.values]
        return [value for node in nodes for value in _each(self.flow.values[node])]

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
            for value in (flow.values.get(source, ()) for source in node.all_input_nodes):
                _fix_all(_each(value), OUTPUT)
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


def _apply(flow: Flow, node: fx.Node, rules: Mapping[str, Rule], pointwise: Rule) -> Result:
    call = Call(flow, node)
    rule = rules.get(call.name)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = pointwise
    try:
        result = rule(call) if rule is not None else None
    except (Misfit, LookupError, ValueError):
        # beside layouts without a rule, overloads whose arguments the rule does not know
        result = None
    if result is not None and [_sizes(value) for value in _each(result)] == shapes(node):
        return result
    flow.literals.pop(node.name, None)
    _fix_all(call.operands(), call.why)
    return _outputs(node, call.why)[node]


def _outputs(node: fx.Node, reason: str) -> dict[fx.Node, Result]:
    values = tuple(Value(tuple(Dim(atom(size, reason)) for size in shape)) for shape in shapes(node))
    single = isinstance(node.meta.get("val"), Tensor)
    return {node: values[0] if single else values} if values else {}


def _attribute(flow: Flow, module: fx.GraphModule, node: fx.Node) -> dict[fx.Node, Result]:
    name = str(node.target)
    if not shapes(node):
        return {}
    if name not in flow.tensors:
        sizes = tensor_of(module, name).shape
        flow.tensors[name] = Value(tuple(Dim(atom(n), frozenset({(name, d)})) for d, n in enumerate(sizes)), weight=True)
    return {node: flow.tensors[name]}


def _item(flow: Flow, node: fx.Node) -> dict[fx.Node, Result]:
    source, index = node.args[:2]
    values = flow.values.get(source, ())  # type: ignore[arg-type]
    if isinstance(values, Value) or not isinstance(index, int) or not _gives_tensors(node):
        return {}
    # outputs that are no tensors leave gaps: count only those before it
    given = source.meta["val"]  # type: ignore[union-attr]
    place = sum(isinstance(item, Tensor) for item in given[: index % len(given)])
    return {node: values[place]}


def _gives_tensors(node: fx.Node) -> bool:
    return bool(shapes(node)) if node.op == "call_function" else False


def _sizes(value: Value) -> tuple[Size, ...]:
    return tuple(axis.size for axis in value.axes)


def _fix_all(values: Iterable[Value], reason: str) -> None:
    for value in values:
        for axis in value.axes:
            fix(axis, reason)


def _each(result: Any) -> Iterator[Value]:
    yield from (result,) if isinstance(result, Value) else result


def _single(result: Result) -> Value:
    if isinstance(result, Value):
        return result
    raise Misfit
