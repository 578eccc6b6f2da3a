"""The layer's loss, and scales refitted to codes. Dimension key: O outputs, K input columns, N rows of data."""

import pytest
import torch
from torch import Tensor

from lighten.ops.grids import decode, encode, fit, ternary
from lighten.ops.reconstruct import accumulate, empty_moments, per_row, refit_drifted
from lighten.ops.rounding import best_codes, output_loss, refit_scales


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_gram(num_columns: int, seed: int = 0) -> Tensor:
    rows = seeded(4 * num_columns, num_columns // 4, seed=seed) @ seeded(num_columns // 4, num_columns, seed=seed + 1)
    rows = torch.relu(rows + 0.5 * seeded(4 * num_columns, num_columns, seed=seed + 2)).double()
    return rows.T @ rows / len(rows)


def test_the_loss_from_the_gram_matrix_is_that_of_the_rows() -> None:
    x_NK, w_OK, other_OK = seeded(50, 6).double(), seeded(3, 6, seed=1), seeded(3, 6, seed=2)
    from_rows_O = (x_NK @ (w_OK - other_OK).double().T).square().mean(0)
    torch.testing.assert_close(output_loss(w_OK, other_OK, x_NK.T @ x_NK / 50), from_rows_O)


def test_each_group_of_a_grouped_convolution_has_its_own_gram_matrix() -> None:
    gram_LKK = torch.stack([correlated_gram(8, seed) for seed in range(3)])
    w_OK, other_OK = seeded(6, 8), seeded(6, 8, seed=1)
    alone = [output_loss(w_OK[2 * at : 2 * at + 2], other_OK[2 * at : 2 * at + 2], gram_LKK[at]) for at in range(3)]
    torch.testing.assert_close(output_loss(w_OK, other_OK, gram_LKK), torch.cat(alone))


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_refitted_scales_are_stationary_and_no_row_loses(group: int | None, symmetric: bool) -> None:
    w_OK, gram_KK = seeded(10, 32), correlated_gram(32)
    grid = fit(w_OK, bits=3, group=group, symmetric=symmetric)
    codes_OK = encode(w_OK, grid)
    refitted = refit_scales(w_OK, gram_KK, codes_OK, grid=grid)
    before_O = output_loss(w_OK, decode(codes_OK, grid), gram_KK)
    after_O = output_loss(w_OK, decode(codes_OK, refitted), gram_KK)
    assert (after_O <= before_O).all()
    assert after_O.sum() < 0.98 * before_O.sum()
    changed_O = after_O < before_O
    scale = refitted.scale.double().requires_grad_()
    steps = (codes_OK.reshape(10, scale.shape[1], -1) - grid.zero).double()
    error_OK = w_OK.double() - (steps * scale).reshape(10, 32)
    (slope,) = torch.autograd.grad(((error_OK @ gram_KK) * error_OK).sum(), scale)
    # the scale is rounded to float32: the slope that leaves is 2 s c'Hc times 2^-24
    size = 2 * (w_OK.double() @ gram_KK * w_OK).sum(1).max() / scale.min()
    assert slope[changed_O].abs().max() < 1e-6 * size


def test_scales_are_refitted_within_each_group_of_a_grouped_convolution() -> None:
    gram_LKK, w_OK = torch.stack([correlated_gram(8, seed) for seed in range(2)]), seeded(4, 8)
    grid = ternary(w_OK)
    codes_OK = encode(w_OK, grid)
    refitted = refit_scales(w_OK, gram_LKK, codes_OK, grid=grid)
    for at in range(2):
        rows = slice(2 * at, 2 * at + 2)
        alone = refit_scales(w_OK[rows], gram_LKK[at], codes_OK[rows], grid=ternary(w_OK[rows]))
        torch.testing.assert_close(refitted.scale[rows], alone.scale)


def test_rows_of_zeros_keep_their_scale() -> None:
    w_OK = torch.zeros(2, 8)
    grid = fit(w_OK, bits=4)
    assert torch.equal(refit_scales(w_OK, correlated_gram(8), encode(w_OK, grid), grid=grid).scale, grid.scale)


def test_one_scale_for_a_tensor_is_not_refitted_by_rows() -> None:
    w_OK = seeded(2, 8)
    grid = fit(w_OK, bits=4, per="tensor")
    with pytest.raises(ValueError, match="whole tensor"):
        refit_scales(w_OK, torch.eye(8), encode(w_OK, grid), grid=grid)


def test_each_row_keeps_its_best_candidate_and_nearest_is_always_one() -> None:
    w_OK, gram_KK = torch.tensor([[3.0, 0.4, 0.4]] * 2), torch.ones(3, 3)
    grid = fit(w_OK, bits=3)  # a scale of 1: nearest is 3, 0, 0 with an error of 0.8 in the sum
    nearest, better, worse = [3, 0, 0], [3, 1, 0], [-4, 0, 0]  # 0.2 and 7.8
    tried = [torch.tensor([worse, better]), torch.tensor([worse, worse])]
    assert best_codes(tried, w_OK, gram_KK, grid=grid).tolist() == [nearest, better]


def test_on_changed_inputs_the_loss_is_that_against_the_least_squares_weight_plus_a_constant() -> None:
    x_NK, w_OK = seeded(200, 8).double(), seeded(3, 8, seed=1).double()
    drifted_NK = x_NK + 0.3 * seeded(200, 8, seed=2)
    moments = empty_moments(8, 3)
    accumulate(moments, drifted_NK, x_NK @ w_OK.T)
    cross_OK, gram_KK = per_row(moments, centred=False)
    best_OK = refit_drifted(w_OK, cross_OK, gram_KK, damp=0)
    gaps = [
        (x_NK @ w_OK.T - drifted_NK @ tried_OK.T).square().mean(0) - output_loss(best_OK, tried_OK, gram_KK)
        for tried_OK in (w_OK, seeded(3, 8, seed=3).double())
    ]
    torch.testing.assert_close(gaps[0], gaps[1])
