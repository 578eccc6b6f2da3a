"""Cutting channels out of a traced graph: tensors lose positions, and every literal that is a size follows.

The graph was traced with the old sizes written into it: shapes of views, ends of slices, groups of convolutions. The rules of
the coupling noted for each of them which axes it measures, so the result runs, trains and exports again without its class.

Dimension key (names): C channels of a group, P positions along a dimension.
"""

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.axes import ATOM, PRODUCT, Axis, atoms, normal
from lighten.analyze.coupling import Coupling
from lighten.analyze.flow import Literal, bound_arguments
from lighten.analyze.trace import tensor_of
from lighten.core.channels import ChannelGroup
from lighten.core.errors import InputError, UnfitError
from lighten.core.recipe import refuse_unknown
from lighten.engine.quiet import quiet

aten = torch.ops.aten
_MEASURES = (aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int)


def cut(module: fx.GraphModule, coupling: Coupling, keep: Mapping[str, Tensor]) -> fx.GraphModule:
    """A copy of the graph with only the kept channels; groups that `keep` does not name stay whole.

    module: the graph that was coupled; it is not changed. keep: by group name, sorted indices, int64 of shape (kept,), at
    least as many as the group's `least`. Raises InputError for an unknown group or indices that are none of its channels,
    UnfitError naming the node when a literal in the graph cannot follow.
    """
    _refuse_bad(coupling.groups, keep)
    kept = _Kept({atom: keep[name] for atom, name in coupling.names.items() if name in keep})
    with quiet():
        result = copy.deepcopy(module)
    _drop_guards(result)
    _cut_attributes(result, coupling, keep)
    for node in list(result.graph.nodes):
        for literal in coupling.literals.get(node.name, ()):
            _follow(kept, node, literal)
        if node.target in _MEASURES:
            _measure(kept, node, coupling)
        if node.target is aten.view.default:
            # kernels choose their strides by size and by whether gradients are needed; where view fits, reshape is view
            node.target = aten.reshape.default
        _resize(kept, node, coupling.axes.get(node.name, ()))
    result.graph.lint()
    result.recompile()
    return result


def cut_tensors(state: Mapping[str, Tensor], groups: Iterable[ChannelGroup], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state` by name, those that the groups touch without the channels that are not kept.

    A tensor loses a position when any group removes it. Tensors that nothing touches are the same objects; names that the
    groups know and `state` does not are left out. Raises InputError like `cut`.
    """
    groups = tuple(groups)
    _refuse_bad(groups, keep)
    cuts = _masks(state, groups, keep)
    return {name: _select(tensor, cuts[name]) if name in cuts else tensor for name, tensor in state.items()}


def kept_positions(coupling: Coupling, keep: Mapping[str, Tensor], *, node: str, dim: int) -> Tensor:
    """Sorted int64: of what the node gives (its first tensor), the positions along a dimension that `cut` leaves."""
    kept = _Kept({atom: keep[name] for atom, name in coupling.names.items() if name in keep})
    return kept.mask(coupling.axes[node][0][dim]).nonzero()[:, 0]


@dataclass
class _Kept:
    """indices: the kept channels of each atom that is cut."""

    indices: Mapping[Axis, Tensor]
    masks: dict[Axis, Tensor] = field(default_factory=dict)

    def touches(self, axis: Axis) -> bool:
        """Whether any of its atoms is cut."""
        return any(atom in self.indices for atom in atoms(axis))

    def size(self, axis: Axis) -> Any:
        """After the cut."""
        axis = normal(axis)
        if axis.joint == ATOM:
            return len(self.indices[axis]) if axis in self.indices else axis.size
        sizes = [self.size(part) for part in axis.parts]
        return prod(sizes) if axis.joint == PRODUCT else sum(sizes)

    def before(self, axis: Axis, position: int) -> int:
        """How many of the positions in front of `position` are kept."""
        return int(self.mask(axis)[:position].sum())

    def mask(self, axis: Axis) -> Tensor:
        """bool of shape (P,): the kept positions."""
        axis = normal(axis)
        if axis.joint == ATOM:
            mask_P = torch.ones(axis.size, dtype=torch.bool)
            if axis in self.indices:
                mask_P = torch.zeros_like(mask_P)
                mask_P[self.indices[axis]] = True
            return mask_P
        masks = [self.mask(part) for part in axis.parts]
        if axis.joint != PRODUCT:
            return torch.cat(masks)
        mask_P = torch.ones(1, dtype=torch.bool)
        for inner in masks:
            mask_P = (mask_P[:, None] & inner).flatten()
        return mask_P

    def ratio(self, axis: Axis) -> tuple[int, int] | None:
        """New size / old size, for an axis that may have dynamic factors; None where it is no ratio."""
        axis = normal(axis)
        parts = [part for part in (axis.parts if axis.joint == PRODUCT else (axis,)) if self.touches(part)]
        if not all(isinstance(part.size, int) for part in parts):
            return None
        return prod(self.size(part) for part in parts), prod(part.size for part in parts)


def _refuse_bad(groups: Iterable[ChannelGroup], keep: Mapping[str, Tensor]) -> None:
    known = {group.name: group for group in groups}
    for name, kept_C in keep.items():
        refuse_unknown("channel group", name, known)
        numbers, group = kept_C.tolist(), known[name]
        if len(numbers) < group.least or numbers != sorted(set(numbers)) or numbers[0] < 0 or numbers[-1] >= group.size:
            raise InputError(
                f"{name}: kept channels must be sorted indices in the range [0, {group.size}), at least {group.least}. "
                f"Got {numbers}."
            )


def _masks(
    state: Mapping[str, Tensor], groups: Iterable[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """By tensor and dimension: bool of shape (P,), the positions that every group keeps."""
    masks: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        gone_C = torch.ones(group.size, dtype=torch.bool)
        gone_C[keep[group.name]] = False
        for found in group.slices:
            if found.tensor not in state:
                continue
            size = state[found.tensor].shape[found.dim]
            mask_P = masks.setdefault(found.tensor, {}).setdefault(found.dim, torch.ones(size, dtype=torch.bool))
            mask_P[found.positions(group.size)[gone_C].flatten()] = False
    return masks


def _select(tensor: Tensor, masks: Mapping[int, Tensor]) -> Tensor:
    for dim, mask_P in sorted(masks.items()):
        if not mask_P.all():
            tensor = tensor.index_select(dim, mask_P.nonzero().flatten().to(tensor.device))
    return tensor


@torch.no_grad()
def _cut_attributes(module: fx.GraphModule, coupling: Coupling, keep: Mapping[str, Tensor]) -> None:
    """Names of one memory still are one tensor afterwards."""
    names = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    state = {name: tensor_of(module, name) for name in names if isinstance(_attribute(module, name), Tensor)}
    masks = _masks(state, coupling.groups, keep)
    new: dict[Any, Tensor] = {}
    for name, cuts in masks.items():
        old = state[name]
        selected = _select(old, cuts).clone()
        made = nn.Parameter(selected, old.requires_grad) if isinstance(old, nn.Parameter) else selected
        new.setdefault(_memory(old), made)
    everywhere = (
        dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False)) | state
    )
    for name, tensor in everywhere.items():
        if _memory(tensor) in new:
            path, _, leaf = name.rpartition(".")
            # assignment to a registered name keeps it a parameter or a buffer, persistent or not
            setattr(_attribute(module, path), leaf, new[_memory(tensor)])


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split(".") if path else []:
        value = getattr(value, part)
    return value


def _drop_guards(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    if hasattr(module, "_guards_fn"):
        delattr(module, "_guards_fn")


def _follow(kept: _Kept, node: fx.Node, literal: Literal) -> None:
    if not any(kept.touches(axis) for axis in literal.axes):
        return
    if literal.form == "parts":
        given = bound_arguments(node)
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (given["self"], [kept.size(axis) for axis in literal.axes], given["dim"]), {}
        return
    old = bound_arguments(node)[literal.argument]
    if literal.form == "bound":
        _write(node, literal.argument, _bound(kept, node, literal, old))
    elif literal.form == "size":
        _write(node, literal.argument, _scaled(kept, node, literal.axes[0], old))
    else:
        _write(node, literal.argument, [_scaled(kept, node, *pair) for pair in zip(literal.axes, old, strict=True)])


def _measure(kept: _Kept, node: fx.Node, coupling: Coupling) -> None:
    """What the graph computes from a size goes on with the old one; literals that are new sizes are scaled where they stand."""
    source, *place = node.args
    (axes,) = coupling.axes.get(source.name, ((),))  # type: ignore[union-attr, arg-type]
    measured = [axes[dim] for dim in place] if place else list(axes)  # type: ignore[index]
    if not any(kept.touches(axis) for axis in measured):
        return
    ratio = kept.ratio(measured[0]) if place else None
    if ratio is None:
        raise _stuck(node, "self")
    users = list(node.users)
    with node.graph.inserting_after(node):
        product = node.graph.call_function(operator.mul, (node, ratio[1]))
    with node.graph.inserting_after(product):
        old = node.graph.call_function(operator.floordiv, (product, ratio[0]))
    for user in users:
        user.replace_input_with(node, old)


def _bound(kept: _Kept, node: fx.Node, literal: Literal, old: Any) -> Any:
    size = literal.axes[0].size
    if old is None or (isinstance(old, int) and old >= size):
        return old
    if not isinstance(old, int):
        raise _stuck(node, literal.argument)
    return kept.before(literal.axes[0], old if old >= 0 else max(old + size, 0))


def _scaled(kept: _Kept, node: fx.Node, axis: Axis, old: Any) -> Any:
    """The literal `old` for the size of the axis, after the cut; a size computed in the graph is multiplied and divided."""
    if not kept.touches(axis) or old == -1:
        return old
    if isinstance(old, int):
        return kept.size(axis)
    ratio = kept.ratio(axis)
    if ratio is None:
        raise _stuck(node, str(old))
    graph = node.graph
    with graph.inserting_before(node):
        product = graph.call_function(operator.mul, (old, ratio[0]))
        result = graph.call_function(operator.floordiv, (product, ratio[1]))
    product.meta["val"] = old.meta["val"] * ratio[0]
    result.meta["val"] = product.meta["val"] // ratio[1]
    return result


def _write(node: fx.Node, argument: str, value: Any) -> None:
    names = [given.name for given in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(argument)
    if argument in node.kwargs or place >= len(node.args):
        node.kwargs = {**node.kwargs, argument: value}
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])


def _resize(kept: _Kept, node: fx.Node, outputs: tuple[tuple[Axis, ...], ...]) -> None:
    """Brings the sizes noted at the node up to date, for the next analysis of the graph."""
    if not any(kept.touches(axis) for axes in outputs for axis in axes):
        return
    given = node.meta["val"]
    items = [given] if isinstance(given, Tensor) else list(given)
    places = [place for place, item in enumerate(items) if isinstance(item, Tensor)]
    for place, axes in zip(places, outputs, strict=True):
        old = items[place]
        sizes = [_new_size(kept, axis, size) for axis, size in zip(axes, old.shape, strict=True)]
        items[place] = old.new_empty(sizes)
    node.meta["val"] = items[0] if isinstance(given, Tensor) else type(given)(items)


def _new_size(kept: _Kept, axis: Axis, size: Any) -> Any:
    ratio = kept.ratio(axis) if kept.touches(axis) else (1, 1)
    return size if ratio is None else size * ratio[0] // ratio[1]


def _stuck(node: fx.Node, what: str) -> UnfitError:
    return UnfitError(
        f"{node.name} ({node.target}): its argument {what} cannot follow the cut.",
        hint="Leave out the groups that reach this operator.",
    )
