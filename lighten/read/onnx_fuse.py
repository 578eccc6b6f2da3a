"""Layers that a file spells as two nodes: a product and a sum are one linear layer, a convolution and a sum one convolution.

Dimension key: O output channels.
"""

from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from lighten.read.onnx_operators.elementwise import binary

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fuse(module: fx.GraphModule) -> None:
    """Constant sums behind a layer without a bias become its bias, in place."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not binary or node.args[0] != "Add":
            continue
        layer, added = node.args[1:3] if _is_layer(node.args[1]) else (node.args[2], node.args[1])
        if _is_layer(layer) and len(layer.users) == 1 and isinstance(added, fx.Node) and added.op == "get_attr":
            _take_bias(module, layer, added, node)


def _is_layer(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_module"


def _take_bias(module: fx.GraphModule, layer: fx.Node, added: fx.Node, node: fx.Node) -> None:
    owner = module.get_submodule(str(layer.target))
    bias_O = _bias(owner, attrgetter(str(added.target))(module))
    is_shared = sum(other.target == layer.target for other in module.graph.nodes) > 1
    if bias_O is None or is_shared:
        return
    owner.bias = nn.Parameter(bias_O.clone())
    node.replace_all_uses_with(layer)
    module.graph.erase_node(node)
    if not added.users:
        module.graph.erase_node(added)


def _bias(owner: nn.Module, value: Tensor) -> Tensor | None:
    """As a vector of the layer's output channels; None where it is none."""
    if value.dtype != torch.float32 or getattr(owner, "bias", True) is not None:
        return None
    if isinstance(owner, nn.Linear):
        return value.detach().flatten() if _fits(value, (owner.out_features,)) else None
    if isinstance(owner, _CONVOLUTIONS):
        ones = (1,) * len(owner.kernel_size)
        return value.detach().flatten() if _fits(value, (owner.out_channels, *ones)) else None
    return None


def _fits(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the tensor has that shape, with ones before it."""
    lead = value.dim() - len(shape)
    return lead >= 0 and tuple(value.shape[lead:]) == shape and all(size == 1 for size in value.shape[:lead]) and lead <= 1
