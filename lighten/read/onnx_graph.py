"""An ONNX graph to a torch.fx module: every node in order, by the table of operators."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from lighten.core.errors import InputError, LightenError, UnfitError
from lighten.read.onnx_build import Build, Step, Value, dotted
from lighten.read.onnx_fuse import fuse
from lighten.read.onnx_normalize import in_order, read_tensor, torch_type
from lighten.read.onnx_operators import OPERATORS
from lighten.read.onnx_operators.numbers import to_tensor

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

MAX_DEPTH = 32  # of branches within branches
MAX_ROUNDS = 256  # of a loop, which is unrolled
CONTROL = ("If", "Loop", "Constant")
KNOWN = frozenset((*OPERATORS, *CONTROL))
# what torch raises where the file asks for what cannot be
_MALFORMED = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
)


def convert(proto: "ModelProto", inputs: Mapping[str, Tensor], *, fixed: Mapping[str, Tensor], folder: Path) -> fx.GraphModule:
    """The network, in eval mode. inputs: an example of each. fixed: values of inputs that become constants.

    Raises InputError where the file is malformed, UnfitError where what it does cannot be said in torch.
    """
    reader = _Reader(Build(), folder, {entry.domain: entry.version for entry in proto.opset_import})
    scope: dict[str, Value] = {}
    for name, example in inputs.items():
        scope[name] = reader.build.input(name, example)
    for name, example in fixed.items():
        scope[name] = reader.build.constant(name, example)
    outputs = reader.run(proto.graph, scope, 0)
    if not any(isinstance(value, fx.Node) for value in outputs):
        raise UnfitError("No output of the network depends on its inputs.")
    kinds = [entry.type.tensor_type.elem_type for entry in proto.graph.output]
    results = [_as_output(value, kind, reader.build) for value, kind in zip(outputs, kinds, strict=True)]
    return _finish(reader.build, results)


@dataclass
class _Reader:
    build: Build
    folder: Path
    opsets: Mapping[str, int]
    constants: dict[int, Value] = field(default_factory=dict)

    def run(self, graph: "GraphProto", outer: Mapping[str, Value], depth: int) -> list[Value]:
        """The values of the graph's outputs. outer: what it may read, by name."""
        if depth > MAX_DEPTH:
            raise InputError(f"Branches lie more than {MAX_DEPTH} deep within each other.")
        scope = dict(outer)
        for tensor in graph.initializer:
            if tensor.name not in scope:
                scope[tensor.name] = self.build.constant(tensor.name, read_tensor(tensor, self.folder))
        for node in in_order(graph, scope):
            self._add(node, scope, depth)
        missing = [output.name for output in graph.output if output.name not in scope]
        if missing:
            raise InputError(f"Nothing in the file gives the output {missing[0]!r}.")
        return [scope[output.name] for output in graph.output]

    def _add(self, node: "NodeProto", scope: dict[str, Value], depth: int) -> None:
        """Puts the node's results into the scope."""
        try:
            found = self._values(node, scope, depth)
        except LightenError as error:
            raise type(error)(f"{_place(node)}: {error.message}", hint=error.hint) from error
        except _MALFORMED as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{_place(node)}: {said.strip()[:250]}") from error
        results = found if isinstance(found, tuple) else (found,)
        for name, value in zip(node.output, results, strict=False):
            if name:
                scope[name] = value
                if isinstance(value, Tensor):
                    self.build.keep(name, value)

    def _values(self, node: "NodeProto", scope: Mapping[str, Value], depth: int) -> Value | tuple[Value, ...]:
        if node.op_type == "Constant":
            return self._constant(node)
        inputs = tuple(scope[name] if name else None for name in node.input)
        if node.op_type == "If":
            return self._branch(node, inputs[0], scope, depth)
        if node.op_type == "Loop":
            return self._rounds(node, inputs, scope, depth)
        domain = "" if node.domain == "ai.onnx" else node.domain
        key = f"{domain}::{node.op_type}" if domain else node.op_type
        attributes = {entry.name: self._attribute(entry) for entry in node.attribute}
        opset = self.opsets.get(domain, self.opsets.get("ai.onnx", 0) if not domain else 1)
        path = dotted(node.name) or dotted(node.output[0]) or node.op_type.lower()
        step = Step(node.op_type, inputs, tuple(node.input), attributes, opset, path, tuple(node.output))
        return OPERATORS[key](step, self.build)

    def _constant(self, node: "NodeProto") -> Value:
        from onnx import helper

        (attribute,) = (entry for entry in node.attribute if entry.name.startswith("value"))
        if attribute.name == "value":
            return self.build.constant(node.output[0], read_tensor(attribute.t, self.folder))
        value = helper.get_attribute_value(attribute)
        if attribute.name not in ("value_int", "value_ints", "value_float", "value_floats"):
            raise UnfitError(f"A constant given as {attribute.name} is not read.")
        kind = torch.int64 if "int" in attribute.name else torch.float32
        return self.build.constant(node.output[0], torch.tensor(value, dtype=kind))

    def _attribute(self, entry: "AttributeProto") -> Any:
        from onnx import AttributeProto, helper

        if entry.ref_attr_name or entry.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise UnfitError(f"The attribute {entry.name} is not read.")
        if entry.type == AttributeProto.TENSOR:
            return read_tensor(entry.t, self.folder)
        value = helper.get_attribute_value(entry)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        if isinstance(value, list):
            return [item.decode("utf-8", errors="replace") if isinstance(item, bytes) else item for item in value]
        return value if isinstance(value, int | float) else list(value)

    def _branch(self, node: "NodeProto", condition: Value, scope: Mapping[str, Value], depth: int) -> tuple[Value, ...]:
        """The branch that is taken: known, or decided by the sizes of the example."""
        chosen = condition.meta.get("val") if isinstance(condition, fx.Node) else condition
        if isinstance(condition, Tensor):
            chosen = bool(condition.all()) if condition.numel() == 1 else None
        if isinstance(chosen, list):
            chosen = chosen[0] if len(chosen) == 1 else None
        if chosen is None or isinstance(chosen, Tensor):
            raise UnfitError(
                "which branch is taken depends on the data.",
                hint="A branch on an input without dimensions is fixed by example=(...).",
            )
        graph = next(entry.g for entry in node.attribute if entry.name == ("then_branch" if chosen else "else_branch"))
        return tuple(self.run(graph, scope, depth + 1))

    def _rounds(
        self, node: "NodeProto", inputs: tuple[Value, ...], scope: Mapping[str, Value], depth: int
    ) -> tuple[Value, ...]:
        """A loop of a fixed number of rounds, unrolled."""
        from lighten.read.onnx_operators.shapes import stack

        body = next(entry.g for entry in node.attribute if entry.name == "body")
        limit, going, carried = inputs[0], inputs[1], list(inputs[2:])
        collected: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
        number = 0
        while (limit is None or number < self._known(limit)) and (going is None or self._known(going)):
            if number == MAX_ROUNDS:
                raise UnfitError(f"the loop has more than {MAX_ROUNDS} rounds.")
            given = dict(
                zip([entry.name for entry in body.input], [number, True if going is None else going, *carried], strict=True)
            )
            going, *results = self.run(body, {**scope, **given}, depth + 1)
            carried, new = results[: len(carried)], results[len(carried) :]
            for rows, row in zip(collected, new, strict=True):
                rows.append(row)
            number += 1
        return (*carried, *(self.build.emit(stack, rows) for rows in collected))

    def _known(self, value: Value) -> Any:
        found = value.meta.get("val") if isinstance(value, fx.Node) else value
        if isinstance(found, list) and len(found) == 1:
            return found[0]
        if found is None or isinstance(found, Tensor | list):
            raise UnfitError("how often the loop runs depends on the data.")
        return found


def _as_output(value: Value, kind: int, build: Build) -> fx.Node:
    """Sizes and constants as tensors of the declared type."""
    dtype = torch_type(kind) if kind else None
    if not isinstance(value, fx.Node):
        return build.attribute(to_tensor(value, dtype=dtype))
    is_numbers = value.meta.get("val") is not None and not isinstance(value.meta["val"], Tensor)
    node: fx.Node = build.emit(to_tensor, value, dtype=dtype) if is_numbers else value
    return node


def _finish(build: Build, results: list[Value]) -> fx.GraphModule:
    build.graph.output(results[0] if len(results) == 1 else tuple(results))
    module = fx.GraphModule(build.root, build.graph)
    fuse(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    for node in module.graph.nodes:
        node.meta.clear()  # fake tensors of the example: nothing to keep, and nothing that could be copied
    return module.eval()


def _place(node: "NodeProto") -> str:
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"
