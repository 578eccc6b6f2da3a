"""Channel groups: which slices of which tensors must be cut together, found from the traced graph alone.

What DepGraph (Fang et al. 2023, arXiv:2301.12900) calls a group is here an atom of the axis algebra (axes.py) that is free and
that at least one weight makes: every place where the atom occurs in a tensor is a slice of the group.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, fx

from lighten.analyze import contractions, layout, lookup
from lighten.analyze import pointwise as elementwise
from lighten.analyze.axes import PRODUCT, SUM, Axis, atoms, fix, normal, reason_of, unify
from lighten.analyze.exact import inexact
from lighten.analyze.flow import Flow, Literal, follow
from lighten.analyze.trace import tensor_of
from lighten.core.channels import ChannelGroup, Fixed, Slice

_SHARED = "is shared by the query heads of one key/value head, which go together"
_INSIDE = "is inside an attention head"
_UNMADE = "is made by no weight"
_TIED = "shares memory with a tensor of another shape"


@dataclass(frozen=True)
class Coupling:
    """groups: what can be cut, in execution order. fixed: weight dimensions that cannot, with the reason.

    The rest is what `cut` needs. axes: by node name, of each dimension of each tensor it gives. literals: by node name, the
    arguments that are sizes. names: the group of each free atom.
    """

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[Fixed, ...]
    axes: Mapping[str, tuple[tuple[Axis, ...], ...]] = field(repr=False)
    literals: Mapping[str, tuple[Literal, ...]] = field(repr=False)
    names: Mapping[Axis, str] = field(repr=False)


def couple(module: fx.GraphModule) -> Coupling:
    """The channel groups of a graph as `torch.export` records it (trace.export_program(...).module()), not simplified.

    Inputs and outputs of the network stay as they are. Nothing is refused: what no rule understands is fixed, with the
    operator's name as the reason. Takes time linear in the number of nodes.
    """
    rules = elementwise.RULES | layout.RULES | lookup.RULES | contractions.RULES
    flow = follow(module, rules, elementwise.pointwise)
    _share_uses(flow, _tie(module, flow))
    heads = _heads(flow)
    inside = {atom for found in flow.attentions for axis in found.inner for atom in atoms(axis)}
    names = _names(flow)
    _fix_unmade(flow, names)
    spoiled = inexact(module, flow, names, consumed=_consumed(flow))
    slices = _slices(flow, names)
    kinds: dict[tuple[str, int], set[str]] = {}
    for use in flow.uses:
        kinds.setdefault((use.tensor, use.dim), set()).add(use.kind)
    least, experts = _least(flow), {atom for axis in flow.picked for atom in atoms(axis)}
    groups = []
    for atom, name in names.items():
        kind = "head" if atom in heads else "channel" if atom in inside else _kind(kinds, slices[name])
        kind = "expert" if atom in experts else kind
        groups.append(ChannelGroup(name, atom.size, kind, tuple(slices[name]), name not in spoiled, least.get(atom, 1)))
    axes = {node.name: tuple(value.axes for value in given) for node, given in flow.values.items()}
    literals = {node: tuple(found) for node, found in flow.literals.items()}
    return Coupling(tuple(groups), tuple(_fixed(flow)), axes, literals, names)


def _tie(module: fx.GraphModule, flow: Flow) -> dict[str, list[str]]:
    """Names of one memory are one tensor: the axes are unified. Returns the names by the first of them."""
    seen: dict[int, str] = {}
    tied: dict[str, list[str]] = {}
    for name, value in flow.tensors.items():
        tensor = tensor_of(module, name)
        if not tensor.numel() or not value.dims:
            continue
        first = seen.setdefault(tensor.untyped_storage().data_ptr(), name)
        if first == name:
            continue
        other = tensor_of(module, first)
        if _layout(other) == _layout(tensor):
            tied.setdefault(first, [first]).append(name)
            for ours, theirs in zip(flow.tensors[first].axes, value.axes, strict=True):
                unify(ours, theirs, _TIED)
        else:
            for axis in (*flow.tensors[first].axes, *value.axes):
                fix(axis, _TIED)
    return tied


def _share_uses(flow: Flow, tied: Mapping[str, list[str]]) -> None:
    """What is done with one name is done with all: torch.export calls a shared tensor by any of them."""
    everyone = {name: names for names in tied.values() for name in names}
    flow.uses = [dataclasses.replace(use, tensor=name) for use in flow.uses for name in everyone.get(use.tensor, [use.tensor])]


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype


def _heads(flow: Flow) -> set[Axis]:
    """Free atoms that products of two activations run over. What is inside such a product is fixed: heads go as a whole."""
    heads: set[Axis] = set()
    for found in flow.attentions:
        free = [atom for axis in found.batch for atom in atoms(axis) if not atom.reason]
        if not free:
            continue
        heads.add(free[0])
        for atom in free[1:]:
            if atom is not free[0]:
                fix(atom, _SHARED)
        for axis in found.inner:
            _fix_except(axis, free[0])
    return {atom for atom in heads if not atom.reason}


def _fix_except(axis: Axis, head: Axis) -> None:
    for atom in atoms(axis):
        if atom is not head:
            fix(atom, _INSIDE)


def _names(flow: Flow) -> dict[Axis, str]:
    """Free atoms in the order in which weights make them, named by the first weight; a second one of a weight gets `#2`."""
    names: dict[Axis, str] = {}
    counts: dict[str, int] = {}
    for use in flow.uses:
        if use.role != "out":
            continue
        for atom in atoms(flow.tensors[use.tensor].axes[use.dim]):
            if atom.reason or atom in names:
                continue
            stem = use.tensor.removesuffix(".weight")
            counts[stem] = counts.get(stem, 0) + 1
            names[atom] = stem if counts[stem] == 1 else f"{stem}#{counts[stem]}"
    return names


def _fix_unmade(flow: Flow, names: Mapping[Axis, str]) -> None:
    for axis in (axis for value in flow.tensors.values() for axis in value.axes):
        for atom in atoms(axis):
            if atom not in names:
                fix(atom, _UNMADE)


def _role(flow: Flow) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    for use in flow.uses:
        if roles.get((use.tensor, use.dim)) != "out":
            roles[use.tensor, use.dim] = use.role
    return roles


def _consumed(flow: Flow) -> set[tuple[str, int]]:
    return {place for place, role in _role(flow).items() if role == "in"}


def _slices(flow: Flow, names: Mapping[Axis, str]) -> dict[str, list[Slice]]:
    slices: dict[str, list[Slice]] = {name: [] for name in names.values()}
    roles = _role(flow)
    for tensor, value in flow.tensors.items():
        for dim, axis in enumerate(value.axes):
            here: dict[str, list[Slice]] = {}
            places = [place for place in _places(normal(axis), 0, 1, outers=()) if place[0] in names]
            for atom, *position in places:
                found = Slice(tensor, dim, roles.get((tensor, dim), "along"), *position)
                here.setdefault(names[atom], []).append(found)
            for name, parts in here.items():
                slices[name] += _merged(parts)
    return slices


def _places(
    axis: Axis, start: int, stride: int, *, outers: tuple[tuple[int, int], ...]
) -> Iterator[tuple[Axis, int, int, int, int]]:
    """Each atom of an axis as (atom, start, repeat, outer, period) of a Slice. outers: (count, period), slowest first."""
    if axis.joint == SUM:
        for term in axis.parts:
            yield from _places(term, start, stride, outers=outers)
            start += term.size * stride
    elif axis.joint == PRODUCT:
        for place, part in enumerate(axis.parts):
            inner = stride * prod(later.size for later in axis.parts[place + 1 :])
            count = prod(earlier.size for earlier in axis.parts[:place])
            around = (*outers, (count, inner * part.size)) if count > 1 else outers
            yield from _places(part, start, inner, outers=around)
    else:
        for offset, count, period in _flat(outers):
            yield axis, start + offset, stride, count, period


def _flat(outers: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int]]:
    """Nested repetitions as (offset, count, period): the innermost one, once for each position of those around it."""
    if not outers:
        return [(0, 1, 0)]
    *around, (count, period) = outers
    offsets = torch.zeros(1, dtype=torch.int64)
    for times, step in around:
        offsets = (offsets[:, None] + torch.arange(times) * step).flatten()
    return [(offset, count, period) for offset in offsets.tolist()]


def _merged(slices: list[Slice]) -> list[Slice]:
    """Slices of one group at equal distances, as those of a fused q/k/v, are one with an outer count."""
    if len(slices) < 2 or any(part.outer != 1 or part.repeat != slices[0].repeat for part in slices):
        return slices
    steps = {later.start - earlier.start for earlier, later in itertools.pairwise(slices)}
    if len(steps) > 1:
        return slices
    return [dataclasses.replace(slices[0], outer=len(slices), period=steps.pop())]


def _least(flow: Flow) -> dict[Axis, int]:
    """How many channels of an atom must stay so that the network finds as many positions as it picks."""
    least: dict[Axis, int] = {}
    for axis, count in flow.floors:
        for atom in atoms(axis):
            # of an axis of several atoms too: the largest of them alone has `count`, or all of them stay whole
            needed = min(count, atom.size) if isinstance(count, int) else atom.size
            least[atom] = max(least.get(atom, 1), needed)
    return least


def _kind(kinds: Mapping[tuple[str, int], set[str]], slices: list[Slice]) -> str:
    """A neuron's only makers and its only consumer are linear layers."""
    found = set[str]().union(*(kinds.get((part.tensor, part.dim), set()) for part in slices))
    taken = [part for part in slices if part.role == "in"]
    return "neuron" if found == {"linear"} and len(taken) == 1 else "channel"


def _fixed(flow: Flow) -> Iterator[Fixed]:
    for tensor, dim in dict.fromkeys((use.tensor, use.dim) for use in flow.uses):
        axis = flow.tensors[tensor].axes[dim]
        if axis.size > 1 and all(atom.reason for atom in atoms(axis)):
            yield Fixed(tensor, dim, reason_of(axis))
