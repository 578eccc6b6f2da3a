"""What rounding a layer's weights costs at its outputs, and what the solvers that lower it share.

    E ||W x - W' x||^2 = tr((W - W') G (W - W')^T),    G = E[x x^T]

Every row of W' has a loss of its own, and the rows of data are not needed once G is known. A solver takes (weight, gram,
grid) and gives codes, so it works on any uniform grid: groups, fp16 scales, ternary, one scale for a tensor.

Inputs x' that earlier layers have changed: E ||W x - Q x'||^2 differs by a constant from E ||(W* - Q) x'||^2 with the
least-squares W* = E[W x x'^T] E[x' x'^T]^-1. So `lighten.ops.reconstruct.refit_drifted` first and any solver here after it, on
the Gram matrix of x', is the asymmetric calibration of GPTAQ (arXiv:2504.02692).

Dimension key: O outputs (rows), K input columns (of a convolution unfolded), G groups of a row, L leading dimension: the
groups of a grouped convolution (1 for any other layer), Q = O / L outputs of one of them, T candidates.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lighten.ops.grids import SMALLEST_SCALE, Grid, decode, encode
from lighten.ops.reconstruct import damped

_RIDGE = 1e-9  # of the mean diagonal of a system for scales: groups whose codes are all zero leave it singular


class Problem(NamedTuple):
    """A layer as its solvers see it, float64. hessian: the damped Gram matrix. A code q stands for scale * (q - zero)."""

    w_LQK: Tensor
    hessian_LKK: Tensor
    scale_LQK: Tensor
    zero_LQK: Tensor


def problem(w_OK: Tensor, gram_KK: Tensor, grid: Grid, *, damp: float) -> Problem:
    """The layer with its leading dimension split off. gram_KK: (K, K), or (L, K, K) where rows come in L equal parts."""
    hessian_LKK = damped(gram_KK, damp).reshape(-1, *gram_KK.shape[-2:])
    parts = len(hessian_LKK)
    return Problem(_split(w_OK.double(), parts), hessian_LKK, *(_split(value_OK, parts) for value_OK in per_column(grid, w_OK)))


def per_column(grid: Grid, w_OK: Tensor) -> tuple[Tensor, Tensor]:
    """scale_OK and zero_OK, float64: the scale and zero point of every weight."""
    num_rows, num_columns = w_OK.shape
    shape = (num_rows, grid.scale.shape[1], num_columns // grid.scale.shape[1])
    return grid.scale.double().expand(shape).reshape(w_OK.shape), grid.zero.double().expand(shape).reshape(w_OK.shape)


def output_loss(w_OK: Tensor, rounded_OK: Tensor, gram_KK: Tensor) -> Tensor:
    """E ||(w_o - w'_o) x||^2 for each row, shape O, float64, in the output's unit squared.

    gram_KK: E[x x^T], (K, K) or (L, K, K); of centred inputs where a bias takes up the mean afterwards.
    """
    change_LQK = _split((w_OK - rounded_OK).double(), gram_KK.numel() // w_OK.shape[1] ** 2)
    gram_LKK = gram_KK.double().reshape(-1, *gram_KK.shape[-2:])
    return ((change_LQK @ gram_LKK) * change_LQK).sum(-1).flatten().clamp_min(0)


def best_codes(candidates: Sequence[Tensor], w_OK: Tensor, gram_KK: Tensor, *, grid: Grid) -> Tensor:
    """Row by row the candidate of least output loss, rounding to nearest among them; int8, shape O x K."""
    tried_TOK = torch.stack([*(codes_OK.to(torch.int8) for codes_OK in candidates), encode(w_OK, grid)])
    loss_TO = torch.stack([output_loss(w_OK, decode(codes_OK, grid), gram_KK) for codes_OK in tried_TOK])
    return tried_TOK[loss_TO.argmin(0), torch.arange(len(w_OK), device=w_OK.device)]


def refit_scales(w_OK: Tensor, gram_KK: Tensor, codes_OK: Tensor, *, grid: Grid) -> Grid:
    """The grid whose scales have the least output loss for these codes and zero points; no row's loss rises.

    The normal equations of w_o ~ sum_g s_og c_og, c_og the codes less their zero points, in one group: G x G for each row.
    A row keeps its scales where the solution has one that is not positive. Codes stay the best for the old grid only: solve
    again from here, or not at all. Cost: O K^2.
    """
    if len(grid.scale) == 1 and len(w_OK) > 1:
        raise ValueError("One scale for a whole tensor is not refitted row by row.")
    num_groups = grid.scale.shape[1]
    steps_OK = codes_OK.double() - per_column(grid, w_OK)[1]
    parts = gram_KK.numel() // w_OK.shape[1] ** 2
    gram_LKK = gram_KK.double().reshape(-1, *gram_KK.shape[-2:])
    member_GK = torch.eye(num_groups, dtype=torch.float64, device=w_OK.device).repeat_interleave(w_OK.shape[1] // num_groups, 1)
    steps_LQGK = _split(steps_OK, parts)[:, :, None] * member_GK
    pulled_LQGK = steps_LQGK @ gram_LKK[:, None]
    system_OGG = (pulled_LQGK @ steps_LQGK.mT).flatten(0, 1)
    target_OG1 = (pulled_LQGK @ _split(w_OK.double(), parts)[..., None]).flatten(0, 1)
    scale_OG1 = torch.linalg.solve(damped(system_OGG, _RIDGE), target_OG1).to(grid.scale.dtype)
    refitted = replace(grid, scale=torch.where((scale_OG1 > SMALLEST_SCALE).all(1, keepdim=True), scale_OG1, grid.scale))
    before_O, after_O = (output_loss(w_OK, decode(codes_OK, of), gram_KK) for of in (grid, refitted))
    return replace(grid, scale=torch.where((after_O <= before_O)[:, None, None], refitted.scale, grid.scale))


def _split(value_OK: Tensor, parts: int) -> Tensor:
    return value_OK.reshape(parts, -1, value_OK.shape[-1])
