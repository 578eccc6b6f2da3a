"""ONNX nodes to torch.fx nodes, one at a time, each tried on an example without data.

A value is one of three things. A `torch.fx.Node` stands for what depends on the inputs. A tensor is a constant. A Python number
or a list of numbers is a small constant integer tensor, or a scalar: sizes are kept this way, so that the arithmetic that files
do with shapes runs in Python, folds away where sizes are fixed, and follows where they are not.

What does not depend on the inputs is computed at once. What does is run on a fake tensor, which has a shape and no data: its
result is in `node.meta["val"]`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.utils._pytree import tree_flatten, tree_map

from lighten.core.errors import InputError, UnfitError

Value = Any  # fx.Node | Tensor | number | list of numbers | None where an optional input is left out
MAX_ELEMENTS = 1 << 28  # of one tensor of the network on its example: 1 GB in float32
MAX_DEPTH = 16
_LONGEST_LIST = 64
_NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


@dataclass(frozen=True)
class Step:
    """One node of the file. inputs: their values, None for those left out. names: of these. attributes: by name. opset: of its
    domain. path: a name for a layer made of it. outputs: how many of its results have a name.
    """

    op_type: str
    inputs: tuple[Value, ...]
    names: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    path: str
    outputs: tuple[str, ...]

    def input(self, number: int) -> Value:
        """None where it is left out."""
        return self.inputs[number] if number < len(self.inputs) else None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def setting(self, name: str, number: int, default: Any = None) -> Any:
        """What newer versions of an operator take as an input and older ones as an attribute."""
        given = self.input(number)
        return self.attributes.get(name, default) if given is None else given

    def numbers(self, name: str, number: int) -> list[Any] | None:
        """As `setting`, a list of constant numbers. Raises UnfitError when it depends on the inputs."""
        given = self.setting(name, number)
        if given is None:
            return None
        found = constant(given, f"{name} of {self.op_type}")
        listed = found.tolist() if isinstance(found, Tensor) else found
        return list(listed) if isinstance(listed, list | tuple) else [listed]


@dataclass
class Build:
    """root, graph: the network so far. names: what the file calls a constant, by its id."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    fake: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    names: dict[int, str] = field(default_factory=dict)
    _kept: list[Tensor] = field(default_factory=list)
    _parameters: dict[tuple[Any, ...], nn.Parameter] = field(default_factory=dict)
    _attributes: dict[int, fx.Node] = field(default_factory=dict)

    def constant(self, name: str, value: Tensor) -> Value:
        """A tensor of the file. Scalars and short lists of integers become numbers."""
        plain = as_numbers(value)
        if plain is None:
            self.keep(name, value)
            return value
        return plain

    def keep(self, name: str, value: Tensor) -> None:
        """Remembers what the file calls a tensor, as long as it has no name yet."""
        self._kept.append(value)  # an id is only good for as long as its object lives
        self.names.setdefault(id(value), name)

    def input(self, name: str, example: Tensor) -> fx.Node:
        """A new input of the network."""
        node = self.graph.placeholder(identifier(name))
        node.meta["val"] = self.fake.from_tensor(example)
        return node

    def emit(self, function: Callable[..., Any], *args: Value, **kwargs: Value) -> Value:
        """The function's result: computed where nothing depends on the inputs, else a node of the graph."""
        flat, _ = tree_flatten((args, kwargs))
        if not any(isinstance(value, fx.Node) for value in flat):
            return self._folded(function, args, kwargs)
        args, kwargs = self._as_arguments(args), self._as_arguments(kwargs)
        result = self._try(function, args, kwargs)
        node = self.graph.call_function(function, tuple(args), dict(kwargs))
        node.meta["val"] = result
        return node

    def layer(self, path: str, module: nn.Module, *args: Value) -> Value:
        """A module of that name (or one after it, where another has it) called with the arguments, one of which is no
        constant."""
        name = self._free(path or type(module).__name__.lower())
        owner, leaf = self._owner(name)
        owner.add_module(leaf, module)
        args = self._as_arguments(args)
        result = self._try(module, args, {})
        node = self.graph.call_module(name, tuple(args))
        node.meta["val"] = result
        return node

    def parameter(self, value: Tensor) -> nn.Parameter:
        """The constant as a parameter, float32; the same one where the file uses the same tensor again."""
        key = (value.data_ptr(), tuple(value.shape), value.stride())
        if key not in self._parameters:
            self._kept.append(value)
            self._parameters[key] = nn.Parameter(value.detach().float().contiguous().clone())
        return self._parameters[key]

    def path_of(self, value: Value, step: Step) -> str:
        """The name of a layer whose weight is `value`: the initializer's without its last part, or the node's."""
        name = self.names.get(id(value), "")
        stem, _, leaf = name.rpartition(".")
        return dotted(stem) if leaf == "weight" and stem else step.path

    def attribute_of(self, value: Tensor) -> fx.Node | None:
        """The node by which the graph reads a constant; None while nothing does."""
        return self._attributes.get(id(value))

    def _folded(self, function: Callable[..., Any], args: tuple[Value, ...], kwargs: Mapping[str, Value]) -> Value:
        flat, _ = tree_flatten((args, kwargs))
        if any(isinstance(value, Tensor) and value.numel() > _LONGEST_LIST for value in flat):
            self._try(function, args, kwargs)  # refuses what would be too large
        with torch.no_grad():
            result = function(*args, **kwargs)
        return tree_map(_plain, result)

    def _try(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result on fake tensors; None where it cannot be known without data."""
        values = tree_map(lambda value: value.meta.get("val") if isinstance(value, fx.Node) else value, (args, kwargs))
        flat, _ = tree_flatten((args, kwargs))
        if any(isinstance(value, fx.Node) and value.meta.get("val") is None for value in flat):
            return None
        with self.fake, torch.no_grad():
            try:
                result = function(*values[0], **values[1])
            except _NEEDS_DATA:
                return None
        for value in tree_flatten(result)[0]:
            check_size(value)
        return result

    def _as_arguments(self, values: Any) -> Any:
        return tree_map(lambda value: self.attribute(value) if isinstance(value, Tensor) else value, values)

    def attribute(self, value: Tensor) -> fx.Node:
        """A constant as the graph reads it: a parameter where it may be one, else a buffer."""
        if id(value) in self._attributes:
            return self._attributes[id(value)]
        self._kept.append(value)
        name = self._free(dotted(self.names.get(id(value), "")) or "constant")
        owner, leaf = self._owner(name)
        learned = value.dtype == torch.float32 and value.numel() > 1 and bool(torch.isfinite(value).all())
        if learned:
            owner.register_parameter(leaf, self.parameter(value))
        else:
            owner.register_buffer(leaf, value.detach().contiguous().clone())
        # behind the inputs, so that it is there wherever it is read
        last = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after(last[-1]) if last else self.graph.inserting_before(None):
            node = self.graph.get_attr(name)
        with self.fake:
            node.meta["val"] = self.fake.from_tensor(value.detach())
        self._attributes[id(value)] = node
        return node

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        owner = self.root
        for part in path.split(".") if path else []:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        return owner, leaf

    def _free(self, name: str) -> str:
        """The name, or one after it, that nothing on the way to it has."""
        number, found = 1, name
        while not self._is_free(found):
            number += 1
            found = f"{name}_{number}"
        return found

    def _is_free(self, name: str) -> bool:
        owner: Any = self.root
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                return not hasattr(owner, part)
            owner = owner._modules[part]
        return not hasattr(owner, leaf) and not hasattr(fx.GraphModule, leaf)


def constant(value: Value, what: str) -> Any:
    """The value, which must not depend on the inputs. Raises UnfitError naming `what` when it does."""
    if isinstance(value, fx.Node) or (isinstance(value, list) and any(isinstance(item, fx.Node) for item in value)):
        raise UnfitError(f"The {what} depends on the inputs, which is not read.")
    return value


def check_size(value: Any) -> None:
    """Raises InputError for a tensor that is too large to be meant."""
    if isinstance(value, Tensor) and math.prod(int(size) for size in value.shape) > MAX_ELEMENTS:
        raise InputError(f"A tensor of the network would have the shape {tuple(value.shape)}.", hint="The file is damaged.")


def as_numbers(value: Tensor) -> Value:
    """A scalar as a number, a short list of integers as a list; None for every other tensor."""
    if value.dim() == 0 and value.dtype in (torch.float32, torch.int64, torch.int32, torch.bool):
        return value.item()
    if value.dim() == 1 and value.dtype in (torch.int64, torch.int32) and value.numel() <= _LONGEST_LIST:
        return value.tolist()
    return None


def dotted(name: str) -> str:
    """A tensor's or a node's name as the path of a module: "/encoder/layer.0/MatMul" is encoder.layer.0.MatMul."""
    parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./:]+", name) if part]
    return ".".join(parts)


def identifier(name: str) -> str:
    """A name that Python takes for a variable."""
    found = re.sub(r"\W", "_", name) or "input"
    return f"input_{found}" if found[0].isdigit() else found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        numbers = as_numbers(value)
        return value if numbers is None else numbers
    return value
