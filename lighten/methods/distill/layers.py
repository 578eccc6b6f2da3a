"""Which layer of a student learns from which of its teacher: by name, by depth, by how alike they see the examples, or as told.

A layer is a node of the traced graph; its features are what the node gives. The sums of residual networks are taken where there
are any, else the activation functions, else convolutions and linear layers.

Dimension key: B examples, C channels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.trace import find_sites
from lighten.core.errors import InputError, UnfitError
from lighten.core.recipe import refuse_unknown
from lighten.ops.features import similarity

aten = torch.ops.aten
MATCHES = ("name", "depth", "similarity")
ATTENTION = aten.scaled_dot_product_attention.default
_MOST = 4  # pairs chosen without being told: each costs a comparison in every step
_MISFIT = -1e3  # no sum of similarities makes up for one
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_ACTIVATIONS = (
    *(aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.hardtanh.default),
    *(aten.hardtanh_.default, aten.hardswish.default, aten.hardswish_.default, aten.silu.default, aten.silu_.default),
    *(aten.gelu.default, aten.elu.default, aten.tanh.default),
)
_WEIGHTED = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
# what a value's channels follow from: the first of these behind it
_CHANNELS_IN_DIM_1 = (*_WEIGHTED[:3], aten.batch_norm.default, aten.group_norm.default)
_CHANNELS_LAST = (aten.linear.default, aten.layer_norm.default, aten.embedding.default, aten.rms_norm.default)


Named = tuple[str, Tensor]
Fits = Callable[[Named, Named], bool]
"""Whether features of the student and of the teacher, each with its node's name, can be compared."""


@dataclass(frozen=True)
class Pair:
    """Names of two nodes. alike: their similarity in [0, 1] before training, None where it was not asked."""

    student: str
    teacher: str
    alike: float | None = None


class Watching(nn.Module):
    """A graph that is run as it is, and keeps what some of its nodes give. found: by name, after a run."""

    def __init__(self, graph: fx.GraphModule, names: Iterable[str]) -> None:
        super().__init__()
        self.graph, self.found, self._run = graph, dict[str, Any](), _Run(graph)
        self._run.wanted = frozenset(names)

    def forward(self, *inputs: Tensor) -> Any:
        """What the graph gives."""
        self._run.found = {}
        result = self._run.run(*inputs)
        self.found = self._run.found
        return result


class _Run(fx.Interpreter):
    wanted: frozenset[str] = frozenset()
    found: dict[str, Any]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.found[n.name] = value
        return value


def matched(
    match: str | Mapping[str, str],
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    *,
    inputs: tuple[Tensor, ...],
    only: Sequence[Any] = (),
    fits: Fits | None = None,
) -> tuple[Pair, ...]:
    """Pairs in the order of the student's layers, at most 4 unless told. match: one of MATCHES, or names of the student's nodes
    or sites -> names of the teacher's. only: operators that make a layer, in place of the usual ones. fits: which features of
    the two can be compared; by similarity no others are paired.

    Raises InputError for a name that a network has not, UnfitError where nothing can be paired.
    """
    if isinstance(match, Mapping):
        return tuple(Pair(_node(student, one, "student"), _node(teacher, other, "teacher")) for one, other in match.items())
    layers = [_layers(graph, inputs, only) for graph in (student, teacher)]
    for found, who in zip(layers, ("student", "teacher"), strict=True):
        if not found:
            raise UnfitError(f"The {who} has no layer whose features could be compared.", hint="Name layers in `match`.")
    if match == "name":
        pairs = [Pair(name, name) for name in layers[0] if name in layers[1]]
    else:
        pairs = _by_depth(*layers) if match == "depth" else _by_similarity(layers[0], layers[1], fits or _always)
    if not pairs:
        raise InputError(
            f"No layer of the student can be paired with one of the teacher by {match}. It has "
            f"{', '.join(list(layers[0])[:5])}; the teacher has {', '.join(list(layers[1])[:5])}.",
            hint="Use another `match`, or features that compare examples, such as relations.",
        )
    return tuple(_evenly(pairs))


def channel_dim(graph: fx.GraphModule, name: str, value: Tensor) -> int:
    """The dimension of a value's channels: 1 behind a convolution, the last behind a linear layer or a table."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    waiting, seen = [node], {node}
    while waiting and value.dim() > 2:
        node = waiting.pop(0)
        if node.target in _CHANNELS_IN_DIM_1 or node.target in _CHANNELS_LAST:
            return 1 if node.target in _CHANNELS_IN_DIM_1 else value.dim() - 1
        ahead = [one for one in node.all_input_nodes if one not in seen]
        seen.update(ahead)
        waiting += ahead
    return 1


def _node(graph: fx.GraphModule, name: str, who: str) -> str:
    """Of a node or of a site."""
    sites = {site.name: site.node for site in find_sites(graph)}
    nodes = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    refuse_unknown(f"layer of the {who}", str(name), [*sites, *nodes])
    return sites.get(name, name)


@torch.no_grad()
def _layers(graph: fx.GraphModule, inputs: tuple[Tensor, ...], only: Sequence[Any]) -> dict[str, Tensor]:
    """Features by name, in execution order."""
    wanted = {node.name: node.target for node in graph.graph.nodes if node.op == "call_function"}
    kinds = [only] if only else [_SUMS, _ACTIVATIONS, _WEIGHTED]
    names = [name for name, target in wanted.items() if any(target in kind for kind in kinds)]
    outputs = {node.name for node in graph.graph.output_node().all_input_nodes}
    run = Watching(graph, names)
    run(*inputs)
    batch = len(inputs[0])
    usable = {
        name: value
        for name, value in run.found.items()
        if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == batch and name not in outputs
    }
    sums = {node.name for node in graph.graph.nodes if node.target in _SUMS and _adds_two(node, batch)}
    for kind in kinds:
        found = {name: value for name, value in usable.items() if wanted[name] in kind and (kind is not _SUMS or name in sums)}
        if found:
            return found
    return {}


def _adds_two(node: fx.Node, batch: int) -> bool:
    """Whether it adds two values of the examples: not a bias, not a table of positions."""
    values = [arg.meta.get("val") if isinstance(arg, fx.Node) else None for arg in node.args[:2]]
    if any(value is None for value in values):
        return all(isinstance(arg, fx.Node) and arg.op == "call_function" for arg in node.args[:2])
    return all(isinstance(value, Tensor) for value in values) and values[0].shape == values[1].shape  # type: ignore[union-attr]


def _by_depth(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> list[Pair]:
    """The layer at the same fraction of the way, the last with the last."""
    names = list(teacher)
    places = [round((number + 1) / len(student) * len(names)) - 1 for number in range(len(student))]
    return [Pair(name, names[max(0, place)]) for name, place in zip(student, places, strict=True)]


def _by_similarity(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], fits: Fits) -> list[Pair]:
    """The pairs with the largest sum of similarities in which no layer learns from an earlier one than the layer before it.
    A layer that fits none has no pair.
    """
    alike = torch.tensor([[_alike(one, two, fits) for two in teacher.items()] for one in student.items()])
    best, origin = alike[0], []
    for row in alike[1:]:
        top, place = best.cummax(0)
        origin.append(place)
        best = top + row
    places = [int(best.argmax())]
    for place in reversed(origin):
        places.append(int(place[places[-1]]))
    names = list(teacher)
    chosen = zip(student, reversed(places), alike, strict=True)
    return [Pair(name, names[place], round(float(row[place]), 4)) for name, place, row in chosen if row[place] >= 0]


def _alike(one: Named, two: Named, fits: Fits) -> float:
    return float(similarity(one[1].flatten(1), two[1].flatten(1))) if fits(one, two) else _MISFIT


def _always(one: Named, two: Named) -> bool:
    return True


def _evenly(pairs: list[Pair]) -> list[Pair]:
    """At most _MOST of them, the last among them."""
    if len(pairs) <= _MOST:
        return pairs
    return [pairs[round((number + 1) * len(pairs) / _MOST) - 1] for number in range(_MOST)]
