"""Batch normalization over the examples of all ranks: a batch that is split normalizes as it did in one process.

torch's SyncBatchNorm has kernels for GPUs alone, and a traced graph has no modules that could be exchanged for it. The call is
caught where it is made instead, as in engine.batch_norms.

Dimension key: C channels, W ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lighten.core.run import Ranks
from lighten.engine.batch_norms import named_arguments


class SyncedBatchNorms(TorchFunctionMode):
    """Inside the block every batch norm in training mode takes mean and variance over the examples of all ranks, which must run
    the same network on inputs of any batch size >= 1. Its running statistics become the same on all of them.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Passes on every other call as it is."""
        given = named_arguments(func, args, kwargs)
        if given is None or not given.get("training"):
            return func(*args, **(kwargs or {}))
        x, eps = given["input"], given.get("eps", 1e-5)
        y, mean_C, var_C, count = _Normalized.apply(x, eps, self._ranks)  # type: ignore[no-untyped-call]
        if given.get("running_mean") is not None:
            momentum = given.get("momentum", 0.1)
            unbiased_C = var_C * (count / (count - 1).clamp_min(1))
            with torch.no_grad():
                given["running_mean"].lerp_(mean_C.to(given["running_mean"].dtype), momentum)
                given["running_var"].lerp_(unbiased_C.to(given["running_var"].dtype), momentum)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = y if given.get("weight") is None else y * given["weight"].view(shape)
        return y if given.get("bias") is None else y + given["bias"].view(shape)


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) over all dimensions but the second, of all ranks; with it mean_C, var_C and the count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_C, var_C, count = _statistics(x, ranks)
        scale_C = (var_C + eps).rsqrt().to(x.dtype)
        normal = (x - _over(mean_C.to(x.dtype), x)) * _over(scale_C, x)
        ctx.save_for_backward(normal, scale_C, count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return normal, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        normal, scale_C, count = ctx.saved_tensors
        grad = grads[0]
        dims = [dim for dim in range(grad.dim()) if dim != 1]
        sums_2C = torch.stack([grad.sum(dims, dtype=torch.float64), (grad * normal).sum(dims, dtype=torch.float64)])
        ctx.ranks.add([sums_2C])
        mean_C, slope_C = (sums_2C / count).to(grad.dtype)
        return (grad - _over(mean_C, grad) - normal * _over(slope_C, grad)) * _over(scale_C, grad), None, None


def _statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Each rank's mean and sum of squares about it, put together without cancellation (Chan et al. 1983, eq. 2.1)."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    var_C, mean_C = (value_C.double() for value_C in torch.var_mean(x.detach().float(), dims, correction=0))
    num_values = x.numel() // len(mean_C)
    rows = mean_C.new_zeros(ranks.world, 2 * len(mean_C) + 1)
    rows[ranks.number] = torch.cat([mean_C, var_C * num_values, mean_C.new_full((1,), num_values)])
    ranks.add([rows])
    mean_WC, squares_WC, count_W1 = torch.split(rows, [len(mean_C), len(mean_C), 1], dim=1)
    count = count_W1.sum()
    mean_C = (mean_WC * count_W1).sum(0) / count
    var_C = (squares_WC + count_W1 * (mean_WC - mean_C).square()).sum(0) / count
    return mean_C, var_C, count


def _over(value_C: Tensor, x: Tensor) -> Tensor:
    return value_C.view(1, -1, *(1,) * (x.dim() - 2))
