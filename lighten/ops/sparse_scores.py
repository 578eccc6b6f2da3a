"""How much a single weight matters, one function a criterion. Every score has the weight's shape and is at least 0.

Dimension key: O outputs (rows), K input columns.
"""

import torch
from torch import Tensor


def magnitude(w_OK: Tensor) -> Tensor:
    """|w| (Han et al. 2015, arXiv:1506.02626). Blind to inputs."""
    return w_OK.abs()


def wanda(w_OK: Tensor, mean_square_K: Tensor) -> Tensor:
    """|w_ok| sqrt(E[x_k^2]) (Sun et al. 2023, arXiv:2306.11695, eq. 1); compared within a row.

    mean_square_K: (K,), or (L, K) where rows come in L equal parts, the groups of a grouped convolution. Its square is what
    removing the weight costs at the output when inputs are uncorrelated.
    """
    norm_LK = mean_square_K.reshape(-1, w_OK.shape[1]).sqrt()
    return w_OK.abs() * norm_LK.repeat_interleave(len(w_OK) // len(norm_LK), 0).to(w_OK)


def taylor(w: Tensor, gradient: Tensor) -> Tensor:
    """|w g|: the first-order change of the loss when the weight becomes zero (Molchanov et al. 2019, arXiv:1906.10771).

    gradient: of one batch; average the scores of batches, not the gradients.
    """
    return (w * gradient).abs()


def movement(w: Tensor, gradient: Tensor) -> Tensor:
    """-w g: positive where a step of gradient descent moves the weight away from zero; summed over the steps of a training
    (Sanh et al. 2020, arXiv:2005.07683, eq. 6). Of either sign.
    """
    return -w * gradient


def synaptic_flow(w: Tensor, gradient: Tensor) -> Tensor:
    """|w| dR/d|w|: what of the flow R, the sum of the outputs of the network of absolute weights for an input of ones, passes
    through the weight (Tanaka et al. 2020, arXiv:2006.05467, eq. 2 and 3). No data. gradient: dR/d|w|.
    """
    return (w.abs() * gradient).abs()


def random(w: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): what any other score must beat."""
    return torch.rand(w.shape, generator=generator)
