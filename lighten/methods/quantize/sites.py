"""Which tensors a site reads and gives, and which specs each kind of site can take.

A tensor is named by the graph node that makes it. Padding with zeros in front of a convolution is looked through: zero is on
every grid, so quantizing before the padding is the same, and runtimes can then fold the padding into the convolution.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from lighten.analyze.trace import tensor_of
from lighten.core.errors import UnfitError
from lighten.core.graph import Graph, Site
from lighten.core.plan import Plan
from lighten.core.recipe import refuse_unknown
from lighten.core.spec import Codebook, Float, Keep, Quant, Spec
from lighten.methods.quantize.stored import keeps

aten = torch.ops.aten

STATIC = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "add", "mul", "concat", "average_pool")
DYNAMIC = ("linear",)
FULL_BITS = 8
FEW_BITS = ("conv1d", "conv2d", "conv3d", "linear")
WEIGHTS_ONLY = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear", "embedding", "lstm", "gru",
)  # fmt: skip
_QUANTIZED_OUTPUT = ("conv1d", "conv2d", "conv3d", "add", "mul", "concat", "average_pool")
_FLOAT_OUTPUT = ("linear", "matmul")
_FUSED = (
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default, aten.hardtanh.default,
    aten.hardtanh_.default, aten.clamp.default,
)  # fmt: skip
_PADS = (aten.pad.default, aten.constant_pad_nd.default)


@dataclass(frozen=True)
class Edge:
    """A tensor read by a node: producer.name is the tensor's name, reader the node whose argument it is."""

    producer: fx.Node
    reader: fx.Node


def check(graph: Graph, plan: Plan) -> None:
    """Raises InputError for a site that does not exist and UnfitError for one that cannot take its spec."""
    by_name = {site.name: site for site in graph.sites}
    for name, spec in plan.items():
        refuse_unknown("site", name, by_name)
        _check_site(by_name[name], spec)
        for weight in by_name[name].weights if type(spec) is not Keep else ():
            _check_columns(by_name[name], tensor_of(graph.module, weight).shape, spec)


def takes(site: Site, spec: Spec) -> bool:
    """True when the site's kind can become `spec`."""
    if type(spec) is Keep:
        return True
    if keeps(spec):
        return site.kind in WEIGHTS_ONLY and bool(site.weights)
    if type(spec) is not Quant or not _is_computable(spec, site):
        return False
    if spec.activations is None:
        return site.kind in WEIGHTS_ONLY and bool(site.weights)
    if spec.weights is not None and not site.weights:
        return False
    if spec.weights is None and site.weights:
        return False
    return site.kind in (DYNAMIC if spec.dynamic else STATIC)


def _is_computable(spec: Quant, site: Site) -> bool:
    """What this method computes: a scale a row, no zero points in weights; few bits in linear layers and convolutions alone."""
    bits = (None, 7, 8) if site.kind not in (*FEW_BITS, "embedding") else (None, *range(2, 9))
    levels = (None, 8) if site.kind not in FEW_BITS or spec.dynamic else (None, *range(2, 9))
    return spec.weights in bits and spec.activations in levels and spec.group is None and spec.symmetric


def inputs(node: fx.Node, kind: str) -> Iterator[Edge]:
    """The activations that the site's node reads."""
    read = node.args[0] if kind == "concat" else node.args[: 2 if kind in ("matmul", "add", "mul") else 1]
    for argument in cast(Sequence[Any], read):
        if not isinstance(argument, fx.Node) or argument.op == "get_attr":
            continue
        reader, producer = node, argument
        while _is_zero_pad(producer):
            reader, producer = producer, cast(fx.Node, producer.args[0])
        yield Edge(producer, reader)


def output(node: fx.Node, kind: str) -> fx.Node | None:
    """The node whose result is quantized when the site runs in integers: the clipping activation behind it, or itself.

    None for a site whose result stays in float (a linear layer dequantizes its accumulator).
    """
    if kind not in _QUANTIZED_OUTPUT:
        return None
    users = list(node.users)
    if kind in ("conv1d", "conv2d", "conv3d", "add") and len(users) == 1 and users[0].target in _FUSED:
        return users[0]
    return node


def statics(graph: Graph, plan: Plan) -> Iterator[tuple[Site, fx.Node]]:
    """The sites whose activations are quantized with fixed ranges, and their nodes."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for site in graph.sites:
        spec = plan.spec(site.name)
        if type(spec) is Quant and spec.activations is not None and not spec.dynamic:
            yield site, nodes[site.node]


def widths(graph: Graph, plan: Plan) -> dict[str, tuple[int, ...]]:
    """By tensor, the widths in which it is needed, the widest first: that is how its producer gives it, and a reader that wants
    fewer bits rounds it once more. These are the tensors whose range must be known before the plan can be carried out.
    """
    needed: dict[str, set[int]] = {}
    for site, node in statics(graph, plan):
        for edge in inputs(node, site.kind):
            needed.setdefault(edge.producer.name, set()).add(cast(Quant, plan[site.name]).activations or FULL_BITS)
        end = output(node, site.kind)
        if end is not None:
            needed.setdefault(end.name, set())
    return {name: tuple(sorted(bits, reverse=True)) or (FULL_BITS,) for name, bits in needed.items()}


def float_outputs(graph: Graph, plan: Plan) -> list[str]:
    """Tensors that stay float although integer kernels make them: what linear layers and matrix products give, behind the
    clipping activation where there is one.
    """
    known, found = widths(graph, plan), []
    for site, node in statics(graph, plan):
        users = list(node.users)
        end = users[0] if len(users) == 1 and users[0].target in _FUSED else node
        if site.kind in _FLOAT_OUTPUT and end.name not in known:
            found.append(end.name)
    return found


def _is_zero_pad(node: fx.Node) -> bool:
    mode_and_value = [value for value in node.args[2:] if value != "constant"]
    return node.target in _PADS and len(node.users) == 1 and not any(mode_and_value)


def _check_site(site: Site, spec: Spec) -> None:
    if takes(site, spec):
        return
    able = [
        name for name, kinds in (("static", STATIC), ("dynamic", DYNAMIC), ("weights only", WEIGHTS_ONLY)) if site.kind in kinds
    ]
    raise UnfitError(
        f"{site.name} ({site.kind}) cannot become {spec}.",
        hint=f"It can be kept{''.join(f', or int8 ({name})' for name in able)}; weightless sites take weights=None.",
    )


def _check_columns(site: Site, shape: Sequence[int], spec: Spec) -> None:
    """Raises UnfitError where a weight does not split into the groups, blocks or parts of its spec."""
    rows = shape[1 if site.kind.startswith("conv_transpose") else 0]
    columns = math.prod(shape) // rows
    size = spec.group if type(spec) is Quant else spec.block if type(spec) is Float else None
    if size is not None and columns % size:
        hint = f"Groups of {math.gcd(columns, size)} fit; or pin the layer: sites: {{{site.name}: keep}}."
        raise UnfitError(f"{site.name}: {columns} columns do not split into groups of {size}.", hint=hint)
    if type(spec) is Codebook and (rows % (spec.rows or rows) or columns % (spec.columns or columns)):
        asked = f"{spec.rows or rows} x {spec.columns or columns}"
        raise UnfitError(f"{site.name}: {rows} x {columns} weights do not split into parts of {asked}.")
