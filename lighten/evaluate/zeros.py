"""The zeros of a sparse network in the weights that it computes with at the end, whatever form they are stored in."""

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.trace import tensor_of
from lighten.core.graph import Graph
from lighten.core.method import Compressed
from lighten.engine.zeros import Zeros, check_zeros, zeros_of

_AT_ONCE = 2**20


def require_zeros(compressed: Compressed, graph: Graph, *, step: str) -> None:
    """Raises UnfitError naming the first weight with a zero in `graph`, the float network, that the compressed one fills."""
    after = zeros_in(compressed, graph)
    check_zeros(zeros_of(graph.module, after), after, step=step)


@torch.no_grad()
def zeros_in(compressed: Compressed, graph: Graph) -> dict[str, Zeros]:
    """Of each weight of a layer that a step made sparse, by name, as the layer reads it: codes, scales and tables put together.

    graph: the float network, whose nodes the compressed one has too.
    """
    nodes = {node.name: node for node in compressed.graph.graph.nodes}
    found = {}
    for site in graph.sites:
        if site.weights and site.weights[0] in compressed.model.sparse and site.node in nodes:
            where = (_value(compressed.graph, bound_arguments(nodes[site.node])["weight"]) == 0).cpu()
            found[site.weights[0]] = Zeros(tuple(where.shape), int(where.sum()), where)
    return found


def zipped_bytes(path: Path) -> int:
    """What a zip archive makes of the file (deflate, level 6), without the archive's own few bytes."""
    packer, size = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            size += len(packer.compress(part))
    return size + len(packer.flush())


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """What a node gives that is made of parameters and buffers alone."""
    if node.op == "get_attr":
        return tensor_of(module, str(node.target))
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda part: _value(module, part))
    return node.target(*given[0], **given[1])  # type: ignore[operator, no-any-return]
