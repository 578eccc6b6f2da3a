"""Bias correction: rounding weights and activations shifts the mean of a layer's output; its bias takes the shift back.

Nagel et al. 2019, arXiv:1906.04721, section 4.2 (the empirical form), done in sequence: a layer is corrected on inputs that
already carry the errors and corrections of the layers before it, and all layers are corrected in one pass of the quantized
graph.

Dimension key: B examples, O output channels, S everything else.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.graph import Site

_quantized = torch.ops.quantized_decomposed
_QUANTIZE = (_quantized.quantize_per_tensor.default, _quantized.quantize_per_tensor.tensor)
_DEQUANTIZE = (_quantized.dequantize_per_tensor.default, _quantized.dequantize_per_tensor.tensor)
_DEQUANTIZE_ROWS = _quantized.dequantize_per_channel.default
_PADS = (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default)
_MOST_CODE = 255
CORRECTABLE = ("conv1d", "conv2d", "conv3d", "linear")


def channel_means(value: Tensor, kind: str) -> Tensor:
    """Mean of each output channel of a convolution (dimension 1) or linear layer (last dimension), shape O, float64."""
    channel = value.dim() - 1 if kind == "linear" else 1
    return value.mean(dim=[dim for dim in range(value.dim()) if dim != channel]).double()


@torch.no_grad()
def correct_biases(
    quantized: fx.GraphModule, sites: Mapping[str, Site], means: Mapping[str, Tensor], *, inputs: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Changes the biases in `quantized` in place; returns the shift of each site, shape O, in its output's unit.

    sites: by node name, those to correct. means: by node name, the float graph's channel means on the same `inputs`.
    """
    corrector = _Corrector(quantized, sites, means)
    corrector.run(*inputs)
    return corrector.shifts


class _Corrector(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, sites: Mapping[str, Site], means: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._graph, self._sites, self._means = module, sites, means
        self.shifts: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = fake_quantized(self, n)
        site = self._sites.get(n.name)
        if site is None or site.bias is None or n.name not in self._means:
            return result
        shift_O = (self._means[n.name] - channel_means(result, site.kind)).to(result.dtype)
        set_tensor(self._graph, site.bias, tensor_of(self._graph, site.bias).detach() + shift_O)
        self.shifts[site.name] = shift_O
        shape = [-1] if site.kind == "linear" else [-1] + [1] * (result.dim() - 2)
        return result + shift_O.reshape(shape)


@torch.no_grad()
def round_biases(quantized: fx.GraphModule, sites: Mapping[str, Site]) -> None:
    """Rounds biases, in place, to the accumulator's unit, input scale times weight scale: integer kernels add them as whole
    numbers of it. With few bits the unit is coarse, and the file would depart from the torch graph.

    sites: by node name. A linear layer's product of more than two dimensions adds its bias in float.
    """
    for node in quantized.graph.nodes:
        site = sites.get(node.name)
        if site is None or site.bias is None or (site.kind == "linear" and node.meta["val"].dim() > 2):
            continue
        source, weight, bias = _unpadded(node.args[0]), node.args[1], node.args[2]
        if source.target is _DEQUANTIZE[0] and weight.target is _DEQUANTIZE_ROWS and len(bias.users) == 1:
            unit_O = tensor_of(quantized, str(weight.args[1].target)) * source.args[1]
            value_O = tensor_of(quantized, site.bias).detach()
            set_tensor(quantized, site.bias, (value_O / unit_O).round() * unit_O)


def _unpadded(node: fx.Node) -> Any:
    """Zeros around a tensor are on its grid."""
    while node.target in _PADS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def fake_quantized(runner: fx.Interpreter, n: fx.Node) -> Any:
    """What the node gives. Quantizing and dequantizing are done at once, at the first of the two: the same numbers, a third of
    the time. A dynamic range is each example's own, as it will be when they come one at a time.
    """
    if n.target not in (*_QUANTIZE, *_DEQUANTIZE):
        return fx.Interpreter.run_node(runner, n)
    arguments: Any = runner.map_nodes_to_values(n.args, n)
    value: Tensor = arguments[0]
    if n.target in _DEQUANTIZE:
        return value
    if n.target is _QUANTIZE[1]:
        return _rounded_each(value)
    scale, zero, low, high = arguments[1:5]
    return torch.fake_quantize_per_tensor_affine(value, scale, zero, low, high)


def _rounded_each(value: Tensor) -> Tensor:
    """8 bits over the range of each example, zero exact."""
    rows = value.flatten(1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    scale = ((high - low) / _MOST_CODE).clamp_min(torch.finfo(torch.float32).eps)
    zero = (-low / scale).round().int()
    return torch.fake_quantize_per_channel_affine(value, scale, zero, 0, 0, _MOST_CODE)
