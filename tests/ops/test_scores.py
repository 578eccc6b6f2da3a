"""Scores of channels from weights, gradients and statistics."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lighten.core.channels import Slice
from lighten.ops import scores as scores_module
from lighten.ops.reconstruct import channel_columns, refit
from lighten.ops.scores import (
    activation_energy,
    batch_norm_scale,
    channels_first,
    fisher,
    geometric_median,
    magnitude,
    obd,
    random,
    reconstruction,
    running_mean,
    successive_reconstruction,
    taylor,
)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_of(num_columns: int, seed: int = 0) -> Tensor:
    x_NK = seeded(4 * num_columns, num_columns, seed=seed) @ seeded(num_columns, num_columns, seed=seed + 1)
    return x_NK.T @ x_NK / len(x_NK)


def damped_error(w_OK: Tensor, gram_KK: Tensor, cut: list[int], damp: float) -> float:
    """min over W' of ||W X - W' X||^2 + ridge ||W - W'||^2 with the columns `cut` zero in W', from its definition."""
    ridge = damp * gram_KK.diagonal().mean()
    hessian_KK = gram_KK + ridge * torch.eye(len(gram_KK), dtype=torch.float64)
    kept = [column for column in range(len(gram_KK)) if column not in cut]
    solution_OP = w_OK @ hessian_KK[:, kept] @ torch.linalg.inv(hessian_KK[kept][:, kept])
    change_OK = w_OK.clone()
    change_OK[:, kept] -= solution_OP
    return (change_OK @ hessian_KK * change_OK).sum().item()


# scores from weights, gradients and statistics

FROM_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "magnitude": magnitude,
    "magnitude 2": lambda w_CK: magnitude(w_CK, 2),
    "batch_norm_scale": lambda w_CK: batch_norm_scale(w_CK[:, 0]),
    "geometric_median": geometric_median,
    "taylor": lambda w_CK: taylor(w_CK, w_CK.flip(1)),
    "taylor 1": lambda w_CK: taylor(w_CK, w_CK.flip(1), power=1),
    "fisher": lambda w_CK: fisher(w_CK, w_CK.flip(1).square()),
    "obd": lambda w_CK: obd(w_CK, w_CK.flip(1)),
    "activation_energy": lambda w_CK: activation_energy(w_CK[:, 0].square(), w_CK),
}


@pytest.mark.parametrize("name", FROM_ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_score_is_float32_never_negative_and_moves_with_its_channel(name: str, dtype: torch.dtype) -> None:
    w_CK, order_C = seeded(7, 4).to(dtype), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    score_C = FROM_ROWS[name](w_CK)
    assert (score_C.dtype, score_C.shape) == (torch.float32, (7,))
    assert score_C.min() >= 0
    torch.testing.assert_close(FROM_ROWS[name](w_CK[order_C]), score_C[order_C])


def test_magnitudes_and_scales_of_known_channels() -> None:
    w_CK = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert magnitude(w_CK).tolist() == [7.0, 0.0]
    assert magnitude(w_CK, norm=2).tolist() == [5.0, 0.0]
    assert batch_norm_scale(torch.tensor([-2.0, 0.5])).tolist() == [2.0, 0.5]
    with pytest.raises(ValueError, match="norm must be 1 or 2"):
        magnitude(w_CK, norm=3)


def test_geometric_median_of_a_right_triangle_sums_its_sides() -> None:
    corners_CK = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(geometric_median(corners_CK), torch.tensor([7.0, 8.0, 9.0]))


def test_geometric_median_cuts_the_middle_and_not_the_small() -> None:
    line_CK = torch.tensor([[0.1], [1.0], [5.0], [5.1], [9.9]])
    assert magnitude(line_CK).argmin() == 0
    assert geometric_median(line_CK).argmin() == 2


def test_geometric_median_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    w_CK = seeded(9, 5)
    whole_C = geometric_median(w_CK)
    monkeypatch.setattr(scores_module, "_DISTANCES_AT_ONCE", 20)
    assert torch.equal(geometric_median(w_CK), whole_C)


def test_geometric_median_tells_near_duplicates_apart() -> None:
    w_CK = seeded(1, 2000).repeat(60, 1)  # more than 25 rows: cdist goes through matrix multiplication
    w_CK[:, 0] += 1e-3 * torch.arange(60)
    place_C = torch.arange(60.0)
    expected_C = 1e-3 * (place_C[:, None] - place_C).abs().sum(1)
    # norms of 45 and distances of 1e-3: float64 keeps 16 - 2 log10(45 / 1e-3) digits, more than 6; float32 none
    torch.testing.assert_close(geometric_median(w_CK), expected_C, rtol=1e-5, atol=0)


@pytest.mark.parametrize("power", [1, 2])
def test_taylor_is_the_exact_change_of_a_linear_loss(power: int) -> None:
    w_CK, slope_CK = seeded(5, 3).requires_grad_(), seeded(5, 3, seed=1)
    (w_CK * slope_CK).sum().backward()
    # with channel c at zero the loss loses exactly that channel's term
    change_C = (w_CK.detach() * slope_CK).sum(1)
    torch.testing.assert_close(taylor(w_CK.detach(), w_CK.grad, power), change_C.abs().pow(power).float())


def test_taylor_is_right_to_first_order_on_a_curved_loss() -> None:
    def relative_error(size: float) -> float:
        w_CK = (size * seeded(4, 3)).requires_grad_()

        def loss(w_CK: Tensor) -> Tensor:
            return (w_CK + seeded(4, 3, seed=1)).square().square().sum()

        loss(w_CK).backward()
        without_CK = w_CK.detach().clone()
        without_CK[0] = 0
        true = (loss(w_CK) - loss(without_CK)).abs().item()
        return abs(taylor(w_CK.detach(), w_CK.grad, power=1)[0].item() - true) / true

    # what is left out is of second order: a tenth of the weights, a tenth of the relative error
    assert relative_error(1e-3) == pytest.approx(relative_error(1e-2) / 10, rel=0.1)
    assert relative_error(1e-3) < 0.01
    with pytest.raises(ValueError, match="power must be 1 or 2"):
        taylor(torch.ones(1, 1), torch.ones(1, 1), power=3)


def test_averaging_scores_over_batches_keeps_what_averaging_gradients_loses() -> None:
    w_CK, batches = torch.ones(2, 1), [torch.tensor([[3.0], [0.1]]), torch.tensor([[-3.0], [0.1]])]
    mean_C = torch.zeros(2)
    for count, grad_CK in enumerate(batches, 1):
        mean_C = running_mean(mean_C, taylor(w_CK, grad_CK), count)
    torch.testing.assert_close(mean_C, torch.tensor([9.0, 0.01]))
    assert taylor(w_CK, sum(batches) / 2).argmin() == 0


def test_obd_is_exact_on_a_diagonal_quadratic_at_its_minimum() -> None:
    minimum_CK, curvature_CK = seeded(4, 3), seeded(4, 3, seed=1).square()

    def loss(w_CK: Tensor) -> Tensor:
        return 0.5 * (curvature_CK * (w_CK - minimum_CK).square()).sum()

    score_C = obd(minimum_CK, curvature_CK)
    for channel in range(4):
        without_CK = minimum_CK.clone()
        without_CK[channel] = 0
        assert score_C[channel].item() == pytest.approx(loss(without_CK).item())


def test_obd_takes_negative_curvature_for_none() -> None:
    assert obd(torch.ones(1, 2), torch.tensor([[-5.0, 3.0]])).item() == 1.5


def test_fisher_is_half_the_mean_taylor_score_for_channels_of_one_weight() -> None:
    w_CK, grads_NCK = seeded(5, 1), seeded(8, 5, 1, seed=1)
    mean_C = torch.stack([taylor(w_CK, grad_CK) for grad_CK in grads_NCK]).mean(0)
    torch.testing.assert_close(fisher(w_CK, grads_NCK.square().mean(0)), mean_C / 2)


def test_activation_energy_is_the_error_of_cutting_when_inputs_are_uncorrelated() -> None:
    w_OK, mean_square_K = seeded(3, 4), torch.tensor([1.0, 4.0, 0.0, 9.0], dtype=torch.float64)
    score_K = activation_energy(mean_square_K, w_OK.T)
    error_K = [damped_error(w_OK, mean_square_K.diag() + 1e-12 * torch.eye(4), [k], 0) for k in range(4)]
    torch.testing.assert_close(score_K, torch.tensor(error_K), atol=1e-9, rtol=1e-6)


def test_random_scores_are_those_of_the_seed() -> None:
    first, second = (random(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert (first >= 0).all()
    assert (first < 1).all()


def test_channels_come_first_wherever_they_lie() -> None:
    weight = torch.arange(12.0).reshape(2, 6)
    twice_each = Slice("fc.weight", 1, "in", repeat=2).positions(3)
    assert channels_first(weight, 1, twice_each).tolist() == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]
    fused = Slice("qkv.weight", 0, "out", outer=3, period=2).positions(2)
    assert channels_first(torch.arange(6.0)[:, None], 0, fused).tolist() == [[0, 2, 4], [1, 3, 5]]


# reconstruction


@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("kernel", [1, 3])
def test_reconstruction_is_the_error_that_a_refit_leaves(damp: float, kernel: int) -> None:
    w_OK, gram_KK = seeded(4, 6), gram_of(6)
    columns_CR = channel_columns(torch.arange(6 // kernel)[:, None], kernel)
    expected = [damped_error(w_OK, gram_KK, columns_R.tolist(), damp) for columns_R in columns_CR]
    torch.testing.assert_close(reconstruction(w_OK, gram_KK, columns_CR, damp=damp), torch.tensor(expected))


def test_reconstruction_without_damping_is_the_output_error_after_the_refit() -> None:
    w_OK, gram_KK = seeded(4, 6), gram_of(6)
    score_C = reconstruction(w_OK, gram_KK, torch.arange(6)[:, None], damp=0)
    for channel in range(6):
        kept_P = torch.tensor([k for k in range(6) if k != channel])
        change_OK = w_OK.clone()
        change_OK[:, kept_P] -= refit(w_OK, gram_KK, kept_P, damp=0)
        assert score_C[channel].item() == pytest.approx((change_OK @ gram_KK * change_OK).sum().item(), rel=1e-6)


def test_reconstruction_never_exceeds_the_error_of_cutting_without_a_refit() -> None:
    w_OK, gram_KK = seeded(4, 12), gram_of(12)
    plain_C = activation_energy(gram_KK.diagonal(), w_OK.T)
    assert (reconstruction(w_OK, gram_KK, torch.arange(12)[:, None], damp=0) < plain_C).all()


def test_a_duplicated_channel_costs_nothing_but_the_damping() -> None:
    gram_KK = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    w_OK, columns_CR = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64), torch.arange(3)[:, None]
    for damp in (1e-2, 1e-4, 1e-6):
        score_C = reconstruction(w_OK, gram_KK, columns_CR, damp=damp)
        # [[1 + d, 1], [1, 1 + d]] inverted by hand
        twin = (2 * damp + damp**2) / (1 + damp)
        torch.testing.assert_close(score_C, torch.tensor([4 * twin, twin, 1 + damp]), rtol=1e-5, atol=0)


def test_successive_reconstruction_sees_that_only_one_of_two_duplicates_can_go() -> None:
    gram_KK = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    w_OK = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64)
    score_C = successive_reconstruction(w_OK, gram_KK, torch.arange(3)[:, None], damp=1e-6)
    # first the weaker twin, for nothing; then the lone channel, 1; then the other twin with the weights of both, 3^2
    torch.testing.assert_close(score_C, torch.tensor([10.0, 0.0, 1.0]), rtol=0, atol=1e-4)


def test_the_order_and_place_of_columns_do_not_matter() -> None:
    w_OK, gram_KK, order_K = seeded(3, 7), gram_of(7), torch.tensor([4, 6, 0, 2, 5, 1, 3])
    columns_CR, moved_CR = torch.tensor([[0, 4], [5, 1], [2, 6]]), torch.tensor([[2, 0], [4, 5], [3, 1]])
    for score in (reconstruction, successive_reconstruction):
        moved_C = score(w_OK[:, order_K], gram_KK[order_K][:, order_K], moved_CR)
        torch.testing.assert_close(moved_C, score(w_OK, gram_KK, columns_CR))


@pytest.mark.parametrize("kernel", [1, 2])
def test_successive_reconstruction_is_the_error_of_the_whole_cut_so_far(kernel: int) -> None:
    w_OK, gram_KK = seeded(3, 8), gram_of(8)
    columns_CR = channel_columns(torch.arange(8 // kernel)[:, None], kernel)
    score_C = successive_reconstruction(w_OK, gram_KK, columns_CR)
    assert score_C.min().item() == pytest.approx(reconstruction(w_OK, gram_KK, columns_CR).min().item())
    for channels in range(1, len(columns_CR) + 1):
        cut = score_C.argsort()[:channels]
        expected = damped_error(w_OK, gram_KK, columns_CR[cut].flatten().tolist(), 0.01)
        assert score_C[cut[-1]].item() == pytest.approx(expected, rel=1e-6)


def test_columns_that_belong_to_no_channel_take_part_in_the_refit() -> None:
    gram_KK = torch.ones(2, 2, dtype=torch.float64)
    alone = reconstruction(torch.ones(1, 2), gram_KK, torch.tensor([[1]]), damp=1e-6)
    assert alone.item() == pytest.approx(2e-6, rel=1e-3)
    assert successive_reconstruction(torch.ones(1, 2), gram_KK, torch.tensor([[1]]), damp=1e-6).tolist() == alone.tolist()


def test_a_singular_gram_without_damping_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        reconstruction(torch.ones(1, 3), torch.zeros(3, 3), torch.arange(3)[:, None], damp=0)
