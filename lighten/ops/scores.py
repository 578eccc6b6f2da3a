"""How much each channel matters, one function a criterion: from weights and statistics to a score for each channel.

Every score is float32, at least 0, and larger for channels that matter more. Only `taylor`, `fisher` and `obd` estimate a
change of the loss, and `activation_energy`, `reconstruction` and `successive_reconstruction` a change of an output, so only
these compare between layers as they are; the others need lighten.ops.groups.normalize.

Dimension key: C channels, K everything else (for a consumer: its input columns), O outputs of the consumer, R columns of a
channel, P positions of a channel along a dimension.
"""

import torch
from torch import Tensor

from lighten.ops.reconstruct import DAMP, inverse

_DISTANCES_AT_ONCE = 2**22


def channels_first(tensor: Tensor, dim: int, positions_CP: Tensor) -> Tensor:
    """w_CK: everything in `tensor` that belongs to each channel. positions_CP: int64, its positions along `dim`."""
    picked = tensor.index_select(dim, positions_CP.flatten().to(tensor.device))
    return picked.movedim(dim, 0).reshape(positions_CP.shape[0], -1)


def running_mean(mean: Tensor, value: Tensor, count: int) -> Tensor:
    """The mean of `count` values, 1 or more, of which `mean` is that of all but the last, `value`."""
    return mean + (value - mean) / count


def magnitude(w_CK: Tensor, norm: int = 1) -> Tensor:
    """||w_c||_1 or ||w_c||_2 (Li et al. 2017, arXiv:1608.08710). norm: 1 or 2. Blind to inputs and to later rescaling.

    Raises ValueError for another norm.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 or 2. Got {norm}.")
    score_C: Tensor = torch.linalg.vector_norm(w_CK.float(), ord=norm, dim=1)
    return score_C


def batch_norm_scale(gamma_C: Tensor) -> Tensor:
    """|gamma_c| of the batch norm after the channel (Liu et al. 2017, network slimming, arXiv:1708.06519).

    Says little unless the network was trained with an L1 penalty on gamma.
    """
    return gamma_C.float().abs()


def geometric_median(w_CK: Tensor) -> Tensor:
    """sum_j ||w_c - w_j||_2: small where other channels can stand in (He et al. 2019, FPGM, arXiv:1811.00250).

    A small channel is not cut for being small. Cost: C^2 K; distances are held 2^22 at a time.
    """
    # cdist expands (a - b)^2, which leaves half of the digits near a duplicate: in float64 still eight
    w_CK = w_CK.double()
    at_once = max(1, _DISTANCES_AT_ONCE // len(w_CK))
    return torch.cat([torch.cdist(part, w_CK).sum(1) for part in torch.split(w_CK, at_once)]).float()


def taylor(w_CK: Tensor, grad_CK: Tensor, power: int = 2) -> Tensor:
    """|sum_k w_ck g_ck|^power: the first-order change of the loss when the channel becomes zero (arXiv:1906.10771).

    grad_CK: the gradient of one batch. power: 1 or 2; the paper squares. Average the scores of batches (`running_mean`), not
    the gradients: at a minimum these average to zero. Raises ValueError for another power.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2. Got {power}.")
    return (w_CK.float() * grad_CK.float()).sum(1).abs().pow(power)


def fisher(w_CK: Tensor, grad_squared_CK: Tensor) -> Tensor:
    """1/2 sum_k w_ck^2 E[g_ck^2]: obd with the diagonal of the empirical Fisher information as Hessian.

    grad_squared_CK: mean over examples of the squared gradient; over batches of n it is n times too small near a minimum.
    Theis et al. 2018, arXiv:1801.05787, and Liu et al. 2021, arXiv:2108.00708.
    differs from the papers: they sum w g over the channel before squaring, which keeps the terms between its weights. That is
    `taylor(power=2) / 2` averaged over single examples.
    """
    return 0.5 * (w_CK.float().square() * grad_squared_CK.float()).sum(1)


def obd(w_CK: Tensor, hessian_diagonal_CK: Tensor) -> Tensor:
    """1/2 sum_k h_ck w_ck^2: optimal brain damage (LeCun et al. 1990), exact for a diagonal quadratic at its minimum.

    differs from the paper: negative curvature, which a minimum does not have but an estimate may, counts as zero.
    """
    return 0.5 * (hessian_diagonal_CK.float().clamp_min(0) * w_CK.float().square()).sum(1)


def activation_energy(mean_square_C: Tensor, consumer_CK: Tensor) -> Tensor:
    """E[x_c^2] ||w_c||^2: the energy that the channel alone brings to its consumer's outputs; a structured form of Wanda
    (Sun et al. 2023, arXiv:2306.11695).

    mean_square_C: mean square of the channel's activation. consumer_CK: the weights that read it. It is what cutting the
    channel costs when inputs are uncorrelated and nothing is refitted.
    """
    return mean_square_C.float() * consumer_CK.float().square().sum(1)


def reconstruction(w_OK: Tensor, gram_KK: Tensor, columns_CR: Tensor, *, damp: float = DAMP) -> Tensor:
    """The error of the consumer's outputs when one channel is cut and all other columns are refitted by least squares:
    tr(W_c ([H^-1]_cc)^-1 W_c^T), H = gram + damp * mean(diag gram) * I.

    Optimal brain surgeon (Hassibi and Stork 1993) for blocks of columns; with one column ||w_c||^2 / [H^-1]_cc.
    w_OK: the consumer, convolutions flattened. gram_KK: E[x x^T] of its inputs. columns_CR: int64, each channel's columns
    (lighten.ops.reconstruct.channel_columns). Unit: that of the output squared, summed over outputs, plus the ridge's share.
    Each channel is judged as if it alone were cut: both of two duplicates score near 0. Cost: K^3 + C R^3.
    Raises torch.linalg.LinAlgError when H is singular, which needs damp 0.
    """
    return _removal_losses(*_channel_major(w_OK, gram_KK, columns_CR, damp)).float()


def successive_reconstruction(w_OK: Tensor, gram_KK: Tensor, columns_CR: Tensor, *, damp: float = DAMP) -> Tensor:
    """Total output error at the moment a channel goes, when the cheapest goes first and the rest is refitted each time.

    As `reconstruction`, but cuts see each other: of two duplicates, one scores near 0 and the other what both carried. The
    greedy order of Optimal Brain Compression (Frantar et al. 2022, arXiv:2208.11580, there for single weights); the scores
    rise along it, so that every threshold cuts a beginning of it. Cost: C steps of R K (K + O), float64.
    """
    w_CRO, inverse_KK = _channel_major(w_OK, gram_KK, columns_CR, damp)
    total_C = torch.zeros(len(columns_CR), dtype=torch.float64, device=w_CRO.device)
    is_cut_C = torch.zeros_like(total_C, dtype=torch.bool)
    total = 0.0
    for _ in range(len(columns_CR)):
        loss_C = _removal_losses(w_CRO, inverse_KK).masked_fill(is_cut_C, float("inf"))
        channel = int(loss_C.argmin())
        total += float(loss_C[channel])
        total_C[channel], is_cut_C[channel] = total, True
        _remove(w_CRO, inverse_KK, channel)
    return total_C.float()


def random(num: int, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): what any other score must beat."""
    return torch.rand(num, generator=generator)


def _channel_major(w_OK: Tensor, gram_KK: Tensor, columns_CR: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """w_CRO and the inverse of H, float64, both over the channels' columns in channel order. No other column can be cut, and
    none of the formulas asks for more of the inverse than this part.
    """
    order = columns_CR.flatten().to(w_OK.device)
    return w_OK.double().T[order].reshape(*columns_CR.shape, -1), inverse(gram_KK, damp)[order][:, order]


def _removal_losses(w_CRO: Tensor, inverse_KK: Tensor) -> Tensor:
    """tr(W_c B_c^-1 W_c^T) for each diagonal block B_c of the inverse, float64."""
    num_channels, repeat, _ = w_CRO.shape
    block_CRR = inverse_KK.reshape(num_channels, repeat, num_channels, repeat).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    energy_CRR = w_CRO.square().sum(2)[..., None] if repeat == 1 else w_CRO @ w_CRO.mT
    weight_CRR: Tensor = torch.linalg.inv(block_CRR)
    return (weight_CRR * energy_CRR).sum((1, 2)).clamp_min(0)


def _remove(w_CRO: Tensor, inverse_KK: Tensor, channel: int) -> None:
    """In place: the other columns refitted, and the inverse of H without the channel's columns by block elimination."""
    repeat = w_CRO.shape[1]
    cut = slice(channel * repeat, (channel + 1) * repeat)
    factor_RK: Tensor = torch.linalg.solve(inverse_KK[cut, cut], inverse_KK[cut])
    w_CRO.flatten(0, 1).addmm_(factor_RK.T, w_CRO[channel].clone(), alpha=-1)
    inverse_KK.addmm_(inverse_KK[:, cut].clone(), factor_RK, alpha=-1)
    w_CRO[channel] = 0
    inverse_KK[cut] = 0
    inverse_KK[:, cut] = 0
    # an identity where the columns were keeps their block invertible; their loss is masked
    inverse_KK[cut, cut] = torch.eye(repeat, dtype=inverse_KK.dtype, device=inverse_KK.device)
