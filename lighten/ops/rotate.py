"""Rotations that spread a few large input channels over all of them, so that one scale fits: y = W x = (W R)(R^T x).

R is a Hadamard matrix with random signs, R = diag(signs) H / sqrt(K) (QuIP#, Tseng et al. 2024, arXiv:2402.04396; QuaRot,
Ashkboos et al. 2024, arXiv:2404.00456), or learned on the orthogonal matrices by Cayley steps (SpinQuant, Liu et al. 2024,
arXiv:2405.16406). After it no entry of x exceeds ||x||_1 / sqrt(K).

H is of Sylvester's kind, 2^k, times a small one: Paley's constructions give orders q + 1 for primes q = 3 mod 4 and 2 (q + 1)
for primes q = 1 mod 4: 12, 20, 28, 36, 44, 60, 76 ... so that widths like 384, 576, 768, 5120, 11008 and 14336 have one.

Dimension key: N rows of data, O outputs, K input columns, M order of the small matrix.
"""

from math import isqrt

import torch
from torch import Tensor


def hadamard(order: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A Hadamard matrix of entries +1 and -1 with H H^T = order I, shape order x order; symmetric for powers of two.

    Raises ValueError for an order of which neither construction, doubled any number of times, gives one.
    """
    small_MM = _small(order).to(dtype)
    while len(small_MM) < order:
        small_MM = torch.cat([torch.cat([small_MM, small_MM], 1), torch.cat([small_MM, -small_MM], 1)])
    return small_MM


def random_signs(size: int, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chances, shape `size`, float32."""
    return 2.0 * torch.randint(2, (size,), generator=generator) - 1


def rotate(x_NK: Tensor, sign_K: Tensor) -> Tensor:
    """x R for each row: of a weight (O x K), what replaces it; of inputs, R^T x. Same shape and type; norms stay.

    sign_K: +1 or -1. Cost: K log K a row for powers of two, K M more with a small matrix of order M; R is never formed.
    Raises ValueError as `hadamard` does. In bfloat16 the sums lose digits: rotate in float32.
    """
    columns = x_NK.shape[-1]
    small_MM = _small(columns).to(x_NK)
    turned = (x_NK * sign_K.to(x_NK)).reshape(-1, columns // len(small_MM), len(small_MM))
    rotated_NK: Tensor = _walsh(turned @ small_MM).reshape(x_NK.shape) / columns**0.5
    return rotated_NK


def rotate_back(x_NK: Tensor, sign_K: Tensor) -> Tensor:
    """x R^T for each row: what `rotate` did, undone."""
    columns = x_NK.shape[-1]
    small_MM = _small(columns).to(x_NK)
    turned = _walsh(x_NK.reshape(-1, columns // len(small_MM), len(small_MM)))
    restored_NK: Tensor = (turned @ small_MM.T).reshape(x_NK.shape) * sign_K.to(x_NK) / columns**0.5
    return restored_NK


def cayley_step(rotation_KK: Tensor, gradient_KK: Tensor, rate: float) -> Tensor:
    """The rotation after a step against the gradient of a loss in it; orthogonal to rounding, whatever the rate.

    (I + rate/2 A)^-1 (I - rate/2 A) R with the skew A = (G R^T - R G^T) / 2 (Li et al. 2020, arXiv:2002.01113).
    Cost: K^3, float64 inside.
    """
    rotation, gradient = rotation_KK.double(), gradient_KK.double()
    skew_KK = (gradient @ rotation.T - rotation @ gradient.T) / 2
    identity = torch.eye(len(rotation), dtype=torch.float64, device=rotation.device)
    moved_KK: Tensor = torch.linalg.solve(identity + rate / 2 * skew_KK, (identity - rate / 2 * skew_KK) @ rotation)
    return moved_KK.to(rotation_KK.dtype)


def _walsh(x_NPM: Tensor) -> Tensor:
    """The fast Walsh-Hadamard transform along P, a power of two, in its natural order."""
    size, width = x_NPM.shape[1], 1
    while width < size:
        pairs = x_NPM.reshape(len(x_NPM), size // (2 * width), 2, width, -1)
        x_NPM = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(x_NPM.shape)
        width *= 2
    return x_NPM


def _small(order: int) -> Tensor:
    """The smallest matrix to double: of order 1 for powers of two, else odd * 4, odd * 8 and so on by Paley; float32."""
    odd = order // (order & -order) if order > 0 else 0
    if odd == 1:
        return torch.ones(1, 1)
    candidate = 4 * odd
    while odd and order % candidate == 0:
        if candidate % 4 == 0 and _is_prime(candidate - 1):
            return _paley_first(candidate - 1)
        if candidate // 2 % 4 == 2 and _is_prime(candidate // 2 - 1):
            return _paley_second(candidate // 2 - 1)
        candidate *= 2
    raise ValueError(f"No Hadamard matrix of order {order} is known here: orders are 2^k and multiples of 4 by Paley.")


def _paley_first(prime: int) -> Tensor:
    """Order q + 1, q = 3 mod 4: I + S with the skew S that borders the Jacobsthal matrix."""
    bordered = torch.zeros(prime + 1, prime + 1)
    bordered[0, 1:], bordered[1:, 0] = 1, -1
    bordered[1:, 1:] = _jacobsthal(prime)
    return bordered + torch.eye(prime + 1)


def _paley_second(prime: int) -> Tensor:
    """Order 2 (q + 1), q = 1 mod 4: the symmetric conference matrix C, as C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]."""
    conference = torch.zeros(prime + 1, prime + 1)
    conference[0, 1:], conference[1:, 0] = 1, 1
    conference[1:, 1:] = _jacobsthal(prime)
    off, on = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(conference, off) + torch.kron(torch.eye(prime + 1), on)


def _jacobsthal(prime: int) -> Tensor:
    """Q_ij = 1 where i - j is a square modulo the prime, 0 where it is 0, else -1."""
    character = -torch.ones(prime)
    character[torch.arange(1, prime).square() % prime] = 1
    character[0] = 0
    index = torch.arange(prime)
    return character[(index[:, None] - index) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
