"""Which weights go, for layers too large for optimal brain surgeon: a few at a time, the others fitted anew after each round.

In a round those of least w_k^2 H_kk go, H the damped Gram matrix of the inputs: Wanda's score (Sun et al. 2023,
arXiv:2306.11695, eq. 1) of weights that already make up for what went before. No inverse is needed and no order of columns.

Dimension key: O outputs (rows), K input columns, B rows and C columns of blocks, N blocks that go in a round.
"""

import torch
from torch import Tensor

from lighten.ops.masks import Pattern, block_sums, mask, spread
from lighten.ops.obs import Removals, settled
from lighten.ops.reconstruct import DAMP, damped

ROUNDS = 64
STEPS = 8
"""Of conjugate gradients a round."""
_LEFT = 0.01  # share of the weights that never goes
_RISE = 1e-3  # of the level from round to round at least, so that ranks keep the order
_LEAST = 1e-30


def removals_in_rounds(w_OK: Tensor, gram_KK: Tensor, pattern: Pattern, *, damp: float = DAMP) -> Removals:
    """As `ops.obs.removals`, in 64 rounds: 7 % of what is left go in each, until 1 % or what N:M keeps is left.

    Within a round all losses are equal, and ranks follow the score. On random layers of 64 and 256 columns at half and a fifth
    of the weights the error lay up to 25 % above that of the greedy order, that of SparseGPT 30 to 280 %
    (tests/ops/test_obs.py). Cost: O K^2 a thousand times, float32.
    """
    hessian_LKK = damped(gram_KK, damp).reshape(-1, *gram_KK.shape[-2:]).float()
    w_LQK = w_OK.float().reshape(len(hessian_LKK), -1, w_OK.shape[1])
    goal_LQK = w_LQK @ hessian_LKK
    cost_OK = hessian_LKK.diagonal(dim1=1, dim2=2)[:, None].expand_as(w_LQK).reshape(w_OK.shape)
    loss_OK, rank_OK = torch.zeros_like(cost_OK), torch.full_like(cost_OK, torch.inf)
    now_LQK, stays_OK, total, level = w_LQK, torch.ones_like(w_OK, dtype=torch.bool), 0.0, _LEAST
    for step in range(1, ROUNDS + 1):
        score_OK = now_LQK.reshape(w_OK.shape).square() * cost_OK * stays_OK
        mask_OK = mask(score_OK, pattern, 1 - _LEFT ** (step / ROUNDS)) & stays_OK
        gone_OK = stays_OK & ~mask_OK
        count = int(gone_OK.sum())
        if not count:
            continue
        now_LQK = settled(now_LQK, goal_LQK, hessian_LKK, mask_LQK=mask_OK.reshape(w_LQK.shape), steps=STEPS)
        before, total = total, max(_error(w_LQK - now_LQK, hessian_LKK), total)
        level = max(level * (1 + _RISE), (total - before) / count)
        loss_OK[gone_OK] = (total - before) / count
        rank_OK[gone_OK] = level * (1 + _RISE / 2 * _order(score_OK, gone_OK, pattern))
        stays_OK = mask_OK
    return Removals(loss_OK, rank_OK)


def _error(change_LQK: Tensor, hessian_LKK: Tensor) -> float:
    return float(((change_LQK @ hessian_LKK) * change_LQK).sum(dtype=torch.float64))


def _order(score_OK: Tensor, gone_OK: Tensor, pattern: Pattern) -> Tensor:
    """For each weight that goes the place of its block's score among theirs, in [0, 1)."""
    if pattern.among:
        return score_OK[gone_OK].argsort().argsort().float() / int(gone_OK.sum())
    score_BC, gone_BC = block_sums(score_OK, pattern), block_sums(gone_OK.int(), pattern) > 0
    order_BC = torch.zeros_like(score_BC)
    order_BC[gone_BC] = score_BC[gone_BC].argsort().argsort().to(order_BC) / int(gone_BC.sum())
    return spread(order_BC, pattern)[gone_OK]
