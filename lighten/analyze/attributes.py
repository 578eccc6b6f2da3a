"""What a module knows about the sizes of its tensors besides the tensors: attributes of torch's layers, integers of anyone's.

Dimension key: O output channels, I input channels, G groups of a convolution.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from torch import fx, nn

from lighten.analyze.flow import bound_arguments

Shapes = Mapping[str, tuple[int, ...]]

_MOST_ROUNDS = 3
_MOST_COMBINATIONS = 40  # of one class; more than a class with three integers has


def groups_in(graph: fx.GraphModule) -> dict[str, int]:
    """The number of groups of each convolution and group normalization, by the path of the module that owns its weight."""
    found = {}
    for node in graph.graph.nodes:
        given = bound_arguments(node)
        count, weight = given.get("groups", given.get("num_groups")), given.get("weight")
        while isinstance(weight, fx.Node) and weight.op != "get_attr":  # the kernel of weight normalization is computed
            weight = next(iter(weight.all_input_nodes), None)
        if isinstance(count, int) and isinstance(weight, fx.Node):
            found[str(weight.target).partition(".parametrizations.")[0].rpartition(".")[0]] = count
    return found


def follow_tensors(module: nn.Module, groups: Mapping[str, int]) -> None:
    """Corrects the attributes of torch's own layers from the shapes of their tensors, in place.

    groups: of convolutions and group normalizations, by path; those that are not named keep theirs.
    """
    for path, layer in module.named_modules():
        found = next((sizes for kind, sizes in _SIZES.items() if isinstance(layer, kind)), None)
        if found is not None and layer.state_dict():  # a normalization without tensors has no shape to follow
            for name, value in found(layer, groups.get(path)).items():
                setattr(layer, name, value)


def _convolution(layer: Any, groups: int | None) -> dict[str, Any]:
    num_groups = groups or layer.groups
    first, second = layer.weight.shape[:2]
    sizes = (first, second * num_groups) if layer.transposed else (second * num_groups, first)
    return {"groups": num_groups, "in_channels": sizes[0], "out_channels": sizes[1]}


def _recurrent(layer: Any, groups: int | None) -> dict[str, Any]:
    gates = layer.weight_ih_l0.shape[0]
    return {
        "input_size": layer.weight_ih_l0.shape[1],
        "hidden_size": gates // {"LSTM": 4, "GRU": 3}.get(layer.mode, 1),
        "proj_size": layer.weight_hh_l0.shape[1] if layer.proj_size else 0,
    }


def _normalized(layer: Any, groups: int | None) -> dict[str, Any]:
    return {"normalized_shape": tuple(layer.weight.shape)}


_SIZES: dict[type, Callable[[Any, int | None], dict[str, Any]]] = {
    nn.Linear: lambda layer, groups: {"out_features": layer.weight.shape[0], "in_features": layer.weight.shape[1]},
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._NormBase: lambda layer, groups: {
        "num_features": len(layer.running_mean if layer.weight is None else layer.weight)
    },
    nn.LayerNorm: _normalized,
    nn.RMSNorm: _normalized,
    nn.GroupNorm: lambda layer, groups: {
        "num_groups": groups or layer.num_groups,
        "num_channels": layer.weight.shape[0],
    },
    nn.Embedding: lambda layer, groups: {
        "num_embeddings": layer.weight.shape[0],
        "embedding_dim": layer.weight.shape[1],
    },
    nn.PReLU: lambda layer, groups: {"num_parameters": layer.weight.numel()},
    nn.RNNBase: _recurrent,
}


@dataclass(frozen=True)
class Score:
    """How far a forward pass got. completed: modules that ran, infinite for all. error: of the output. why: it ended early."""

    completed: float
    error: float = inf
    why: str = ""

    def beats(self, other: "Score") -> bool:
        """More modules ran, or the output is nearer."""
        return (self.completed, -self.error) > (other.completed, -other.error)


@dataclass
class Integer:
    """An attribute of one class, in all its instances. owners: the instances. options: what they may hold, likeliest first."""

    name: str
    owners: list[nn.Module]
    options: list[tuple[int, ...]] = field(default_factory=list)

    def take(self, values: tuple[int, ...]) -> None:
        """Sets them."""
        for owner, value in zip(self.owners, values, strict=True):
            setattr(owner, self.name, value)


def follow_integers(module: nn.Module, old: Shapes, new: Shapes, *, score: Callable[[], Score], good: float) -> Score:
    """Finds the integers of modules that are not torch's, such as `heads` and `width`, by trying; sets them, in place.

    old, new: shapes of the tensors before and after. An integer may follow a dimension of a tensor of its module: what equals
    it takes its new size, what is a factor of it shrinks in proportion (heads). score: runs the network as it stands.
    good: the error that ends the search. Gives the best score; its integers are those that are set.
    """
    classes = list(_candidates(module, old, new))
    for integer in itertools.chain(*classes):
        integer.take(integer.options[0])
    best = score()
    for _ in range(_MOST_ROUNDS):
        before = best
        for integers in classes:
            best = _better(integers, best, score=score, good=good)
        if best is before:
            break
    return best


def _better(integers: list[Integer], best: Score, *, score: Callable[[], Score], good: float) -> Score:
    """The integers of one class at their best, with those of the others as they are."""
    taken = tuple(tuple(int(getattr(owner, one.name)) for owner in one.owners) for one in integers)
    for values in itertools.islice(itertools.product(*(one.options for one in integers)), _MOST_COMBINATIONS):
        if best.error <= good:
            break
        _take(integers, values)
        found = score()
        if found.beats(best):
            best, taken = found, values
    _take(integers, taken)
    return best


def _take(integers: Iterable[Integer], values: Iterable[tuple[int, ...]]) -> None:
    for integer, value in zip(integers, values, strict=True):
        integer.take(value)


def _candidates(module: nn.Module, old: Shapes, new: Shapes) -> Iterator[list[Integer]]:
    """The integers of each class that have a choice; innermost classes first, since their faults show first."""
    instances: dict[type, dict[str, nn.Module]] = {}
    for path, part in module.named_modules():
        if not type(part).__module__.startswith("torch.nn") or isinstance(part, nn.MultiheadAttention):
            instances.setdefault(type(part), {})[path] = part
    for places in reversed(instances.values()):
        pairs = {path: _pairs(path, old, new) for path in places}
        names = dict.fromkeys(name for part in places.values() for name, _ in _integers(part))
        found = [_integer(name, places, pairs) for name in names]
        if chosen := [integer for integer in found if len(integer.options) > 1]:
            yield chosen


def _integer(name: str, places: Mapping[str, nn.Module], pairs: Mapping[str, Mapping[Any, tuple[int, int]]]) -> Integer:
    owners = {path: part for path, part in places.items() if type(getattr(part, name, None)) is int}
    held = tuple(getattr(part, name) for part in owners.values())
    exact: list[tuple[int, ...]] = []
    scaled: list[tuple[int, ...]] = []
    for rule in dict.fromkeys(rule for path in owners for rule in pairs[path]):
        sizes = [pairs[path].get(rule, (1, 1)) for path in owners]
        values = tuple(value * new // old for value, (old, new) in zip(held, sizes, strict=True))
        if any(value * new % old for value, (old, new) in zip(held, sizes, strict=True)):
            continue
        same = all(value == old for value, (old, new) in zip(held, sizes, strict=True) if old != new)
        (exact if same else scaled).append(values)
    # of two factors of a size, the number of heads is the one that shrinks: inside a head nothing is cut
    counts = [*scaled, held] if "head" in name and "dim" not in name and "size" not in name else [held, *scaled]
    return Integer(name, list(owners.values()), list(dict.fromkeys([*exact, *counts])))


def _pairs(path: str, old: Shapes, new: Shapes) -> dict[Any, tuple[int, int]]:
    """(before, after) of the dimensions of the module's tensors that changed, by relative name and dimension."""
    prefix = f"{path}." if path else ""
    found = {}
    for name in (name for name in new if name.startswith(prefix)):
        for dim, sizes in enumerate(zip(old.get(name, new[name]), new[name], strict=True)):
            if sizes[0] != sizes[1]:
                found[name.removeprefix(prefix), dim] = sizes
    return found


def _integers(part: nn.Module) -> Iterator[tuple[str, int]]:
    for name, value in vars(part).items():
        if type(value) is int and value > 1 and not name.startswith("_"):
            yield name, value
