"""Smoothing: the outlier channels of a linear layer's input hand their size over to its weights, which have a scale a row to
hold it.

    y = W x = (W diag(s)) (x / s),    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

Xiao et al. 2022, arXiv:2211.10438, equation 4. Layers that read the same tensor share one s. differs from the paper: x / s
stays an operator of its own instead of being folded into a layer norm, since in post-norm networks the norm's output also
feeds the residual; and s is bounded to [1/64, 64], beyond which a weight channel would lose its own precision.

Dimension key: O outputs, I inputs of a linear layer.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.data import Batch
from lighten.core.graph import Graph
from lighten.engine.quiet import quiet

aten = torch.ops.aten
_BOUND = 64.0


@torch.no_grad()
def smooth(graph: Graph, batches: Iterable[Batch], *, alpha: float) -> Graph:
    """A graph of the same function whose linear layers read smoother inputs. One float pass over `batches`.

    alpha: in [0, 1]; 0.5 shares the difficulty evenly between activations and weights.
    """
    readers = linear_readers(graph)
    peaks = _Peaks(graph.module, set(readers))
    for batch in batches:
        peaks.run(*batch.inputs)
    with quiet():
        module = copy.deepcopy(graph.module)
    nodes = {node.name: node for node in module.graph.nodes}
    for tensor, names in readers.items():
        _smooth_tensor(module, nodes[tensor], [nodes[name] for name in names], peak_I=peaks.kept[tensor], alpha=alpha)
    module.graph.lint()
    module.recompile()
    return Graph(module, graph.sites)


def linear_readers(graph: Graph) -> dict[str, list[str]]:
    """Names of the linear nodes that read each tensor; layers whose weight is used elsewhere too are left out."""
    by_tensor: dict[str, list[str]] = {}
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for site in graph.sites:
        node = nodes[site.node]
        if site.kind == "linear" and site.weights and len(node.args[1].users) == 1:
            by_tensor.setdefault(node.args[0].name, []).append(node.name)
    return by_tensor


class _Peaks(fx.Interpreter):
    """Largest magnitude of each channel (last dimension) of the wanted tensors."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted:
            peak_I = result.abs().reshape(-1, result.shape[-1]).amax(0)
            self.kept[n.name] = torch.maximum(self.kept[n.name], peak_I) if n.name in self.kept else peak_I
        return result


def _smooth_tensor(module: fx.GraphModule, tensor: fx.Node, linears: list[fx.Node], *, peak_I: Tensor, alpha: float) -> None:
    names = [str(node.args[1].target) for node in linears]  # type: ignore[union-attr]
    weights = [tensor_of(module, name).detach() for name in names]
    weight_peak_I = torch.stack([weight_OI.abs().amax(0) for weight_OI in weights]).amax(0)
    raw_I = peak_I.clamp_min(1e-5) ** alpha / weight_peak_I.clamp_min(1e-5) ** (1 - alpha)
    # only the ratios between channels matter: centred, so that the bound is used on both sides
    scale_I = (raw_I / raw_I.log().mean().exp()).clamp(1 / _BOUND, _BOUND)
    for name, weight_OI in zip(names, weights, strict=True):
        set_tensor(module, name, weight_OI * scale_I)
    buffer = f"{names[0].rpartition('.')[0]}.smoothing"
    set_tensor(module, buffer, 1 / scale_I)
    with module.graph.inserting_before(linears[0]):
        smoothed = module.graph.call_function(aten.mul.Tensor, (tensor, module.graph.get_attr(buffer)))
    smoothed.meta["val"] = tensor.meta.get("val")
    for node in linears:
        node.replace_input_with(tensor, smoothed)
