"""SparseGPT: masks of large layers, chosen block by block of columns while each column's error moves into those to come.

Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1, on the factor that GPTQ uses: with U'U = H^-1, U upper triangular,
removing weight k of a row costs w_k^2 / U_kk^2 when the columns after it make up for it, and they move by -w_k U_kj / U_kk.
Optimal brain surgeon with one order of columns for all rows, so one factor instead of an inverse for each row.

Dimension key: O outputs (rows), K input columns, B columns of a block, L groups of a grouped convolution, Q = O / L outputs of
one of them.
"""

import torch
from torch import Tensor

from lighten.ops.gptq import inverse_factor
from lighten.ops.masks import Pattern, mask
from lighten.ops.reconstruct import DAMP, damped

BLOCK = 128
"""Columns whose mask is chosen at once (section 3.2); fewer where the pattern's groups do not fill it."""


def sparse_gpt(w_OK: Tensor, gram_KK: Tensor, pattern: Pattern, *, ratio: float, damp: float = DAMP) -> Tensor:
    """mask_OK with a share `ratio` of zeros in each block of columns, as far as whole weights go.

    gram_KK: E[x x^T]; (L, K, K) for a grouped convolution. damp: above 0, fraction of the mean diagonal, no unit. The values of
    what stays: `lighten.ops.obs.refit_masked`, which does not depend on the order of the columns.
    Cost: K^3 + O K^2, float64. Raises torch.linalg.LinAlgError when the Gram matrix is singular and damp is 0.
    """
    hessian_LKK = damped(gram_KK, damp).reshape(-1, *gram_KK.shape[-2:])
    factor_LKK, each = inverse_factor(hessian_LKK), len(w_OK) // len(hessian_LKK)
    parts = zip(torch.split(w_OK.double(), each), factor_LKK, strict=True)
    return torch.cat([_one(w_QK.clone(), factor_KK, pattern, ratio) for w_QK, factor_KK in parts])


def _one(w_QK: Tensor, factor_KK: Tensor, pattern: Pattern, ratio: float) -> Tensor:
    mask_QK, num_columns = torch.ones_like(w_QK, dtype=torch.bool), w_QK.shape[1]
    width = max(BLOCK // (pattern.among or pattern.columns), 1) * (pattern.among or pattern.columns)
    for start in range(0, num_columns, width):
        block, rest = slice(start, start + width), slice(start + width, None)
        w_QB, factor_BB = w_QK[:, block], factor_KK[block, block]
        mask_QB = mask((w_QB / factor_BB.diagonal()).square(), pattern, ratio)
        error_QB = torch.zeros_like(w_QB)
        for k in range(w_QB.shape[1]):
            error_QB[:, k] = w_QB[:, k] * ~mask_QB[:, k] / factor_BB[k, k]
            w_QB[:, k:] -= error_QB[:, k, None] * factor_BB[k, k:]
        w_QK[:, rest] -= error_QB @ factor_KK[block, rest]
        mask_QK[:, block] = mask_QB
    return mask_QK
