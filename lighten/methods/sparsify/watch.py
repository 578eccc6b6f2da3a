"""What flows into each layer: one pass over calibration examples, a layer's inputs forgotten as soon as it was seen.

Dimension key: O outputs, K input columns of a layer, G groups of a convolution, N sampled rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.trace import tensor_of
from lighten.methods.sparsify.layers import Layer
from lighten.ops.reconstruct import accumulate, empty_moments, per_row

aten = torch.ops.aten


@dataclass(frozen=True)
class Seen:
    """gram_GKK: second moments of a layer's inputs, about the mean where a bias or a batch norm behind it takes the mean up.
    weight_O: what an error at each output counts, the squared slope of the batch norm behind it, else 1.
    """

    gram_GKK: Tensor
    weight_O: Tensor


@torch.no_grad()
def watch(
    graph: fx.GraphModule,
    layers: Sequence[Layer],
    see: Callable[[Layer, Seen], None],
    *,
    inputs: tuple[Tensor, ...],
    seed: int,
) -> None:
    """Calls `see` for each layer where it is first used, in execution order."""
    _Watch(graph, layers, see, seed).run(*inputs)


class _Watch(fx.Interpreter):
    """Runs the network as it is."""

    def __init__(self, graph: fx.GraphModule, layers: Sequence[Layer], see: Callable[[Layer, Seen], None], seed: int) -> None:
        super().__init__(graph)
        self._graph, self._see, self._seed = graph, see, seed
        self._layers = {layer.view.node.name: layer for layer in layers}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        layer = self._layers.get(n.name)
        if layer is not None:
            self._see(layer, self._seen(layer, n, result))
        return result

    def _seen(self, layer: Layer, n: fx.Node, result: Tensor) -> Seen:
        given: dict[str, Any] = self.map_nodes_to_values(bound_arguments(n), n)  # type: ignore[assignment]
        rows = layer.view.sample(result.numel() // result.shape[layer.view.dim], given, self._seed)
        moments = empty_moments(layer.num_columns, lead=(layer.view.groups,))
        accumulate(moments, layer.columns(rows.x_GNJ))
        norm = norm_behind(n)
        is_centred = given["bias"] is not None or norm is not None
        weight_O = torch.ones(layer.num_outputs) if norm is None else slope_of(self._graph, norm).square()
        return Seen(per_row(moments, centred=is_centred)[1], weight_O)


def norm_behind(n: fx.Node) -> fx.Node | None:
    """The batch normalization that alone reads a layer."""
    users = list(n.users)
    return users[0] if len(users) == 1 and users[0].target is aten.batch_norm.default else None


def slope_of(graph: fx.GraphModule, norm: fx.Node) -> Tensor:
    """slope_O of a batch normalization of fixed statistics."""
    given = bound_arguments(norm)
    deviation_O = torch.sqrt(tensor_of(graph, str(given["running_var"].target)) + given["eps"])
    scale = 1.0 if given["weight"] is None else tensor_of(graph, str(given["weight"].target)).detach()
    return scale / deviation_O
