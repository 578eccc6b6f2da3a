"""Rounding that training can see through: straight-through estimators with learned steps and learned clips.

round(x) has slope 0 almost everywhere; in the backward pass it counts as x itself (Bengio et al. 2013, arXiv:1308.3432). The
papers' gradients are written out where autograd would take a pass over memory for each of their terms: fake quantization costs
more time than the convolutions it stands between otherwise.

Dimension key: O output channels; `x` has any shape.
"""

from typing import Any

import torch
from torch import Tensor

from lighten.ops.grids import SMALLEST_SCALE

_EDGE = 1e-6  # of a step: what lies on the last code is inside, however x / s was rounded


def round_through(x: Tensor) -> Tensor:
    """round(x), half to even; its gradient is that of x."""
    return x + (x.round() - x).detach()


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    return (x - x * factor).detach() + x * factor


def learned_step(x: Tensor, step: Tensor, *, low: int, high: int, is_paced: bool = True) -> Tensor:
    """LSQ: x rounded to whole steps within [low, high] of them, step learned (Esser et al. 2020, arXiv:1902.08153).

    step: positive; a scalar for a tensor, or broadcastable with one for each channel, (O, 1, ...). Its gradient (equation 3),
    d/ds = round(x/s) - x/s inside, low or high outside, is multiplied by 1 / sqrt(values a step * high) (section 2.2), so that
    steps learn at the pace of weights, unless is_paced is False. The gradient in x is 1 inside and 0 outside.
    A step that training drives to zero or below counts as the smallest scale.
    """
    rounded: Tensor = _Rounded.apply(x, step.clamp_min(SMALLEST_SCALE), (low, high), (True, is_paced))  # type: ignore[no-untyped-call]
    return rounded


def clipped_step(x: Tensor, step: Tensor, *, low: int, high: int, is_paced: bool = True) -> Tensor:
    """The same values as `learned_step`, with PACT's gradient of the step (Choi et al. 2018, arXiv:1805.06085, section 3): low
    or high outside, nothing inside. The range learns from what it cuts off alone, and needs a penalty to become smaller.
    """
    rounded: Tensor = _Rounded.apply(x, step.clamp_min(SMALLEST_SCALE), (low, high), (False, is_paced))  # type: ignore[no-untyped-call]
    return rounded


@torch.no_grad()
def to_codes(x: Tensor, step: Tensor, *, low: int, high: int) -> Tensor:
    """The whole numbers of steps that `learned_step` gives, as floats."""
    return (x * _inverse(step.clamp_min(SMALLEST_SCALE))).round_().clamp_(low, high)


def first_step(x: Tensor, high: int, *, per_channel: bool = False) -> Tensor:
    """2 mean|x| / sqrt(high): where LSQ starts (section 2.1). A scalar, or (O, 1, ...) for channels along dimension 0."""
    magnitude = x.detach().abs()
    mean: Tensor = magnitude.mean(dim=list(range(1, x.dim())), keepdim=True) if per_channel else magnitude.mean()
    return mean.mul(2 / max(high, 1) ** 0.5).clamp_min(SMALLEST_SCALE)


def learned_clip(x: Tensor, clip: Tensor, bits: int) -> Tensor:
    """PACT: x clipped to [0, clip], then rounded to 2^bits - 1 steps of it (Choi et al. 2018, arXiv:1805.06085).

    clip: positive, a scalar or broadcastable. Its gradient is 1 where x reaches it and 0 below; that in x the reverse
    (section 3). Known failure: without a penalty on clip (the paper's L2) nothing makes the range smaller.
    """
    step = clip.detach() / (2**bits - 1)
    clipped = torch.minimum(x.clamp_min(0), clip)
    rounded: Tensor = clipped + ((clipped / step).round() * step - clipped).detach()
    return rounded


class _Rounded(torch.autograd.Function):
    """clamp(round(x / s), low, high) s.

    With y the result and g the gradient that comes in, gx = g inside and 0 outside, the step's gradient is
    (<g, y> - <gx, x>) / s for LSQ and (<g, y> - <gx, y>) / s for PACT: nothing is kept that is not kept anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, ends: tuple[int, int], how: tuple[bool, bool]) -> Tensor:
        """how: whether the step's gradient sees rounding, as LSQ's does, and whether it is paced."""
        y = (x * _inverse(step)).round_().clamp_(*ends).mul_(step)
        ctx.save_for_backward(x, y, step)
        ctx.ends, (ctx.sees_rounding, ctx.is_paced) = ends, how
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Of x and of the step."""
        x, y, step = ctx.saved_tensors
        slope, low, high = gradients[0], ctx.ends[0] - _EDGE, ctx.ends[1] + _EDGE
        is_single = step.numel() == 1
        unit, place = (float(step), x) if is_single else (1.0, x * _inverse(step))
        x_slope = torch.ops.aten.hardtanh_backward(slope, place, low * unit, high * unit)
        if not ctx.needs_input_grad[1]:
            return x_slope, None, None, None
        product = _product if is_single else _product_along
        inner = x if ctx.sees_rounding else y
        pace = (x.numel() / step.numel() * max(ctx.ends[1], 1)) ** -0.5 if ctx.is_paced else 1.0
        step_slope = (product(slope, y, step) - product(x_slope, inner, step)) / step * pace
        return x_slope, step_slope, None, None


def _inverse(step: Tensor) -> Tensor:
    """As the quantize operators of torch take it: in double, then rounded. The same codes as theirs, ties included."""
    return step.double().reciprocal().to(step.dtype)


def _product(one: Tensor, other: Tensor, step: Tensor) -> Tensor:
    """<one, other> in the step's shape."""
    order = sorted(range(one.dim()), key=one.stride, reverse=True)  # as it lies in memory: flattening then copies nothing
    return torch.dot(one.permute(order).flatten(), other.permute(order).flatten()).reshape(step.shape)


def _product_along(one: Tensor, other: Tensor, step: Tensor) -> Tensor:
    """The same for each step of its own."""
    return (one * other).sum_to_size(step.shape)
