"""A traced network as plain data: JSON for its structure, tensors beside it. No pickle, and no code is run that is not an
operator.

A node is {"name", "op", "target", "args", "kwargs"}. Arguments are JSON values; what JSON lacks is a one-key mapping:
{"node": name}, {"tuple": [...]}, {"dtype": "float32"}, {"device": "cpu"}, {"memory_format": ...}, {"layout": ...}, {"slice":
[...]}, {"float": "inf"}.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.core.errors import InputError, UnfitError

FORMAT = 1
_NAMESPACES = ("aten", "prims", "quantized_decomposed")
_PYTHON: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "pow")
}
_PYTHON |= {
    f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_ite", "sym_not")
}
_NAMES = {function: name for name, function in _PYTHON.items()}


def to_structure(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph as JSON data and the tensors that its nodes read, by name; the guards that torch.export puts before a graph are
    left out. Raises UnfitError for an operator with no name.
    """
    nodes = [_node_to_data(node) for node in module.graph.nodes if node.target != "_guards_fn"]
    names = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    tensors = {name: _attribute(module, name).detach().contiguous() for name in names}
    return {"format": FORMAT, "nodes": nodes}, tensors


def from_structure(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The inverse of `to_structure`; a tensor that is a parameter becomes one. Raises InputError when an operator is unknown, a
    tensor missing or the data malformed.
    """
    if structure.get("format") != FORMAT:
        raise InputError(f"structure.json has format {structure.get('format')!r}; this version reads {FORMAT}.")
    root, graph = nn.Module(), fx.Graph()
    made: dict[str, fx.Node] = {}
    try:
        for entry in structure["nodes"]:
            made[entry["name"]] = _node_from_data(entry, graph, root, tensors, made)
        graph.lint()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"structure.json is malformed: {error!r}.") from error
    module = fx.GraphModule(root, graph)
    return module.eval()


def _node_to_data(node: fx.Node) -> dict[str, Any]:
    if node.op == "output":
        results = node.args[0]
        flat = list(results) if isinstance(results, list | tuple) else [results]
        return {"name": "output", "op": "output", "args": [_to_data(value) for value in flat]}
    if node.op == "call_function":
        kwargs = {name: _to_data(value) for name, value in node.kwargs.items()}
        target = _target_name(node)
        return {"name": node.name, "op": node.op, "target": target, "args": [_to_data(a) for a in node.args], "kwargs": kwargs}
    if node.op in ("placeholder", "get_attr"):
        return {"name": node.name, "op": node.op, "target": str(node.target)}
    raise UnfitError(f"The graph has a {node.op} node {node.name!r}, which cannot be saved.")


def _node_from_data(
    entry: Mapping[str, Any], graph: fx.Graph, root: nn.Module, tensors: Mapping[str, Tensor], made: Mapping[str, fx.Node]
) -> fx.Node:
    if entry["op"] == "placeholder":
        return graph.placeholder(entry["target"])
    if entry["op"] == "get_attr":
        _register(root, entry["target"], tensors[entry["target"]])
        return graph.get_attr(entry["target"])
    args = tuple(_from_data(value, made) for value in entry["args"])
    if entry["op"] == "output":
        return graph.create_node("output", "output", (args[0] if len(args) == 1 else args,), {}, "output")
    kwargs = {name: _from_data(value, made) for name, value in entry["kwargs"].items()}
    return graph.create_node("call_function", _target(entry["target"]), args, kwargs, entry["name"])


def _target_name(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace in _NAMESPACES:
        return str(target)
    if target in _NAMES:
        return _NAMES[target]
    raise UnfitError(f"The operator {target} (node {node.name}) cannot be saved.")


def _target(name: str) -> Callable[..., Any]:
    import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

    if name in _PYTHON:
        return _PYTHON[name]
    parts = name.split(".")
    if len(parts) != 3 or parts[0] not in _NAMESPACES:
        raise InputError(f"structure.json names {name!r}, which is not an operator this version runs.")
    try:
        overload: Callable[..., Any] = getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])
    except AttributeError as error:
        raise InputError(f"structure.json names {name!r}, which this version of torch does not have.") from error
    return overload


def _to_data(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [_to_data(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_to_data(item) for item in value]}
    if isinstance(value, slice):
        return {"slice": [_to_data(value.start), _to_data(value.stop), _to_data(value.step)]}
    kinds = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout", torch.device: "device"}
    for kind, key in kinds.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    if hasattr(value, "tolist"):  # fx keeps argument lists as immutable subclasses; numpy scalars come from some models
        return value.tolist()
    raise UnfitError(f"An argument of type {type(value).__name__} cannot be saved.")


def _from_data(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_from_data(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    key, content = next(iter(value.items()))
    readers: dict[str, Callable[[Any], Any]] = {
        "node": lambda name: made[name],
        "tuple": lambda items: tuple(_from_data(item, made) for item in items),
        "slice": lambda ends: slice(*(_from_data(end, made) for end in ends)),
        "float": float,
        "device": torch.device,
        "dtype": lambda name: _constant(name, torch.dtype),
        "memory_format": lambda name: _constant(name, torch.memory_format),
        "layout": lambda name: _constant(name, torch.layout),
    }
    return readers[key](content)


def _constant(name: str, kind: type) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, kind):
        raise InputError(f"structure.json names torch.{name}, which is no {kind.__name__}.")
    return value


def _attribute(module: nn.Module, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise UnfitError(f"{name} is a {type(value).__name__}, not a tensor, and cannot be saved.")
    return value


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = root
    for part in path.split(".") if path else []:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    elif not hasattr(owner, leaf):
        owner.register_buffer(leaf, value)
