"""Hadamard and learned rotations. Dimension key: N rows, O outputs, K columns."""

import pytest
import torch

from lighten.ops.grids import nearest
from lighten.ops.rotate import cayley_step, hadamard, random_signs, rotate, rotate_back

ORDERS = [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 56, 60, 64, 76, 148, 384, 576, 768]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", ORDERS)
def test_hadamard_matrices_have_entries_of_one_and_orthogonal_rows(order: int) -> None:
    matrix = hadamard(order, torch.float64)
    assert matrix.shape == (order, order)
    assert (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_sylvesters_matrices_are_symmetric() -> None:
    assert torch.equal(hadamard(16), hadamard(16).T)


@pytest.mark.parametrize("order", [0, 3, 6, 18, 92])
def test_an_order_without_a_known_matrix_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"order {order}"):
        hadamard(order)


@pytest.mark.parametrize("columns", [1, 8, 12, 28, 96, 384, 576])
def test_the_fast_rotation_is_the_matrix_product(columns: int) -> None:
    sign_K = random_signs(columns, torch.Generator().manual_seed(0))
    rotation_KK = sign_K.double()[:, None] * hadamard(columns, torch.float64) / columns**0.5
    x_NK = seeded(3, columns)
    torch.testing.assert_close(rotate(x_NK, sign_K), x_NK @ rotation_KK)
    torch.testing.assert_close(rotate_back(x_NK, sign_K), x_NK @ rotation_KK.T)


@pytest.mark.parametrize("columns", [64, 96])
def test_rotating_weight_and_input_leaves_the_function(columns: int) -> None:
    sign_K = random_signs(columns, torch.Generator().manual_seed(0))
    w_OK, x_BNK = seeded(7, columns), seeded(2, 5, columns, seed=1)
    torch.testing.assert_close(rotate(x_BNK, sign_K) @ rotate(w_OK, sign_K).T, x_BNK @ w_OK.T)
    torch.testing.assert_close(rotate_back(rotate(x_BNK, sign_K), sign_K), x_BNK)


def test_a_large_input_channel_is_spread_over_all() -> None:
    sign_K = random_signs(256, torch.Generator().manual_seed(0))
    x_NK = torch.randn(512, 256, generator=torch.Generator().manual_seed(1))
    x_NK[:, 7] *= 100
    w_OK = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))
    rotated_NK = rotate(x_NK, sign_K)
    assert (rotated_NK.abs() <= x_NK.abs().sum(1, keepdim=True) / 16 * (1 + 1e-5)).all()

    def error(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (nearest(x, bits=4) @ w.T - x @ w.T).square().mean()

    assert error(rotated_NK, rotate(w_OK, sign_K)) < 0.2 * error(x_NK, w_OK)


def test_signs_are_ones_and_repeat_with_the_seed() -> None:
    first, second = (random_signs(1000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.abs(), torch.ones(1000))
    assert first.mean().abs() < 0.16  # five deviations of a fair coin


def test_bfloat16_stays_bfloat16() -> None:
    assert rotate(torch.ones(2, 12, dtype=torch.bfloat16), torch.ones(12)).dtype == torch.bfloat16


def test_cayley_steps_stay_orthogonal_and_follow_the_skew_part_of_the_gradient() -> None:
    rotation, gradient = torch.linalg.qr(seeded(12, 12)).Q, seeded(12, 12, seed=1)
    moved = cayley_step(rotation, gradient, rate=10.0)
    torch.testing.assert_close(moved @ moved.T, torch.eye(12, dtype=torch.float64))
    small = 1e-6
    skew = (gradient @ rotation.T - rotation @ gradient.T) / 2
    torch.testing.assert_close((cayley_step(rotation, gradient, small) - rotation) / small, -skew @ rotation, rtol=0, atol=1e-4)


def test_cayley_steps_find_the_rotation_between_two_point_clouds() -> None:
    x_NK, wanted = seeded(40, 6), torch.linalg.qr(seeded(6, 6, seed=3)).Q
    wanted[:, 0] *= torch.linalg.det(wanted).sign()  # steps never leave the rotations for the reflections
    rotation = torch.eye(6, dtype=torch.float64)
    for _ in range(300):
        rotation = cayley_step(rotation, 2 * x_NK.T @ (x_NK @ rotation - x_NK @ wanted) / 40, rate=0.5)
    torch.testing.assert_close(rotation, wanted, rtol=0, atol=1e-6)
