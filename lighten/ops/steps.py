"""Rounding that training can see through: straight-through estimators with learned steps and learned clips.

round(x) has slope 0 almost everywhere; in the backward pass it counts as x itself (Bengio et al. 2013, arXiv:1308.3432). All
else is plain arithmetic that autograd differentiates, which gives the papers' gradients exactly.

Dimension key: O output channels; `x` has any shape.
"""

import torch
from torch import Tensor

from lighten.ops.grids import SMALLEST_SCALE


def round_through(x: Tensor) -> Tensor:
    """round(x), half to even; its gradient is that of x."""
    return x + (x.round() - x).detach()


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    return (x - x * factor).detach() + x * factor


def learned_step(x: Tensor, step: Tensor, *, low: int, high: int) -> Tensor:
    """LSQ: x rounded to whole steps within [low, high] of them, step learned (Esser et al. 2020, arXiv:1902.08153).

    step: positive; a scalar for a tensor, or broadcastable with one for each channel, (O, 1, ...). Its gradient (equation 3),
    d/ds = round(x/s) - x/s inside, low or high outside, is multiplied by 1 / sqrt(values a step * high) (section 2.2), so that
    steps learn at the pace of weights. The gradient in x is 1 inside and 0 outside.
    A step that training drives to zero or below counts as the smallest scale.
    """
    num_values = x.numel() / step.numel()
    step = scale_gradient(step, (num_values * max(high, 1)) ** -0.5).clamp_min(SMALLEST_SCALE)
    rounded: Tensor = round_through((x / step).clamp(low, high)) * step
    return rounded


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
