"""The traced network and the places in it that a plan can name."""

from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True)
class Site:
    """A place a plan can name.

    name: the module path that owns the weight, or the node's name where there is none; `path@node` when a weight is used again.
    kind: the operator, e.g. "conv2d" or "linear" (analyze.trace.KINDS). node: the graph node. weights: parameter names in
    the graph, empty for operators without weights.
    depthwise: a convolution with one input channel per group.
    """

    name: str
    kind: str
    node: str
    weights: tuple[str, ...] = ()
    bias: str | None = None
    depthwise: bool = False


@dataclass(frozen=True)
class Graph:
    """module: ATen operators on plain tensors, callable like the original. sites: in execution order."""

    module: fx.GraphModule
    sites: tuple[Site, ...]
