"""Training and evaluation mode, for modules and for graphs that torch.export recorded.

A graph of ATen operators carries the mode as a literal argument of batch normalization, dropout and recurrent layers, and
refuses `.train()`.
"""

import torch
from torch import fx, nn

_MODE_ARGUMENTS = ("train", "training")


def set_training(module: nn.Module, is_training: bool, *, freeze_norm: bool = False) -> None:
    """Switches the mode in place. freeze_norm: batch norms stay in evaluation mode; their scale and shift still train.

    Dropout that the tracing removed, or that attention carries as a probability of 0, does not come back.
    """
    graphs = [child for child in module.modules() if isinstance(child, fx.GraphModule)]
    if graphs:
        for child in module.modules():
            child.training = is_training
    else:
        module.train(is_training)  # a module may have a say of its own
    for graph in graphs:
        _set_graph(graph, is_training, freeze_norm=freeze_norm)
    for child in module.modules():
        if freeze_norm and isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def _set_graph(module: fx.GraphModule, is_training: bool, *, freeze_norm: bool) -> None:
    changed = [
        _set_node(node, is_training and not (freeze_norm and node.target is torch.ops.aten.batch_norm.default))
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]
    if any(changed):
        module.recompile()


def _set_node(node: fx.Node, is_training: bool) -> bool:
    """True when the node's mode argument, where it has one, was another."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    for place, argument in enumerate(arguments):
        if argument.name not in _MODE_ARGUMENTS:
            continue
        if place < len(node.args) and node.args[place] is not is_training:
            node.update_arg(place, is_training)
            return True
        if node.kwargs.get(argument.name, is_training) is not is_training:
            node.update_kwarg(argument.name, is_training)
            return True
    return False
