"""Cross-layer equalization of a traced network: finds the chains of layers through which a channel's gain moves freely, and
moves it (ops.equalize; Nagel et al. 2019, arXiv:1906.04721, section 4.1).

A chain goes on from a layer to the only reader of what it makes, through what commutes with a positive gain of each channel:
ReLU, leaky and parametric ReLU, zero padding, pooling. It ends at a sum, at a tensor that is read twice, at any other
activation and at the output. ReLU6 does not commute, since its 6 would have to be another number in each channel; there the
chain ends, unless `clips` asks for those numbers. Batch norms are folded when the network is traced; one that is not ends the
chain.

Dimension key: O outputs, I inputs a group, C channels.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.graph import Graph, Site
from lighten.engine.quiet import quiet
from lighten.ops.equalize import Layer, equalize

aten = torch.ops.aten
_KINDS = ("conv1d", "conv2d", "conv3d", "linear")
_HOMOGENEOUS = (
    aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.prelu.default,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default, aten.contiguous.default, aten.clone.default,
)  # fmt: skip
_SHAPES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.default, aten.squeeze.dims)
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_CLIPS = (aten.relu6.default, aten.relu6_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default)
_SIX = (aten.relu6.default, aten.relu6_.default)


@dataclass(frozen=True)
class Equalized:
    """graph: of the same function. chains: names of the sites whose weights were balanced with each other, in order. ends: for
    every other layer that might have led on, why it does not.
    """

    graph: Graph
    chains: tuple[tuple[str, ...], ...]
    ends: dict[str, str]


@dataclass(frozen=True)
class _Link:
    """first's channels reach second alone. clips: the ReLU6 nodes on the way."""

    first: Site
    second: Site
    clips: tuple[str, ...] = ()


@torch.no_grad()
def equalized(graph: Graph, *, clips: bool = False) -> Equalized:
    """The network with equal channel ranges along every chain; the given one is not changed.

    clips: pass through ReLU6 too, which becomes a ReLU and the minimum with 6 times the channel's gain: exact, but an operator
    that no integer kernel takes in.
    """
    links, ends = _links(graph, clips)
    with quiet():
        module = copy.deepcopy(graph.module)
    chains = list(_chains(links))
    for chain in chains:
        _balance(module, chain)
    module.graph.lint()
    module.recompile()
    names = tuple((chain[0].first.name, *(link.second.name for link in chain)) for chain in chains)
    return Equalized(Graph(module, graph.sites), names, ends)


def _links(graph: Graph, clips: bool) -> tuple[dict[str, _Link], dict[str, str]]:
    """By the first layer's node; and the reasons of those that have none."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    layers = {site.node: site for site in graph.sites if site.kind in _KINDS and _is_own(nodes[site.node], site)}
    links, ends = {}, {}
    for name, site in layers.items():
        found = _follow(nodes[name], layers, clips)
        if isinstance(found, str):
            ends[site.name] = found
        else:
            links[name] = _Link(site, found[0], found[1])
    return links, ends


def _is_own(node: fx.Node, site: Site) -> bool:
    """Whether weight and bias are parameters that this layer alone reads."""
    held = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    return len(site.weights) == 1 and all(len(one.users) == 1 and one.op == "get_attr" for one in held)


def _follow(node: fx.Node, layers: dict[str, Site], clips: bool) -> tuple[Site, tuple[str, ...]] | str:
    """The layer that alone reads the channels of `node`, and the clips before it; or why there is none."""
    num_channels, dim = _channels(node)
    passed: list[str] = []
    while True:
        readers = list(node.users)
        if len(readers) != 1:
            return "what it makes is read more than once" if readers else "nothing reads it"
        before, node = node, readers[0]
        if node.name in layers:
            fits = node.args[0] is before and _fits(node, num_channels, dim)
            return (layers[node.name], tuple(passed)) if fits else "the next layer mixes groups"
        if node.target in _CLIPS:
            if not clips or _bounds(node) != (0.0, 6.0):
                return f"{_name(node)} does not commute with a gain"
            passed.append(node.name)
        elif node.target in _SHAPES or node.target is aten.mean.dim:
            if _channels(node)[0] != num_channels or not _keeps_channels(before, node, num_channels):
                return f"{_name(node)} moves the channels"
            dim = _value(node).dim() - 1 if _value(node).dim() == 2 else dim
        elif not (node.target in _HOMOGENEOUS or _is_zero_pad(node)) or node.args[0] is not before:
            return f"{_name(node)} follows"


def _channels(node: fx.Node) -> tuple[int, int]:
    """How many channels there are, and in which dimension: the last of a linear layer's output, else dimension 1."""
    value = _value(node)
    dim = value.dim() - 1 if node.target is aten.linear.default else 1
    return int(value.shape[dim]) if value.dim() > 1 else 0, dim


def _keeps_channels(before: fx.Node, node: fx.Node, num_channels: int) -> bool:
    """Whether N x C x positions becomes N x C: by a mean over all positions, or by dropping positions that are single."""
    given, made = _value(before), _value(node)
    is_pooled = given.dim() > 2 and made.dim() in (2, given.dim()) and all(size == 1 for size in made.shape[2:])
    if node.target is not aten.mean.dim:
        is_pooled = is_pooled and all(size == 1 for size in given.shape[2:])
    return is_pooled and given.shape[1] == made.shape[1] == num_channels


def _fits(node: fx.Node, num_channels: int, dim: int) -> bool:
    """Whether the layer reads each channel as an input of its own, all together or each by itself."""
    read = _value(cast(fx.Node, node.args[0]))
    weight = _value(cast(fx.Node, node.args[1]))
    if node.target is aten.linear.default:
        return dim == read.dim() - 1 and weight.shape[1] == num_channels
    is_depthwise = weight.shape[1] == 1 and weight.shape[0] == num_channels
    return dim == 1 and (weight.shape[1] == num_channels or is_depthwise)


def _chains(links: dict[str, _Link]) -> Iterator[list[_Link]]:
    """The links put end to end, each in one chain."""
    reached = {link.second.node for link in links.values()}
    for name, link in links.items():
        if name not in reached:
            chain = [link]
            while chain[-1].second.node in links:
                chain.append(links[chain[-1].second.node])
            yield chain


def _balance(module: fx.GraphModule, chain: list[_Link]) -> None:
    sites = [chain[0].first, *(link.second for link in chain)]
    weights = [tensor_of(module, site.weights[0]) for site in sites]
    # a bias of ones comes back as the gain of the layer's output
    balanced = equalize([Layer(weight, weight.new_ones(len(weight))) for weight in weights])
    gains = [cast(Tensor, layer.bias_O) for layer in balanced]
    for site, layer, gain_O in zip(sites, balanced, gains, strict=True):
        set_tensor(module, site.weights[0], layer.weight_OIS)
        if site.bias is not None:
            set_tensor(module, site.bias, tensor_of(module, site.bias) * gain_O)
    nodes = {node.name: node for node in module.graph.nodes}
    for link, gain_C in zip(chain, gains, strict=False):
        for clip in link.clips:
            _clip_by_channel(module, nodes[clip], gain_C, f"{link.first.weights[0]}_clip")


def _clip_by_channel(module: fx.GraphModule, node: fx.Node, gain_C: Tensor, name: str) -> None:
    shape = [-1] + [1] * (_value(node).dim() - 2)
    set_tensor(module, name, (6 * gain_C).reshape(shape))
    with module.graph.inserting_before(node):
        clipped = module.graph.call_function(aten.relu.default, (node.args[0],))
        top = module.graph.get_attr(name)
        least = module.graph.call_function(aten.minimum.default, (clipped, top))
    clipped.meta["val"] = least.meta["val"] = node.meta["val"]
    top.meta["val"] = tensor_of(module, name)
    node.replace_all_uses_with(least)
    module.graph.erase_node(node)


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    """What a clip keeps values between, None where it is open."""
    if node.target in _SIX:
        return 0.0, 6.0
    low, high, *_ = (*node.args[1:3], None, None)
    return low, high


def _is_zero_pad(node: fx.Node) -> bool:
    return node.target in _PADS and not any(value for value in node.args[2:] if value != "constant")


def _value(node: fx.Node) -> Tensor:
    return cast(Tensor, node.meta["val"])


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]
