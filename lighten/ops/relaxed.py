"""Sparsity that training finds by itself: proximal steps, hard-concrete gates, variational dropout.

Dropout and DropConnect set activations or weights to zero at random for the time of a step; the trained weights stay dense, so
they are no sparsity.
"""

import math

import torch
from torch import Tensor

_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3  # arXiv:1712.01312, section 4: gamma, zeta, beta
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695  # arXiv:1701.05369, eq. 14
_TINY = 1e-12


def soft_threshold(value: Tensor, threshold: float) -> Tensor:
    """sign(v) max(|v| - threshold, 0): the proximal step of threshold ||v||_1 (Tibshirani 1996; Beck and Teboulle 2009)."""
    return value.sign() * (value.abs() - threshold).clamp_min(0)


def shrink_groups(value_GN: Tensor, threshold: float) -> Tensor:
    """v_g max(1 - threshold / ||v_g||, 0) for each row: the proximal step of threshold times the sum of the rows' norms
    (Yuan and Lin 2006, group lasso).
    """
    norm_G1: Tensor = torch.linalg.vector_norm(value_GN, dim=1, keepdim=True).clamp_min(_TINY)
    return value_GN * (1 - threshold / norm_G1).clamp_min(0)


def hard_concrete(log_alpha: Tensor, noise: Tensor | None) -> Tensor:
    """Gates in [0, 1], 0 and 1 included (Louizos et al. 2018, arXiv:1712.01312, eq. 10 and 11). noise: uniform in (0, 1); None
    for the gate of a trained network (eq. 13).
    """
    if noise is None:
        stretched = log_alpha.sigmoid()
    else:
        noise = noise.clamp(1e-6, 1 - 1e-6)
        stretched = ((noise.log() - (1 - noise).log() + log_alpha) / _TEMPERATURE).sigmoid()
    return (stretched * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """The chance that a hard-concrete gate is not 0, whose sum is the expected L0 norm (arXiv:1712.01312, eq. 12)."""
    return (log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH)).sigmoid()


def log_noise_ratio(weight: Tensor, log_variance: Tensor) -> Tensor:
    """log alpha = log sigma^2 - log w^2: a weight of noise much above its size carries nothing (arXiv:1701.05369, section 4.2);
    within [-10, 10].
    """
    return (log_variance - (weight.square() + _TINY).log()).clamp(-10, 10)


def variational_penalty(log_alpha: Tensor) -> Tensor:
    """KL divergence of each weight's posterior from the log-uniform prior, in nats, without a constant (Molchanov et al. 2017,
    arXiv:1701.05369, eq. 14); at least 0.
    """
    return _K1 - _K1 * (_K2 + _K3 * log_alpha).sigmoid() + 0.5 * torch.log1p((-log_alpha).exp())
