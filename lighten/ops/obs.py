"""Optimal brain surgeon for single weights and small blocks: which go, and what the others become.

A row w of a layer costs E((w - w') x)^2 = (w - w') G (w - w')^T at its output, G = E[x x^T]. With H = G + ridge I and block c
removed, the others best make up for it by (Hassibi and Stork 1993; Optimal Brain Compression, Frantar et al. 2022,
arXiv:2208.11580, eq. 3 and lemma 1)

    loss_c = w_c ([H^-1]_cc)^-1 w_c^T,    w <- w - w_c ([H^-1]_cc)^-1 [H^-1]_c:,
    H^-1 <- H^-1 - [H^-1]_:c ([H^-1]_cc)^-1 [H^-1]_c:

Blocks go one at a time, the cheapest of each row first. Rows are independent but for those that share a mask.

Dimension key: O outputs (rows), K input columns, L groups of a grouped convolution, Q = O / L outputs of one of them; B block
rows of R outputs, C column blocks of S columns, S columns of one block, M neighbouring columns of an N:M group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lighten.ops.masks import Pattern, spread
from lighten.ops.reconstruct import DAMP, damped

_CACHED = 2**20  # values of inverse Hessians at once: 8 MB in float64 stay in a processor's cache
_ABOVE = 1 + 1e-12  # so that no two ranks of a row are equal
_MOST_STEPS = 300
_TOLERANCE = 1e-5  # of the residual's norm, for each row


class Removals(NamedTuple):
    """What the greedy order says of each weight, shape O x K, a block's numbers shared out evenly. loss: what its removal adds
    to the layer's output error at the moment when it goes, in the output's unit squared, ridge included. rank: the same, but
    above that of every weight of its row that goes before; infinite for weights that N:M keeps.
    """

    loss_OK: Tensor
    rank_OK: Tensor


def removals(w_OK: Tensor, gram_KK: Tensor, pattern: Pattern, *, damp: float = DAMP) -> Removals:
    """Greedy removal of every block of every row, with the inverse Hessian updated after each (arXiv:2208.11580, algorithm 1).

    gram_KK: E[x x^T]; (L, K, K) for a grouped convolution. damp: above 0, fraction of the mean diagonal, no unit. The weights
    that stay at any count are those of the largest rank, and `refit_masked` gives their values.
    Cost: O K^3 / (R S) in float64, on 2^20 values at a time. Raises torch.linalg.LinAlgError when the Gram matrix is singular
    and damp is 0.
    """
    hessian_LKK = damped(gram_KK, damp).reshape(-1, *gram_KK.shape[-2:])
    loss_OK, rank_OK = torch.empty_like(w_OK, dtype=torch.float64), torch.empty_like(w_OK, dtype=torch.float64)
    each = len(w_OK) // len(hessian_LKK)
    for part, hessian_KK in enumerate(hessian_LKK):
        inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(hessian_KK))
        at_once = max(1, _CACHED // inverse_KK.numel()) * pattern.rows
        for start in range(part * each, (part + 1) * each, at_once):
            rows = slice(start, min(start + at_once, (part + 1) * each))
            loss_OK[rows], rank_OK[rows] = _greedy(w_OK[rows].double(), inverse_KK, pattern)
    return Removals(loss_OK, rank_OK)


def _greedy(w_OK: Tensor, inverse_KK: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """loss_OK and rank_OK of some block rows."""
    w_BRK = w_OK.reshape(-1, pattern.rows, w_OK.shape[1]).clone()
    inverse_BKK = inverse_KK.expand(len(w_BRK), -1, -1).clone()
    num_blocks = w_OK.shape[1] // pattern.columns
    loss_BC = torch.zeros(len(w_BRK), num_blocks, dtype=torch.float64, device=w_OK.device)
    rank_BC = torch.full_like(loss_BC, torch.inf)
    is_out_BC = torch.zeros_like(loss_BC, dtype=torch.bool)
    highest_B = torch.zeros_like(loss_BC[:, 0])
    row_B = torch.arange(len(w_BRK), device=w_OK.device)
    for _ in range(num_blocks * (pattern.among - pattern.kept) // pattern.among if pattern.among else num_blocks):
        cost_BC = _losses(w_BRK, inverse_BKK, pattern.columns).masked_fill(is_out_BC | _is_full(is_out_BC, pattern), torch.inf)
        block_B = cost_BC.argmin(1)
        cost_B = cost_BC[row_B, block_B]
        highest_B = torch.maximum(highest_B * _ABOVE, cost_B)
        loss_BC[row_B, block_B], rank_BC[row_B, block_B], is_out_BC[row_B, block_B] = cost_B, highest_B, True
        _remove(w_BRK, inverse_BKK, block_B[:, None] * pattern.columns + torch.arange(pattern.columns, device=w_OK.device))
    return spread(loss_BC / pattern.size, pattern), spread(rank_BC / pattern.size, pattern)


def _is_full(is_out_BC: Tensor, pattern: Pattern) -> Tensor:
    """Where an N:M group has lost all that it may."""
    if not pattern.among:
        return torch.zeros_like(is_out_BC)
    num_out_BCM = is_out_BC.reshape(len(is_out_BC), -1, pattern.among).sum(2, keepdim=True)
    return (num_out_BCM >= pattern.among - pattern.kept).expand(-1, -1, pattern.among).reshape(is_out_BC.shape)


def _losses(w_BRK: Tensor, inverse_BKK: Tensor, columns: int) -> Tensor:
    """loss_BC of each block's removal now."""
    if columns == 1:
        return w_BRK.square().sum(1) / inverse_BKK.diagonal(dim1=1, dim2=2)
    num_rows, _, num_columns = w_BRK.shape
    split = inverse_BKK.reshape(num_rows, num_columns // columns, columns, num_columns // columns, columns)
    block_BCSS = split.diagonal(dim1=1, dim2=3).movedim(-1, 1)
    w_BCSR = w_BRK.reshape(num_rows, -1, num_columns // columns, columns).movedim(1, 3)
    solved_BCSR: Tensor = torch.linalg.solve(block_BCSS, w_BCSR)
    return (w_BCSR * solved_BCSR).sum((2, 3)).clamp_min(0)


def _remove(w_BRK: Tensor, inverse_BKK: Tensor, columns_BS: Tensor) -> None:
    """In place: the block of each row eliminated from weights and inverse Hessian."""
    row_B1 = torch.arange(len(w_BRK), device=w_BRK.device)[:, None]
    across_BSK = inverse_BKK[row_B1, columns_BS]
    block_BSS = across_BSK.gather(2, columns_BS[:, None].expand(-1, columns_BS.shape[1], -1))
    factor_BSK = torch.linalg.solve(block_BSS, across_BSK) if columns_BS.shape[1] > 1 else across_BSK / block_BSS
    moved_BRS = w_BRK.gather(2, columns_BS[:, None].expand(-1, w_BRK.shape[1], -1))
    w_BRK.baddbmm_(moved_BRS, factor_BSK, alpha=-1)
    inverse_BKK.baddbmm_(across_BSK.mT, factor_BSK, alpha=-1)
    w_BRK.mT[row_B1, columns_BS] = 0
    inverse_BKK[row_B1, columns_BS] = 0
    inverse_BKK.mT[row_B1, columns_BS] = 0
    # an identity where the columns were keeps their block invertible; their loss is masked
    inverse_BKK[row_B1, columns_BS, columns_BS] = 1


def refit_masked(w_OK: Tensor, cross_OK: Tensor, gram_KK: Tensor, *, mask_OK: Tensor, damp: float = DAMP) -> Tensor:
    """w'_OK, zero where the mask is False, that minimizes E||y - W' x'||^2 + ridge ||W' - W||^2, in w's type.

    cross_OK: E[y x'^T]; W gram where nothing before the layer has changed, and then this is the update of optimal brain surgeon
    for all that went, with Hessian gram + ridge I. gram_KK: E[x' x'^T], (K, K) or (L, K, K). damp: as in `damped`, above 0.
    Conjugate gradients, 300 steps at most, from the weights that stay; float64.
    """
    hessian_LKK = damped(gram_KK, damp).reshape(-1, *gram_KK.shape[-2:])
    mask_LQK = mask_OK.reshape(len(hessian_LKK), -1, w_OK.shape[1])
    w_LQK, cross_LQK = (value.double().reshape(mask_LQK.shape) for value in (w_OK, cross_OK))
    # the target of H: the ridge pulls towards W
    goal_LQK = cross_LQK + w_LQK @ (hessian_LKK - gram_KK.double().reshape(hessian_LKK.shape))
    found_LQK = settled(w_LQK, goal_LQK, hessian_LKK, mask_LQK=mask_LQK, steps=_MOST_STEPS)
    return found_LQK.reshape(w_OK.shape).to(w_OK.dtype)


def settled(start_LQK: Tensor, goal_LQK: Tensor, hessian_LKK: Tensor, *, mask_LQK: Tensor, steps: int) -> Tensor:
    """w_LQK, zero where the mask is False, nearer than `start` there to the one of least w H w^T - 2 w goal^T.

    Conjugate gradients with the diagonal of H as preconditioner (Hestenes and Stiefel 1952), on all rows at once: each step
    lowers the objective of each row, so an early end only leaves something to gain. Cost: O K^2 a step, in the type given.
    """
    tiny = torch.finfo(hessian_LKK.dtype).tiny
    scale_L1K = 1 / hessian_LKK.diagonal(dim1=1, dim2=2)[:, None]
    found_LQK = start_LQK * mask_LQK
    residual_LQK = (goal_LQK - found_LQK @ hessian_LKK) * mask_LQK
    limit_LQ1 = _TOLERANCE * (goal_LQK * mask_LQK).norm(dim=2, keepdim=True)
    step_LQK = residual_LQK * scale_L1K
    energy_LQ1 = (residual_LQK * step_LQK).sum(2, keepdim=True)
    for _ in range(steps):
        if bool((residual_LQK.norm(dim=2, keepdim=True) <= limit_LQ1).all()):
            break
        curved_LQK = (step_LQK @ hessian_LKK) * mask_LQK
        rate_LQ1 = energy_LQ1 / (step_LQK * curved_LQK).sum(2, keepdim=True).clamp_min(tiny)
        found_LQK += rate_LQ1 * step_LQK
        residual_LQK -= rate_LQ1 * curved_LQK
        scaled_LQK = residual_LQK * scale_L1K
        before_LQ1, energy_LQ1 = energy_LQ1, (residual_LQK * scaled_LQK).sum(2, keepdim=True)
        step_LQK = scaled_LQK + energy_LQ1 / before_LQ1.clamp_min(tiny) * step_LQK
    return found_LQK
