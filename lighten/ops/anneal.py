"""Annealed coordinate descent: every code in turn takes its best value given all others, first softly, in the end exactly.

The loss ||(w - s (q - z))||_H^2 of a row is quadratic in its codes. With the others held, code k is best at

    t_k = q_k + r_k / (H_kk s_k),    r = H (w - s (q - z)),

rounded: plain coordinate descent (QuantEase, Behdin et al. 2023, arXiv:2309.01885), which never raises the loss but stops at
the first set of codes where no single change helps. Rounding softly at first lets the codes settle together:

    soft(t) = f + 1/2 + tanh(a (t - f - 1/2)) / (2 tanh(a / 2)),    f = floor(t)

(Agustsson and Theis 2020, arXiv:2006.09952) is t itself for small a and round(t) for large a. a rises from sweep
to sweep, as in mean-field annealing. Nothing needs tuning by layer: no rate, no weight of a penalty, no choice of two
neighbours. Where a few inputs carry almost everything, GPTQ is hard to beat, so its codes descend too, and each row keeps the
better outcome. bench/quantize/solvers.py compares it with the others.

Dimension key: O outputs (rows), K input columns, B columns of a block, L groups of a grouped convolution, Q = O / L outputs of
one of them.
"""

from collections.abc import Callable
from math import tanh
from typing import NamedTuple

import torch
from torch import Tensor

from lighten.ops.gptq import gptq
from lighten.ops.grids import Grid
from lighten.ops.reconstruct import DAMP
from lighten.ops.rounding import Problem, best_codes, problem

SWEEPS = 32
BLOCK = 128
_SOFTEST, _HARDEST = 1.0, 15.0
_MOST_EXACT_SWEEPS = 8


class _State(NamedTuple):
    """Changed in place by sweeps. codes, pull: in units of codes. residual: r. Columns come before rows: a row each."""

    codes_LKQ: Tensor
    residual_LKQ: Tensor
    hessian_LKK: Tensor
    scale_LKQ: Tensor
    pull_LKQ: Tensor


def anneal(
    w_OK: Tensor, gram_KK: Tensor, grid: Grid, *, damp: float = DAMP, sweeps: int = SWEEPS, held_OK: Tensor | None = None
) -> Tensor:
    """int8 codes on `grid`, shape O x K; no row has a higher output loss than by rounding to nearest.

    gram_KK: E[x x^T]; (L, K, K) for a grouped convolution. damp: above 0, fraction of the mean diagonal, no unit.
    sweeps: soft ones; exact ones follow until nothing changes, 8 at most. 0: only these, from GPTQ's codes and from the
    weights, a quarter of the time. Cost: O K^2 for each sweep, float64. Equal to rounding to nearest where inputs are
    uncorrelated.
    """
    layer = problem(w_OK, gram_KK, grid, damp=damp)
    state = _start(layer, layer.w_LQK / layer.scale_LQK + layer.zero_LQK, held_OK)
    for step in range(sweeps):
        sharpness = _SOFTEST * (_HARDEST / _SOFTEST) ** (step / max(sweeps - 1, 1))
        _sweep(state, _soft(sharpness), low=grid.low, high=grid.high)
    passed_LQK = gptq(w_OK, gram_KK, grid, damp=damp, held_OK=held_OK).to(layer.w_LQK).reshape(layer.w_LQK.shape)
    found = [_settled(start, grid).reshape(w_OK.shape) for start in (state, _start(layer, passed_LQK, held_OK))]
    return best_codes(found, w_OK, gram_KK, grid=grid)


def _start(layer: Problem, codes_LQK: Tensor, held_OK: Tensor | None) -> _State:
    codes_LKQ, scale_LKQ = codes_LQK.mT.contiguous(), layer.scale_LQK.mT.contiguous()
    error_LQK = layer.w_LQK - layer.scale_LQK * (codes_LQK - layer.zero_LQK)
    pull_LKQ = 1 / (layer.hessian_LKK.diagonal(dim1=1, dim2=2)[..., None] * scale_LKQ)
    if held_OK is not None:
        # no pull: the code that stands for zero is a whole number, which any rounding leaves as it is
        pull_LKQ = pull_LKQ.masked_fill(held_OK.reshape(codes_LQK.shape).mT, 0.0)
    return _State(codes_LKQ, layer.hessian_LKK @ error_LQK.mT, layer.hessian_LKK, scale_LKQ, pull_LKQ)


def _settled(state: _State, grid: Grid) -> Tensor:
    """Codes, shape L x Q x K, after exact sweeps."""
    for _ in range(_MOST_EXACT_SWEEPS):
        before_LKQ = state.codes_LKQ.clone()
        _sweep(state, torch.round, low=grid.low, high=grid.high)
        if torch.equal(before_LKQ, state.codes_LKQ):
            break
    return state.codes_LKQ.mT


def _soft(sharpness: float) -> Callable[[Tensor], Tensor]:
    half_over_edge = 0.5 / tanh(sharpness / 2)

    def soft(wanted: Tensor) -> Tensor:
        middle = wanted.floor() + 0.5
        return wanted.sub(middle).mul_(sharpness).tanh_().mul_(half_over_edge).add_(middle)

    return soft


def _sweep(state: _State, rounding: Callable[[Tensor], Tensor], *, low: int, high: int) -> None:
    """Every column once, in order. Within a block the residual follows each change; outside, when the block is done."""
    for start in range(0, state.codes_LKQ.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        codes_LBQ, scale_LBQ, pull_LBQ = state.codes_LKQ[:, block], state.scale_LKQ[:, block], state.pull_LKQ[:, block]
        hessian_LBB, residual_LBQ = state.hessian_LKK[:, block, block], state.residual_LKQ[:, block].clone()
        before_LBQ = codes_LBQ.clone()
        for k in range(codes_LBQ.shape[1]):
            old_LQ = codes_LBQ[:, k]
            new_LQ = rounding(torch.addcmul(old_LQ, residual_LBQ[:, k], pull_LBQ[:, k]).clamp_(low, high))
            moved_LQ = (old_LQ - new_LQ) * scale_LBQ[:, k]
            residual_LBQ.baddbmm_(hessian_LBB[:, :, k, None], moved_LQ[:, None])
            codes_LBQ[:, k] = new_LQ
        state.residual_LKQ.baddbmm_(state.hessian_LKK[:, :, block], (before_LBQ - codes_LBQ) * scale_LBQ)
