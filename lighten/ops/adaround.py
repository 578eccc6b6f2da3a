"""AdaRound: whether each weight goes up or down is learned, relaxed to a number in [0, 1] that is driven to either end.

Nagel et al. 2020, arXiv:2004.10568: with w' = s (clamp(floor(w / s + z) + h(V)) - z) and the rectified sigmoid h (equation 23),

    min over V of  loss(w') + lambda sum (1 - |2 h(V) - 1|^beta)        (equations 21, 22, 24)

differs from the paper: (1) the loss of a linear layer comes from the Gram matrix, exact for all rows of data at once, so a
step costs O K^2 whatever their number; (2) the loss of each row is in units of its loss by rounding to nearest, so one lambda
fits all layers, and rows are independent; (3) beta starts at 8, Adam's rate is 0.1 and the steps are 500,
not 10,000: the gradient has no noise; (4) a row that rounding to nearest serves better is rounded to nearest.

Dimension key: N rows of data, O outputs (rows of the weight), K input columns, T candidates, L groups of a grouped
convolution, Q = O / L outputs of one of them.
"""

from collections.abc import Callable
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from lighten.ops.grids import Grid, decode, encode
from lighten.ops.reconstruct import damped
from lighten.ops.rounding import best_codes, output_loss, per_column

STEPS = 500
RATE = 0.1
PENALTY = 3.0
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1  # equation 23
_WARM_UP = 0.2  # of the steps, without the penalty
_FIRST_BETA, _LAST_BETA = 8.0, 2.0
_DECAYS = (0.9, 0.999)
_TINY = 1e-30
_SHUT = -10.0  # h is 0

Gradient = Callable[[Tensor], Tensor]
"""From w' - w to the gradient of the loss in w', each of shape O x K."""


class _Relaxed(NamedTuple):
    rounded_OK: Tensor
    slope_OK: Tensor  # of w' in V
    up_OK: Tensor  # h(V)
    up_slope_OK: Tensor  # of h in V


def adaround(
    w_OK: Tensor, gram_KK: Tensor, grid: Grid, *, damp: float = 0.0, steps: int = STEPS, held_OK: Tensor | None = None
) -> Tensor:
    """int8 codes on `grid`, shape O x K; no row has a higher output loss than by rounding to nearest.

    gram_KK: E[x x^T]; (L, K, K) for a grouped convolution. damp: fraction of the mean diagonal, no unit.
    held_OK: True where the weight is zero and its code must stand for zero.
    Every weight becomes one of its two neighbours on the grid. Cost: O K^2 for each step, float32.
    """
    hessian_LKK = damped(gram_KK, damp).float().reshape(-1, *gram_KK.shape[-2:])

    def gradient(change_OK: Tensor) -> Tensor:
        return (2 * change_OK.reshape(len(hessian_LKK), -1, w_OK.shape[1]) @ hessian_LKK).reshape(w_OK.shape)

    nearest_O = output_loss(w_OK, decode(encode(w_OK, grid), grid), hessian_LKK)
    codes_OK = _learn(w_OK, grid, gradient, unit_O=nearest_O, steps=steps, held_OK=held_OK)
    return best_codes([codes_OK], w_OK, gram_KK, grid=grid)


def adaround_relu(w_OK: Tensor, x_NK: Tensor, grid: Grid, *, bias_O: Tensor, steps: int = STEPS) -> Tensor:
    """As `adaround`, for E ||relu(W x + b) - relu(W' x + b)||^2 on the rows of data: what stays below zero is free.

    The paper's equation 25. No row has a higher loss than by `adaround` on the same rows, or by rounding to nearest: rows that
    are seldom above zero give few gradients. Cost: O K N for each step; no grouped convolutions.
    """
    x_NK = x_NK.float()
    wanted_NO = torch.relu(torch.addmm(bias_O.float(), x_NK, w_OK.float().T))

    def errors(change_OK: Tensor) -> Tensor:
        return torch.relu(torch.addmm(bias_O.float(), x_NK, (w_OK.float() + change_OK).T)) - wanted_NO

    def gradient(change_OK: Tensor) -> Tensor:
        error_NO = errors(change_OK)
        is_open_NO = error_NO > -wanted_NO  # where the rounded layer's ReLU lets anything through
        return (2 / len(x_NK)) * ((error_NO * is_open_NO).T @ x_NK)

    def loss(codes_OK: Tensor) -> Tensor:
        return errors(decode(codes_OK, grid) - w_OK).square().mean(0)

    nearest_OK, linear_OK = encode(w_OK, grid), adaround(w_OK, x_NK.T @ x_NK / len(x_NK), grid, steps=steps)
    learned_OK = _learn(w_OK, grid, gradient, unit_O=loss(nearest_OK), steps=steps).to(torch.int8)
    tried_TOK = torch.stack([nearest_OK, linear_OK, learned_OK])
    best_O = torch.stack([loss(codes_OK) for codes_OK in tried_TOK]).argmin(0)
    return tried_TOK[best_O, torch.arange(len(w_OK), device=w_OK.device)]


def _learn(
    w_OK: Tensor, grid: Grid, gradient: Gradient, *, unit_O: Tensor, steps: int, held_OK: Tensor | None = None
) -> Tensor:
    """Codes by Adam on V, from the V where w' = w. unit_O: the loss that counts as one, for each row."""
    scale_OK, zero_OK = (value_OK.float() for value_OK in per_column(grid, w_OK))
    w_OK = w_OK.float()
    floor_OK = (w_OK / scale_OK + zero_OK).floor()
    up_OK = (w_OK / scale_OK + zero_OK - floor_OK).clamp(0.01, 0.99)
    v_OK = torch.logit((up_OK - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW))
    if held_OK is not None:
        v_OK = v_OK.masked_fill(held_OK, _SHUT)  # where h has no slope
    # the loss as the mean over a row's weights: the penalty is one as well
    weight_O1 = w_OK.shape[1] / unit_O.float().clamp_min(_TINY)[:, None]
    mean_OK, square_OK = torch.zeros_like(v_OK), torch.zeros_like(v_OK)
    for step in range(steps):
        relaxed = _relax(v_OK, floor_OK, grid, scale_OK=scale_OK, zero_OK=zero_OK)
        slope_OK = gradient(relaxed.rounded_OK - w_OK).mul_(weight_O1).mul_(relaxed.slope_OK)
        slope_OK -= PENALTY * _penalty_slope(relaxed.up_OK, step / steps) * relaxed.up_slope_OK
        mean_OK.lerp_(slope_OK, 1 - _DECAYS[0])
        square_OK.lerp_(slope_OK.square_(), 1 - _DECAYS[1])
        root_OK = (square_OK / (1 - _DECAYS[1] ** (step + 1))).sqrt_().add_(1e-8)
        v_OK.addcdiv_(mean_OK, root_OK, value=-RATE / (1 - _DECAYS[0] ** (step + 1)))
    return (floor_OK + (v_OK > 0)).clamp_(grid.low, grid.high)


def _relax(v_OK: Tensor, floor_OK: Tensor, grid: Grid, *, scale_OK: Tensor, zero_OK: Tensor) -> _Relaxed:
    sigmoid_OK = v_OK.sigmoid()
    stretched_OK = sigmoid_OK * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW
    up_OK = stretched_OK.clamp(0, 1)
    up_slope_OK = sigmoid_OK * (1 - sigmoid_OK) * (_STRETCH_HIGH - _STRETCH_LOW) * (stretched_OK == up_OK)
    codes_OK = floor_OK + up_OK
    inside_OK = (codes_OK >= grid.low) & (codes_OK <= grid.high)
    rounded_OK = (codes_OK.clamp(grid.low, grid.high) - zero_OK) * scale_OK
    return _Relaxed(rounded_OK, scale_OK * inside_OK * up_slope_OK, up_OK, up_slope_OK)


def _penalty_slope(up_OK: Tensor, progress: float) -> Tensor:
    """The slope of |2 h - 1|^beta, which the penalty subtracts; zero during the warm-up. beta falls as a cosine."""
    if progress < _WARM_UP:
        return torch.zeros_like(up_OK)
    share = (1 + cos(pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2
    beta = _LAST_BETA + (_FIRST_BETA - _LAST_BETA) * share
    centred_OK = 2 * up_OK - 1
    return 2 * beta * centred_OK.abs() ** (beta - 1) * centred_OK.sign()
