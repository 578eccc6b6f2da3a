"""Repair without training: the layers behind a cut are refitted so that their outputs come back.

One pass through the cut network, layer by layer, on inputs that already carry the cuts and repairs before: each layer that
lost inputs gets the least-squares weights for the intact network's outputs (He et al. 2017, arXiv:1707.06168, eq. 5; Luo et
al. 2017, arXiv:1707.06342), and each batch normalization the statistics of what it now reads.

Dimension key: N sampled rows (tokens, or output positions of a convolution), O outputs, J inputs a row, flattened as in the
weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.ops.reconstruct import Window, accumulate, empty_moments, matching_bias, per_row, refit_drifted, unfold_columns

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_ROWS = 16_384


@dataclass(frozen=True)
class Kept:
    """Of a layer's weight: kept positions of its outputs, and whether it lost inputs."""

    outputs_P: Tensor | None
    lost_inputs: bool


@torch.no_grad()
def repair(
    intact: fx.GraphModule, cut: fx.GraphModule, kept: Mapping[str, Kept], *, inputs: tuple[Tensor, ...], damp: float, seed: int
) -> None:
    """Changes the weights of `cut`, whose nodes are named as those of `intact`, in place.

    kept: by name of the weight. inputs: calibration examples, one batch.
    """
    wanted = _Sampler(intact, kept, seed)
    wanted.run(*inputs)
    _Refitter(cut, wanted.outputs, damp, seed).run(*inputs)


class _Sampler(fx.Interpreter):
    """Rows of the outputs that layers gave before the cut, by node name, for the outputs that are still there."""

    def __init__(self, module: fx.GraphModule, kept: Mapping[str, Kept], seed: int) -> None:
        super().__init__(module)
        self._kept, self._seed = kept, seed
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        kept = self._kept.get(_weight_name(n))
        if kept is not None and kept.lost_inputs:
            arguments: Any = self.map_nodes_to_values(n.args, n)
            weight = arguments[1]
            rows_NO = _rows(n, arguments, self._seed) @ weight.flatten(1).t()
            bias = arguments[2] if len(arguments) > 2 else None
            rows_NO = rows_NO if bias is None else rows_NO + bias
            self.outputs[n.name] = rows_NO if kept.outputs_P is None else rows_NO[:, kept.outputs_P]
        return super().run_node(n)


class _Refitter(fx.Interpreter):
    """Runs the cut network and mends each layer before its output goes on."""

    def __init__(self, module: fx.GraphModule, outputs: Mapping[str, Tensor], damp: float, seed: int) -> None:
        super().__init__(module)
        self._graph, self._outputs, self._damp, self._seed = module, outputs, damp, seed
        self._mended: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._outputs and _weight_name(n) not in self._mended:
            self._mended.add(_weight_name(n))  # a weight that is used again is mended where it is used first
            self._refit(n)
        if n.target is aten.batch_norm.default:
            self._renew(n)
        return super().run_node(n)

    def _refit(self, n: fx.Node) -> None:
        arguments: Any = self.map_nodes_to_values(n.args, n)
        weight, bias = arguments[1], arguments[2] if len(arguments) > 2 else None
        rows_NJ, target_NO = _rows(n, arguments, self._seed), self._outputs[n.name]
        moments = empty_moments(rows_NJ.shape[1], target_NO.shape[1])
        accumulate(moments, rows_NJ, target_NO)
        # without a bias of its own a layer's mean is the next normalization's business
        follows_norm = any(user.target is aten.batch_norm.default for user in n.users)
        cross_OJ, gram_JJ = per_row(moments, centred=bias is not None or follows_norm)
        weight_OJ = refit_drifted(weight.flatten(1), cross_OJ, gram_JJ, damp=self._damp)
        weight.copy_(weight_OJ.reshape(weight.shape))
        if bias is not None:
            bias.copy_(matching_bias(moments.sum_T / moments.count, weight_OJ, moments.sum_J / moments.count))

    def _renew(self, n: fx.Node) -> None:
        arguments: Any = self.map_nodes_to_values(n.args, n)
        value, mean_C, var_C = arguments[0], arguments[3], arguments[4]
        dims = [dim for dim in range(value.dim()) if dim != 1]
        if mean_C is not None and var_C is not None:
            mean_C.copy_(value.mean(dims))
            var_C.copy_(value.var(dims, correction=1))


def _weight_name(n: fx.Node) -> str:
    is_layer = n.target is aten.linear.default or n.target in _CONVOLUTIONS
    if not is_layer or getattr(n.args[1], "op", "") != "get_attr":
        return ""
    is_grouped = n.target in _CONVOLUTIONS and bound_arguments(n)["groups"] != 1
    return "" if is_grouped else str(n.args[1].target)  # type: ignore[union-attr]


def _rows(n: fx.Node, arguments: Any, seed: int) -> Tensor:
    """Sampled rows of the layer's input; equal seeds choose equal positions in both networks."""
    value, weight = arguments[0], arguments[1]
    generator = torch.Generator().manual_seed(seed)
    if n.target is aten.linear.default:
        rows_NJ: Tensor = value.reshape(-1, value.shape[-1])
        chosen = torch.randperm(len(rows_NJ), generator=generator)[:_ROWS]
        return rows_NJ[chosen]
    window = _window(n, weight)
    return unfold_columns(value, window, count=_ROWS, generator=generator)


def _window(n: fx.Node, weight: Tensor) -> Window:
    named, dims = bound_arguments(n), weight.dim() - 2

    def each(name: str) -> tuple[int, ...]:
        value = named[name]
        values = [value] if isinstance(value, int) else list(value)
        return tuple(values * dims) if len(values) == 1 else tuple(values)

    return Window(tuple(weight.shape[2:]), each("stride"), each("padding"), each("dilation"))
