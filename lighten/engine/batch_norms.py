"""Stands at every batch normalization while a network runs: what reaches it, and by which statistics it normalizes.

The call is caught where it is made, so it is all one whether a module, a function or a traced graph makes it. A batch norm that
tracing folded into its convolution is no longer there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Statistics = tuple[Tensor, Tensor]
Rule = Callable[[Tensor, Tensor, Tensor], Statistics]
_OF_MODULES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_OF_GRAPHS = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_NAMES: dict[Any, tuple[str, ...]] = {
    functional.batch_norm: _OF_MODULES,
    torch.batch_norm: _OF_GRAPHS,
    torch.ops.aten.batch_norm.default: _OF_GRAPHS,
}


class AtBatchNorms(TorchFunctionMode):
    """Inside the block every batch norm with running statistics, in evaluation mode, asks `rule(x, mean_C, var_C)`: its input,
    channels in dimension 1, and its own statistics. It normalizes by the two tensors that are given back.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Passes on every other call as it is."""
        given = named_arguments(func, args, kwargs)
        if given is None or given.get("running_mean") is None or given.get("running_var") is None or given.get("training"):
            return func(*args, **(kwargs or {}))
        mean_C, var_C = self._rule(given["input"], given["running_mean"], given["running_var"])
        given |= {"running_mean": mean_C, "running_var": var_C}
        # all by position: the operators of graphs take no other names for what lies in the middle
        return func(*(given[name] for name in _NAMES[func] if name in given))


def named_arguments(func: Any, args: Any, kwargs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a batch norm is called with, by name; None where `func` is something else."""
    if func not in _NAMES:
        return None
    return dict(zip(_NAMES[func], args, strict=False)) | dict(kwargs or {})
