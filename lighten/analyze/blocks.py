"""Residual blocks and layers of a traced graph: what can be taken out of the depth of a network.

A block is the branch of an addition x + f(x). It is found from the graph alone: whatever the network would no longer compute if
x stood in place of the sum. A layer is the chain of the blocks of one repeated module. Which modules repeat, and which blocks
one of them owns, is asked of the nesting of the tensors' names: it is the module tree, and the one part of it that outlives
cutting and saving. What the names say is not read.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.cost import stored_nodes
from lighten.analyze.macs import macs
from lighten.analyze.shapes import propagate
from lighten.analyze.trace import tensor_of
from lighten.engine.quiet import quiet

aten = torch.ops.aten
KINDS = ("block", "layer")
_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
# the first of these that reads a value knows where its channels are
_CHANNELS_IN_DIM_1 = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), True),
    **dict.fromkeys((aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default), True),
    **dict.fromkeys((aten.linear.default, aten.layer_norm.default, aten.rms_norm.default), False),
}


@dataclass(frozen=True)
class Block:
    """A part that can be removed: the value that enters it takes the place of the sum that leaves it.

    name: common path of the weights inside, unique in its kind. kind: "block", one residual branch, or "layer", the chain of
    branches of one repeated module. start, end: the nodes of the value that enters and of the sum that leaves, of one shape.
    nodes: what goes, in execution order, the sum included; a normalization behind the sum stays. tensors: what only these nodes
    read. dim: the dimension of the channels in the value. macs: of one example. params, weight_bytes: of `tensors`.
    """

    name: str
    kind: str
    start: str
    end: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    dim: int
    macs: int
    params: int
    weight_bytes: int


def blocks(module: fx.GraphModule, example: tuple[Tensor, ...]) -> tuple[Block, ...]:
    """Every block, then every layer, each in execution order; a layer's blocks are listed as blocks too.

    module: as `torch.export` records it (trace.traced). example: one batch, for the multiply-accumulates of one example.
    Not listed, since x could not stand in place of the sum: a branch beside a projection, as at the beginning of a stage; one
    of which something is read elsewhere; one that changes outside values in place. Nor are branches that read no weight, and
    those that hold blocks of their own. Takes time linear in the number of nodes for each addition.
    """
    macs_of = _macs(module, example)
    idle = _idle(module.graph)
    branches = _innermost([found for node in module.graph.nodes if (found := _branch(node, idle))], macs_of)
    chains = _chains(branches, {str(node.target) for node in module.graph.nodes if _is_parameter(node)}, idle)
    names = _names(branches, module)
    return (
        *(_describe(module, branch, macs_of, name=name, kind="block") for name, branch in zip(names, branches, strict=True)),
        *(_describe(module, chain, macs_of, name=name, kind="layer") for name, chain in chains.items()),
    )


def drop(module: fx.GraphModule, gone: Iterable[Block]) -> fx.GraphModule:
    """A copy without these blocks, with tensors of its own; other nodes keep their names and notes, `module` is not changed.

    gone: blocks of `module`, in any order, none inside another. Raises KeyError for a block of another graph.
    """
    with quiet():
        return copy.deepcopy(without(module, gone))


def without(module: fx.GraphModule, gone: Iterable[Block]) -> fx.GraphModule:
    """As `drop`, on the tensors of `module`: quick, to be run and not to be changed."""
    graph = copy.deepcopy(module.graph)
    nodes = {node.name: node for node in graph.nodes}
    # from the last to the first: where one block ends another may start
    for block in sorted(gone, key=lambda block: nodes[block.end], reverse=True):
        _bypass(nodes[block.start], nodes[block.end], block)
        for name in reversed(block.nodes):
            graph.erase_node(nodes[name])
    for node in [node for node in graph.nodes if node.op == "call_module" and node.target == "_guards_fn"]:
        graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # strides may have changed; where view fits, reshape is view
    graph.eliminate_dead_code(lambda node: node.is_impure() and not _is_check(node))
    result = fx.GraphModule(module, graph)  # takes over only the tensors that are still read
    result.meta.update(module.meta)
    return result


def _bypass(start: fx.Node, end: fx.Node, block: Block) -> None:
    value = start
    is_read = any(user.name not in block.nodes for user in start.users)
    if is_read and any(_is_mutable(user) for user in end.users):  # the sum was memory of its own
        with end.graph.inserting_before(end):
            value = end.graph.call_function(aten.clone.default, (start,))
        value.meta = dict(start.meta)
    end.replace_all_uses_with(value)


@dataclass(frozen=True)
class _Region:
    """nodes: what would not be computed if `start` stood in place of `end`, in execution order."""

    start: fx.Node
    end: fx.Node
    nodes: tuple[fx.Node, ...]

    def tensors(self) -> list[str]:
        """Names of the parameters that nothing else reads; where there is none, of those that are read inside."""
        own = [str(node.target) for node in self.nodes if _is_parameter(node)]
        shared = [str(node.target) for each in self.nodes for node in each.all_input_nodes if _is_parameter(node)]
        return own or list(dict.fromkeys(shared))

    def path(self) -> str:
        """Of the module around all of them."""
        return _common([_owner(name) for name in self.tensors()])


def _is_parameter(node: fx.Node) -> bool:
    module = node.graph.owning_module
    return node.op == "get_attr" and module is not None and isinstance(tensor_of(module, str(node.target)), nn.Parameter)


def _branch(end: fx.Node, idle: set[fx.Node]) -> _Region | None:
    """The residual branch that the addition closes, if it closes one."""
    if end.target not in _ADDITIONS or end.kwargs.get("alpha", 1) != 1:
        return None
    sums = {end, *(node for node in _terms(end) if node.target in _ADDITIONS)}
    for start in _terms(end):
        region = _region(start, end, sums={end}, idle=idle)
        # a stream that has just been added to may be read before that: (x + f(x)) + g(x)
        sources = {start, *_terms(start)}
        if region and any(sources.intersection(node.all_input_nodes) for node in region.nodes if node not in sums):
            return region
    return None


def _terms(end: fx.Node) -> list[fx.Node]:
    """What is added up, also in additions that only this one reads: x + f(x) + g(x) comes back to x twice."""
    if end.target not in _ADDITIONS:
        return []
    terms = [node for node in end.args[:2] if isinstance(node, fx.Node)]
    return [*terms, *(inner for node in terms if len(node.users) == 1 for inner in _terms(node))]


def _region(start: fx.Node, end: fx.Node, *, sums: set[fx.Node], idle: set[fx.Node]) -> _Region | None:
    """None where `start` cannot stand in place of `end`, or something between them is used elsewhere.

    sums: where the stream itself is written, in place or not. idle: nodes of which nothing is read.
    """
    if not _are_alike(start, end):
        return None
    dying, pending = {end}, list(end.all_input_nodes)
    while pending:
        node = pending.pop()
        is_needed = node is start or node.op == "placeholder" or not (dying | idle).issuperset(node.users)
        if node not in dying and not is_needed:
            dying.add(node)
            pending += node.all_input_nodes
    pending = [user for node in dying - {end} for user in node.users if user not in dying]
    while pending:
        node = pending.pop()
        dying.add(node)
        pending += [user for user in node.users if user not in dying]
    kept = {node for each in dying for node in each.all_input_nodes} - dying - {start}
    if any(_depends(node, start) for node in kept) or any(_changes_outside(node, dying) for node in dying - sums):
        return None
    return _Region(start, end, tuple(sorted(dying)))


def _are_alike(start: fx.Node, end: fx.Node) -> bool:
    one, other = start.meta.get("val"), end.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dtype != other.dtype:
        return False
    # as text: comparing two symbolic sizes would decide about them
    return [str(size) for size in one.shape] == [str(size) for size in other.shape]


def _depends(node: fx.Node, source: fx.Node) -> bool:
    seen, pending = {node}, [node]
    while pending:
        later = {other for other in pending.pop().all_input_nodes if not other < source} - seen
        if source in later:
            return True
        seen |= later
        pending += later
    return False


def _idle(graph: fx.Graph) -> set[fx.Node]:
    """What leads to no output, unless by writing into memory: checks, parts of a split that are left over, `copy_`."""
    idle: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and idle.issuperset(node.users):
            idle.add(node)
    return idle


def _is_check(node: fx.Node) -> bool:
    return node.target is aten._assert_tensor_metadata.default


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _changes_outside(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether it writes into memory that a node outside has made."""
    if not _is_mutable(node):
        return False
    written: Any = node.args[0]
    while written in inside and _is_view(written):
        written = written.args[0]
    return written not in inside


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _innermost(branches: Sequence[_Region], macs_of: Mapping[str, int]) -> list[_Region]:
    """Those that read parameters; of nested ones the inner ones, unless these multiply nothing, as a normalization may not."""
    found = [branch for branch in branches if branch.tensors()]
    works = {branch.end: any(macs_of.get(node.name) for node in branch.nodes) for branch in found}
    inside = {branch.end: {node for node in branch.nodes if node in works and node is not branch.end} for branch in found}
    nested = set[fx.Node]().union(*inside.values())
    return [
        branch
        for branch in found
        if not any(works[inner] for inner in inside[branch.end]) and (works[branch.end] or branch.end not in nested)
    ]


def _chains(branches: Sequence[_Region], tensors: set[str], idle: set[fx.Node]) -> dict[str, _Region]:
    """By path of a repeated module: its branches as one region, from where the first starts to where the last ends."""
    paths = [branch.path() for branch in branches]
    units = {unit for path, branch in zip(paths, branches, strict=True) if (unit := _unit(path, branch, tensors))}
    members: dict[str, list[_Region]] = {}
    for path, branch in zip(paths, branches, strict=True):
        around = [unit for unit in units if f"{path}.".startswith(f"{unit}.")]
        if around:
            members.setdefault(max(around, key=len), []).append(branch)
    chains = {}
    for unit, parts in members.items():
        sums = {part.end for part in parts}
        chain = _region(parts[0].start, parts[-1].end, sums=sums, idle=idle)
        if chain and sums.issubset(chain.nodes):
            chains[unit] = chain
    return chains


def _unit(path: str, branch: _Region, tensors: set[str]) -> str:
    """The innermost module around the branch beside which another, of the same name but for a number, holds such tensors."""
    parts = path.split(".") if path else []
    for length in range(len(parts), 0, -1):
        unit = ".".join(parts[:length])
        inside = [name.removeprefix(unit) for name in branch.tensors() if name.startswith(f"{unit}.")]
        if any(all(f"{other}{name}" in tensors for name in inside) for other in _numbered_alike(unit, tensors)):
            return unit
    return ""


def _numbered_alike(unit: str, tensors: set[str]) -> set[str]:
    around, _, last = unit.rpartition(".")
    pattern = re.compile(re.escape(f"{around}." if around else "") + re.sub(r"\d+", r"\\d+", re.escape(last)) + r"(?=\.)")
    return {found.group() for name in tensors if (found := pattern.match(name))} - {unit} if re.search(r"\d", last) else set()


def _names(branches: Sequence[_Region], module: fx.GraphModule) -> list[str]:
    """The path of a branch's matrices; where others are on that path too, with the names of the parts that are its own."""
    owners = [_matrices(branch, module) for branch in branches]
    paths = [_common(each) for each in owners]
    names = []
    for own, path in zip(owners, paths, strict=True):
        is_shared = sum(f"{other}.".startswith(f"{path}.") for other in set(paths)) > 1
        parts = dict.fromkeys(name.removeprefix(path).strip(".").partition(".")[0] for name in own) if is_shared else {}
        names.append(".".join(filter(None, (path, "+".join(filter(None, parts))))))
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return names


def _matrices(branch: _Region, module: fx.GraphModule) -> list[str]:
    """Owners of parameters with two dimensions above 1, of all where there are none."""
    names = branch.tensors()
    return [_owner(name) for name in names if sum(size > 1 for size in tensor_of(module, name).shape) > 1] or [
        _owner(name) for name in names
    ]


def _owner(tensor: str) -> str:
    return tensor.partition(".parametrizations.")[0].rpartition(".")[0]


def _common(paths: Sequence[str]) -> str:
    """The longest path that all of them begin with."""
    split = [path.split(".") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _describe(module: fx.GraphModule, region: _Region, macs_of: Mapping[str, int], *, name: str, kind: str) -> Block:
    tensors = tuple(str(node.target) for node in region.nodes if node.op == "get_attr")
    held = _alone(module, tensors)
    return Block(
        name=name,
        kind=kind,
        start=region.start.name,
        end=region.end.name,
        nodes=tuple(node.name for node in region.nodes),
        tensors=tensors,
        dim=_channel_dim(region),
        macs=sum(macs_of.get(node.name, 0) for node in region.nodes),
        params=sum(tensor.numel() for tensor in held if isinstance(tensor, nn.Parameter)),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
    )


def _alone(module: fx.GraphModule, tensors: Sequence[str]) -> list[Tensor]:
    """Those whose memory has no other name that stays."""
    everyone = {str(node.target): tensor_of(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}
    staying = {value.untyped_storage().data_ptr() for name, value in everyone.items() if name not in tensors}
    return [everyone[name] for name in tensors if everyone[name].untyped_storage().data_ptr() not in staying]


def _channel_dim(region: _Region) -> int:
    """Of the value that enters: 1 where what reads it first is a convolution or normalizes dimension 1, else the last."""
    reached = {region.start, *_terms(region.start)}
    for node in region.nodes:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
            if node.target in _CHANNELS_IN_DIM_1:
                return 1 if _CHANNELS_IN_DIM_1[node.target] else -1
    return -1


def _macs(module: fx.GraphModule, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Of one example, by node; as analyze.cost counts them."""
    values, stored = propagate(module, example), stored_nodes(module)
    batch = example[0].shape[0] if example[0].dim() else 1
    found = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and node not in stored:
            arguments = fx.node.map_arg(node.args, lambda source: values[source])
            found[node.name] = macs(node.target, arguments, output=values[node]) // batch
    return found
