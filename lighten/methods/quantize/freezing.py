"""Codes that swing between two values are held at the one they mostly have.

With a straight-through gradient a weight between two codes is pushed across the threshold again and again; such oscillations
do not die out with the learning rate, and what the network computes at the end depends on where they stopped. Iterative weight
freezing (Nagel et al. 2022, arXiv:2203.11086, section 4.3, algorithm 1): the frequency of oscillation of every code is tracked
by a running average (equations 4 and 5), and a code that oscillates more often than a falling threshold is frozen for good.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lighten.methods.quantize.learned import LearnedWeight

_MOMENTUM = 0.02  # of the running averages: about the last fifty steps
_FIRST, _LAST = 0.04, 0.01  # thresholds at the begin of freezing and at the end: the paper's, section 5.2


def freezing(weights: Iterable[LearnedWeight], start: float) -> Callable[[int, float], None]:
    """For `engine.train.Extras.after_step`: tracks the codes from the first step on and freezes from the fraction `start` of
    the training on. All it knows lies in the weights' buffers, so a resumed training goes on as if it had not stopped.
    """
    watched = list(weights)

    @torch.no_grad()
    def apply(step: int, progress: float) -> None:
        del step
        for weight in watched:
            swings = _track(weight)
            if progress >= start:
                _freeze(weight, swings, threshold(progress, start))

    return apply


def threshold(progress: float, start: float) -> float:
    """Of the frequency, in swings a step: a half cosine from 0.04 at `start` to 0.01 at the end."""
    done = (progress - start) / (1 - start)
    return _LAST + (_FIRST - _LAST) * 0.5 * (1 + math.cos(math.pi * done))


def _track(weight: LearnedWeight) -> Tensor:
    """Renews the averages; tells which codes moved back just now. A frozen code stays what it is."""
    codes = torch.where(weight.is_frozen, weight.codes, weight.to_codes())
    direction = (codes - weight.codes).sign()
    swings = direction * weight.direction < 0
    weight.frequency.lerp_(swings.to(weight.frequency.dtype), _MOMENTUM)
    weight.mean.lerp_(codes.to(weight.mean.dtype), _MOMENTUM)
    weight.direction.copy_(torch.where(direction == 0, weight.direction, direction))
    weight.codes.copy_(codes)
    return swings


def _freeze(weight: LearnedWeight, swings: Tensor, limit: float) -> None:
    """A weight that is frozen lies on its code, wherever the step goes."""
    new = swings & (weight.frequency > limit) & ~weight.is_frozen
    weight.codes.copy_(torch.where(new, weight.mean.round().to(torch.int8), weight.codes))
    weight.is_frozen.logical_or_(new)
    frozen = weight.codes.to(weight.weight.dtype) * weight.step()
    weight.weight.copy_(torch.where(weight.is_frozen, frozen, weight.weight))
