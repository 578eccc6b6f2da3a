"""Means and variances of channels, over parts and together, and how far a tensor's are from wanted ones.

Dimension key: B examples, C channels, S positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-5
"""Added to variances before division: the usual epsilon of a batch norm."""


class Moments(NamedTuple):
    """num_values: of each channel. mean_C, var_C: of these; var_C divides by num_values, not by one less."""

    num_values: int
    mean_C: Tensor
    var_C: Tensor


def moments(x_BCS: Tensor) -> Moments:
    """Of each channel, dimension 1 of a tensor with any number of positions, or none."""
    over = [dim for dim in range(x_BCS.dim()) if dim != 1]
    var_C, mean_C = torch.var_mean(x_BCS, dim=over, correction=0)
    return Moments(x_BCS.numel() // max(x_BCS.shape[1], 1), mean_C, var_C)


def pooled(first: Moments, second: Moments) -> Moments:
    """Of both parts together, exactly: the spread of the parts' means belongs to the variance.

    Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    num_values = first.num_values + second.num_values
    share = second.num_values / num_values
    step_C = second.mean_C - first.mean_C
    var_C = (1 - share) * first.var_C + share * second.var_C + share * (1 - share) * step_C.square()
    return Moments(num_values, first.mean_C + share * step_C, var_C)


def mismatch(found: Moments, mean_C: Tensor, var_C: Tensor) -> Tensor:
    """Mean over channels of ((mean - wanted mean)^2 + (deviation - wanted deviation)^2) / wanted variance; 0 is a match.

    ZeroQ (arXiv:2001.00281) and DeepInversion (arXiv:1912.08795) take plain distances. differs from
    both: in units of the channel's own deviation, so that layers and channels of large values do not outweigh the others.
    """
    wanted_C = var_C + TINY
    off_C = (found.mean_C - mean_C).square() + ((found.var_C + TINY).sqrt() - wanted_C.sqrt()).square()
    return (off_C / wanted_C).mean()


def roughness(x_BCS: Tensor) -> Tensor:
    """Total variation in its squared form (Mahendran and Vedaldi 2015, arXiv:1412.0035), without a unit: the mean
    squared difference of neighbours over the variance, summed over the position dimensions. Noise has 2 a dimension, a constant
    and a tensor without positions 0.
    """
    steps = [x_BCS.diff(dim=dim).square().mean() for dim in range(2, x_BCS.dim()) if x_BCS.shape[dim] > 1]
    return torch.stack(steps).sum() / x_BCS.var().clamp_min(1e-30) if steps else x_BCS.new_zeros(())
