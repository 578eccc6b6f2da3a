"""Which layers of a network several ranks can share: found in the traced graph, never from the layers' names.

What can be cut can be shared: a channel group (analyze.coupling) is a set of channels that one layer makes, others follow and
another consumes, and no operator between mixes them. Each rank takes an equal run of the channels: layers that make them are
shared by columns, layers that consume them by rows (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053, section 3). The two
linear layers of an MLP are such a pair; query, key and value projections and the one behind attention are one, with whole heads
as channels; two convolutions are one, with depthwise convolutions and batch normalizations between.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.flow import bound_arguments
from lighten.analyze.reclass import as_class
from lighten.analyze.trace import tensor_of, traced
from lighten.core.channels import ChannelGroup, Slice
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.parallel import TensorPlan

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_SHARED: dict[Any, tuple[type[nn.Module], ...]] = {
    aten.linear.default: (nn.Linear,),
    aten.batch_norm.default: (nn.modules.batchnorm._BatchNorm,),
    **dict.fromkeys(_CONVOLUTIONS, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
}


def tensor_plan(model: Model, size: int) -> TensorPlan:
    """How `size` ranks can share the layers of a network.

    Layers that no group names are computed by every rank. Refused, each with its reason: channels that do not divide by
    `size`; those that several places of one tensor hold, as a fused projection of queries, keys and values does; those that a
    normalization, softmax or mean runs over; those of a residual stream, which embeddings or norms of all channels follow;
    layers other than linear, convolution and batch normalization; a layer whose other side is shared already. Raises
    InputError for a size below 1, UnfitError when the network cannot be traced.
    """
    if size < 1:
        raise InputError(f"size must be at least 1. Got {size}.")
    graph = traced(model)
    coupling = couple(graph)
    finder = _Finder(model.module, graph, size, _operators(graph))
    accepted, refused, roles = finder.choose(coupling.groups)
    integers: dict[tuple[str, str], int] = {}
    while accepted and not isinstance(model.module, fx.GraphModule):
        local = cut(graph, coupling, {group.name: torch.arange(group.size // size) for group in accepted})
        found = as_class(model.module, local, model.example)
        if found.module is not None:
            integers = dict(_changed(model.module, found.module))
            break
        # without the head counts that its code holds nothing but attention can go wrong
        gone = [group for group in accepted if group.kind == "head"] or accepted
        refused |= {group.name: found.reason for group in gone}
        accepted = [group for group in accepted if group.name not in refused]
        roles = finder.roles(accepted)
    by_role = {role: tuple(path for path, found in roles.items() if found == role) for role in ("column", "row", "along")}
    return TensorPlan(size, by_role["column"], by_role["row"], by_role["along"], integers, refused)


@dataclass(frozen=True)
class _Finder:
    """operators: by tensor name, the nodes that read it."""

    module: nn.Module
    graph: fx.GraphModule
    size: int
    operators: Mapping[str, list[fx.Node]]

    def choose(self, groups: tuple[ChannelGroup, ...]) -> tuple[list[ChannelGroup], dict[str, str], dict[str, str]]:
        """The groups of most weights first, each where no layer of it is shared by one before; the reasons of the others; the
        roles of layers.
        """
        accepted: list[ChannelGroup] = []
        refused: dict[str, str] = {}
        roles: dict[str, str] = {}
        for group in sorted(groups, key=self._num_weights, reverse=True):
            reason = next(self._misfits(group), "")
            mine = {} if reason else self.roles([group])
            both = next((path for path in mine if path in roles), None)
            if both is not None:
                reason = f"{both} is shared by its other side"
            if reason:
                refused[group.name] = reason
            else:
                accepted.append(group)
                roles |= mine
        return accepted, refused, roles

    def roles(self, groups: list[ChannelGroup]) -> dict[str, str]:
        """By path of a layer: column, row or along."""
        found: dict[str, str] = {}
        for part in (part for group in groups for part in group.slices):
            path, tensor = part.tensor.rpartition(".")[0], tensor_of(self.graph, part.tensor)
            (node,) = self.operators[part.tensor]
            if part.role == "in":
                found[path] = "row"
            elif tensor.dim() > 1 and not _num_groups(node) > 1:
                found[path] = "column"
            else:
                found.setdefault(path, "along")
        return found

    def _num_weights(self, group: ChannelGroup) -> int:
        return sum(tensor_of(self.graph, name).numel() for name in {part.tensor for part in group.slices})

    def _misfits(self, group: ChannelGroup) -> Iterator[str]:
        if group.size % self.size:
            yield f"{group.size} channels do not divide by {self.size}"
        if not group.exact:
            yield "a norm, a softmax or a mean runs over these channels"
        if not any(part.role == "in" for part in group.slices):
            yield "no layer consumes these channels"
        if len({(part.tensor, part.dim) for part in group.slices}) < len(group.slices):
            yield "a tensor holds these channels in several places"
        if len({part.tensor for part in group.slices}) < len(group.slices):
            yield "a layer makes the channels that it consumes"
        for part in group.slices:
            yield from self._unfit(part, group.size)

    def _unfit(self, part: Slice, size: int) -> Iterator[str]:
        shape = tensor_of(self.graph, part.tensor).shape
        readers = self.operators.get(part.tensor, [])
        if part.outer > 1 or part.start or size * part.repeat != shape[part.dim]:
            yield f"{part.tensor} holds these channels in several places"
            return
        if len(readers) != 1 or readers[0].target not in _SHARED:
            yield f"{part.tensor} is not the tensor of one linear layer, convolution or batch normalization"
            return
        num_groups = _num_groups(readers[0])
        if num_groups > 1 and not (num_groups == size and shape[part.dim] == size):
            yield f"{part.tensor} is of a convolution in groups"
        if not isinstance(self.module, fx.GraphModule):
            layer = self.module.get_submodule(part.tensor.rpartition(".")[0])
            if type(layer) not in _SHARED[readers[0].target] and not _is_batch_norm(layer):
                yield f"{part.tensor} belongs to {type(layer).__name__}, which reads it in its own way"


def _is_batch_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _num_groups(node: fx.Node) -> int:
    return int(bound_arguments(node).get("groups", 1)) if node.target in _CONVOLUTIONS else 1


def _operators(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """By memory: a tensor with two names is read by all that reads either."""
    nodes = [node for node in graph.graph.nodes if node.op == "get_attr"]
    readers: dict[int, list[fx.Node]] = {}
    pointers: dict[str, int] = {}
    for node in nodes:
        value: Tensor = tensor_of(graph, str(node.target))
        pointers[str(node.target)] = value.untyped_storage().data_ptr()
        readers.setdefault(pointers[str(node.target)], []).extend(node.users)
    return {name: readers[pointer] for name, pointer in pointers.items()}


def _changed(original: nn.Module, local: nn.Module) -> Iterator[tuple[tuple[str, str], int]]:
    """The integers by which one rank's network differs; those of torch's own layers follow their tensors."""
    theirs = dict(local.named_modules())
    for path, part in original.named_modules():
        if type(part).__module__.startswith("torch.nn") or path not in theirs:
            continue
        for name, value in vars(part).items():
            now = getattr(theirs[path], name, value)
            if type(value) is int and type(now) is int and now != value:
                yield (path, name), now
