"""How much a part of a network matters as a whole: from the values around it, or from the outputs with and without it.

Dimension key: none; values have any shape, with examples in dimension 0.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = 1e-30


def block_influence(before: Tensor, after: Tensor, dim: int) -> float:
    """1 - mean cosine(before, after), in [0, 2]: how far a block turns what passes through it; 0 for an identity.

    Men et al. 2024, ShortGPT, arXiv:2403.03853, eq. 1. before, after: the residual stream at both ends of the block, of one
    shape. dim: the channels; every position counts alike. A vector of zeros on either side, as in a feature map behind a ReLU,
    tells nothing and is left out; where all are zero the influence is 0. Blind to a change of length, as by `2 * x`, and to
    what the network makes of the change.
    """
    cosine = functional.cosine_similarity(before.double(), after.double(), dim=dim)
    told = (before.double().square().sum(dim) > 0) & (after.double().square().sum(dim) > 0)
    return float((1 - cosine)[told].mean()) if told.any() else 0.0


def divergence(logits: Tensor, other_logits: Tensor) -> float:
    """Mean KL(p || q) in nats between the softmax of both over the last dimension, >= 0; p is that of `logits`."""
    log_p, log_q = logits.double().log_softmax(-1), other_logits.double().log_softmax(-1)
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).mean())


def relative_error(output: Tensor, other: Tensor) -> float:
    """||other - output||^2 / ||output||^2 over everything; 0 where both are equal, 1 where `other` is zero."""
    energy = float(output.double().square().sum())
    return float((other.double() - output.double()).square().sum()) / max(energy, _LEAST)
