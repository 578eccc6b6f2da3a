import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.core.channels import Slice
from lighten.ops.reconstruct import (
    Affine,
    Goal,
    Window,
    accumulate,
    channel_columns,
    damped,
    empty_moments,
    group_sparsity,
    inverse,
    matching_bias,
    per_row,
    refit,
    refit_chosen,
    refit_drifted,
    refit_rows,
    sample_rows,
    stuffed,
    unfold_columns,
)

CONVOLUTIONS = {
    "1d": Window((3,), (2,), (1,), (2,)),
    "2d": Window((3, 2), (2, 1), (1, 0), (1, 2)),
    "2d pointwise": Window((1, 1), (1, 1), (0, 0), (1, 1)),
    "3d": Window((2, 3, 1), (1, 2, 3), (0, 1, 0), (2, 1, 1)),
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(num_rows: int, num_columns: int, seed: int = 0) -> Tensor:
    """Rows whose columns share three causes, with means far from zero."""
    causes = seeded(num_rows, 3, seed=seed) @ seeded(3, num_columns, seed=seed + 1)
    return causes + 0.3 * seeded(num_rows, num_columns, seed=seed + 2) + torch.arange(num_columns)


def gram_of(x_NK: Tensor) -> Tensor:
    return x_NK.T @ x_NK / len(x_NK)


def error(w_OP: Tensor, x_NP: Tensor, target_NO: Tensor) -> float:
    return (x_NP @ w_OP.T - target_NO).square().sum().item() / len(x_NP)


# refit


@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
def test_refit_only_drops_columns_when_inputs_are_uncorrelated(damp: float) -> None:
    w_OK, kept_P = seeded(4, 6), torch.tensor([0, 2, 5])
    assert torch.equal(refit(w_OK, torch.eye(6), kept_P, damp=damp), w_OK[:, kept_P])


def test_refit_without_a_duplicated_channel_gives_the_same_outputs() -> None:
    x_NK = seeded(50, 6)
    x_NK[:, 4] = x_NK[:, 1]
    w_OK, kept_P = seeded(3, 6, seed=9), torch.tensor([0, 1, 2, 3, 5])
    w_OP = refit(w_OK, gram_of(x_NK), kept_P, damp=0)
    torch.testing.assert_close(x_NK[:, kept_P] @ w_OP.T, x_NK @ w_OK.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(w_OP[:, 1], w_OK[:, 1] + w_OK[:, 4])


def test_damping_leaves_a_share_of_a_duplicated_channel_that_the_formula_predicts() -> None:
    gram_KK = torch.ones(2, 2, dtype=torch.float64)
    w_OP = refit(torch.tensor([[0.0, 1.0]], dtype=torch.float64), gram_KK, torch.tensor([0]), damp=0.01)
    assert w_OP.item() == pytest.approx(1 / 1.01)


@pytest.mark.parametrize("damp", [0.0, 1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_refit_never_has_more_error_than_dropping(damp: float, seed: int) -> None:
    x_NK, w_OK = correlated(200, 12, seed), seeded(5, 12, seed=seed + 50)
    kept_P = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:7].sort().values
    refitted = error(refit(w_OK, gram_of(x_NK), kept_P, damp=damp), x_NK[:, kept_P], x_NK @ w_OK.T)
    assert refitted < error(w_OK[:, kept_P], x_NK[:, kept_P], x_NK @ w_OK.T)


def test_refit_without_damping_is_the_least_squares_solution() -> None:
    x_NK, w_OK, kept_P = correlated(100, 8), seeded(3, 8), torch.tensor([1, 2, 3, 6])
    solution_PO = torch.linalg.lstsq(x_NK[:, kept_P], x_NK @ w_OK.T).solution
    # the normal equations square the condition number, here 1e4
    torch.testing.assert_close(refit(w_OK, gram_of(x_NK), kept_P, damp=0), solution_PO.T, rtol=1e-8, atol=1e-8)


def test_refit_is_the_update_of_optimal_brain_surgeon() -> None:
    x_NK, w_OK, cut = correlated(100, 6), seeded(3, 6), 2
    kept_P = torch.tensor([0, 1, 3, 4, 5])
    ridge = 0.1 * gram_of(x_NK).diagonal()[kept_P].mean() * torch.eye(6)
    inverse_KK = torch.linalg.inv(gram_of(x_NK) + ridge)
    surgeon_OK = w_OK - w_OK[:, cut, None] * inverse_KK[cut] / inverse_KK[cut, cut]
    torch.testing.assert_close(refit(w_OK, gram_of(x_NK), kept_P, damp=0.1), surgeon_OK[:, kept_P])


def test_refit_keeps_the_type_of_the_weight() -> None:
    w_OK = seeded(3, 6).bfloat16()
    assert refit(w_OK, gram_of(correlated(50, 6)).float(), torch.tensor([0, 1, 2])).dtype == torch.bfloat16


def test_each_group_of_a_grouped_layer_is_refitted_by_itself() -> None:
    w_GOK, kept_P = seeded(2, 3, 5), torch.tensor([0, 3, 4])
    gram_GKK = torch.stack([gram_of(correlated(60, 5, seed)) for seed in range(2)])
    alone = torch.stack([refit(w_GOK[g], gram_GKK[g], kept_P) for g in range(2)])
    torch.testing.assert_close(refit(w_GOK, gram_GKK, kept_P), alone)


def test_a_singular_gram_is_refused_without_damping_and_solved_with_it() -> None:
    gram_KK, w_OK, kept_P = torch.zeros(3, 3), torch.ones(1, 3), torch.tensor([0, 1])
    with pytest.raises(torch.linalg.LinAlgError):
        refit(w_OK, gram_KK, kept_P, damp=0)
    # inputs that are always zero say nothing: the weights stay as they are
    assert torch.equal(refit(w_OK, gram_KK, kept_P), torch.ones(1, 2))


def test_the_inverse_is_that_of_the_damped_gram() -> None:
    gram_KK = gram_of(correlated(10, 20))
    torch.testing.assert_close(inverse(gram_KK, 0.01) @ damped(gram_KK, 0.01), torch.eye(20, dtype=torch.float64))


# inputs that earlier cuts changed


def test_refit_on_inputs_that_did_not_drift_is_the_plain_refit() -> None:
    x_NK, w_OK, kept_P = correlated(100, 8), seeded(3, 8), torch.tensor([1, 2, 3, 6])
    moments = empty_moments(4, 3)
    accumulate(moments, x_NK[:, kept_P], x_NK @ w_OK.T)
    cross_OJ, gram_JJ = per_row(moments, centred=False)
    torch.testing.assert_close(refit_drifted(w_OK[:, kept_P], cross_OJ, gram_JJ), refit(w_OK, gram_of(x_NK), kept_P))


def test_refit_on_drifted_inputs_knows_of_the_drift() -> None:
    x_NK, w_OK, kept_P = correlated(300, 8), seeded(3, 8), torch.tensor([1, 2, 3, 6])
    drifted_NP = 0.6 * x_NK[:, kept_P] + 0.2 * seeded(300, 4, seed=7)
    moments = empty_moments(4, 8)
    accumulate(moments, drifted_NP, x_NK)
    cross_KJ, gram_JJ = per_row(moments, centred=False)
    informed = error(refit_drifted(w_OK[:, kept_P], w_OK @ cross_KJ, gram_JJ), drifted_NP, x_NK @ w_OK.T)
    unaware = error(refit(w_OK, gram_of(x_NK), kept_P), drifted_NP, x_NK @ w_OK.T)
    assert informed < 0.5 * unaware
    best_JO = torch.linalg.lstsq(drifted_NP, x_NK @ w_OK.T).solution
    undamped_OJ = refit_drifted(w_OK[:, kept_P], w_OK @ cross_KJ, gram_JJ, damp=0)
    torch.testing.assert_close(undamped_OJ, best_JO.T, rtol=1e-8, atol=1e-8)


# biases


def test_weights_and_bias_are_refitted_together() -> None:
    x_NK, w_OK, bias_O, kept_P = correlated(100, 8), seeded(3, 8), seeded(3, seed=4), torch.tensor([1, 2, 3, 6])
    moments = empty_moments(8)
    accumulate(moments, x_NK)
    mean_K = moments.sum_J / moments.count
    w_OP = refit(w_OK, per_row(moments)[1], kept_P, damp=0)
    bias = matching_bias(w_OK @ mean_K + bias_O, w_OP, mean_K[kept_P])
    with_ones = torch.cat([x_NK[:, kept_P], torch.ones(100, 1)], 1)
    solution = torch.linalg.lstsq(with_ones, x_NK @ w_OK.T + bias_O).solution
    torch.testing.assert_close(w_OP, solution[:-1].T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bias, solution[-1], rtol=1e-8, atol=1e-8)


def test_a_channel_that_is_always_the_same_is_carried_by_the_bias_alone() -> None:
    x_NK, w_OK = seeded(100, 3), torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    x_NK[:, 2] = 3.0
    moments, kept_P = empty_moments(3), torch.tensor([0, 1])
    accumulate(moments, x_NK)
    mean_K = moments.sum_J / 100
    w_OP = refit(w_OK, per_row(moments)[1], kept_P)
    torch.testing.assert_close(w_OP, w_OK[:, :2])
    assert matching_bias(w_OK @ mean_K, w_OP, mean_K[:2]).item() == pytest.approx(15.0)


# moments


def test_moments_do_not_depend_on_how_rows_were_split() -> None:
    x_NJ, target_NT = correlated(5000, 4), seeded(5000, 2)
    whole, pieces = empty_moments(4, 2), empty_moments(4, 2)
    accumulate(whole, x_NJ, target_NT)
    for start, end in pairwise([0, 1, 2048, 2050, 5000]):
        accumulate(pieces, x_NJ[start:end], target_NT[start:end])
    assert whole.count == pieces.count == 5000
    for a, b in zip(per_row(whole), per_row(pieces), strict=True):
        torch.testing.assert_close(a, b)
    cross_TJ, gram_JJ = per_row(whole)
    joint = torch.cov(torch.cat([target_NT, x_NJ], 1).T, correction=0)
    torch.testing.assert_close(gram_JJ, joint[2:, 2:])
    torch.testing.assert_close(cross_TJ, joint[:2, 2:])


def test_moments_of_half_precision_rows_are_summed_in_double() -> None:
    x_NJ = torch.full((4096, 1), 0.1).bfloat16()
    moments = empty_moments(1)
    accumulate(moments, x_NJ)
    # a bfloat16 sum would stop growing near 32
    assert moments.sum_J.item() == pytest.approx(4096 * x_NJ[0].item(), rel=1e-12)


def test_float32_moments_of_centred_rows_agree_to_six_digits() -> None:
    x_NJ = seeded(3000, 5)
    single, double = empty_moments(5, dtype=torch.float32), empty_moments(5)
    accumulate(single, x_NJ)
    accumulate(double, x_NJ)
    torch.testing.assert_close(per_row(single)[1].double(), per_row(double)[1], rtol=1e-6, atol=1e-6)


def test_rows_and_moments_must_agree_on_targets() -> None:
    with pytest.raises(ValueError, match="targets"):
        accumulate(empty_moments(3), torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="targets"):
        accumulate(empty_moments(3, 1), torch.ones(2, 3))
    with pytest.raises(ValueError, match="No row"):
        per_row(empty_moments(3))


# convolutions


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_unfolded_columns_times_the_flat_weight_are_the_convolution(name: str) -> None:
    window = CONVOLUTIONS[name]
    dims = len(window.kernel)
    x_BCS, weight = seeded(2, 3, *(9, 8, 7)[:dims]), seeded(4, 3, *window.kernel, seed=1)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    expected = convolve(x_BCS, weight, None, window.stride, window.padding, window.dilation)
    x_NK = unfold_columns(x_BCS, window, count=10**6, generator=torch.Generator())
    torch.testing.assert_close(x_NK @ weight.flatten(1).T, expected.movedim(1, -1).flatten(0, -2))


def test_unfolding_chooses_distinct_positions_the_same_for_the_same_seed() -> None:
    x_BCS, window = torch.arange(2 * 36.0).reshape(2, 1, 6, 6), Window((3, 3), (1, 1), (0, 0), (1, 1))
    every = unfold_columns(x_BCS, window, count=99, generator=torch.Generator())
    some, other = (
        unfold_columns(values, window, count=20, generator=torch.Generator().manual_seed(3)) for values in (x_BCS, -x_BCS)
    )
    assert (len(every), len(some)) == (32, 20)
    corners = some[:, 0].tolist()
    assert len(set(corners)) == 20
    assert set(corners) <= set(every[:, 0].tolist())
    assert torch.equal(some, -other)


def test_sampled_rows_are_distinct_and_all_of_them_when_few() -> None:
    x_NK = torch.arange(10.0)[:, None]
    assert len(set(sample_rows(x_NK, 6, torch.Generator().manual_seed(0)).flatten().tolist())) == 6
    assert torch.equal(sample_rows(x_NK, 10, torch.Generator()), x_NK)


def test_a_window_larger_than_its_input_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        unfold_columns(torch.ones(1, 1, 4), Window((3,), (1,), (0,), (2,)), count=1, generator=torch.Generator())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_without_a_duplicated_channel_gives_the_same_maps(groups: int) -> None:
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    x_BCS, weight = seeded(2, 8, 6, 6), seeded(4, 8 // groups, 3, 3, seed=1)
    width = 8 // groups  # channels of a group; the second of each repeats the first
    x_BCS[:, 1::width] = x_BCS[:, ::width]
    x_NK = unfold_columns(x_BCS, window, count=10**6, generator=torch.Generator())
    moments = empty_moments(width * 9, lead=(groups,))
    accumulate(moments, x_NK.reshape(len(x_NK), groups, -1).movedim(1, 0))
    kept = [c for c in range(width) if c != 1]
    kept_P = channel_columns(torch.arange(width)[:, None], 9)[kept].flatten()
    w_GOP = refit(weight.reshape(groups, -1, width * 9), per_row(moments, centred=False)[1], kept_P, damp=0)
    remaining = x_BCS.reshape(2, groups, width, 6, 6)[:, :, kept].flatten(1, 2)
    repaired = F.conv2d(remaining, w_GOP.reshape(4, width - 1, 3, 3), padding=1, groups=groups)
    # 72 columns, 72 positions: condition number about 1e5
    torch.testing.assert_close(repaired, F.conv2d(x_BCS, weight, padding=1, groups=groups), rtol=0, atol=1e-8)


def test_columns_of_a_channel_follow_its_positions() -> None:
    flattened = Slice("fc.weight", 1, "in", start=2, repeat=2).positions(3)
    assert channel_columns(flattened).tolist() == [[2, 3], [4, 5], [6, 7]]
    assert channel_columns(torch.tensor([[0], [1]]), kernel=3).tolist() == [[0, 1, 2], [3, 4, 5]]


# penalties


def test_group_sparsity_is_the_sum_of_weighted_norms() -> None:
    w_CK = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]], requires_grad=True)
    penalty = group_sparsity(w_CK, torch.tensor([1.0, 1.0, 10.0]))
    penalty.backward()
    assert penalty.item() == 25.0
    torch.testing.assert_close(w_CK.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 10.0]]))


def test_squared_group_sparsity_pulls_each_channel_by_its_strength() -> None:
    w_CK, strength_C = seeded(3, 2).requires_grad_(), torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    group_sparsity(w_CK, strength_C, squared=True).backward()
    torch.testing.assert_close(w_CK.grad, strength_C[:, None] * w_CK.detach())


def test_gradient_descent_on_group_sparsity_empties_the_channel_that_the_loss_needs_least() -> None:
    target_CK = torch.tensor([[1.0, 1.0], [0.1, 0.1]])
    w_CK = target_CK.clone().requires_grad_()
    for _ in range(500):
        (0.5 * (w_CK - target_CK).square().sum() + group_sparsity(w_CK, torch.full((2,), 0.3))).backward()
        with torch.no_grad():
            w_CK -= 0.01 * w_CK.grad
        w_CK.grad = None
    norm_C = w_CK.detach().norm(dim=1)
    # soft thresholding: the norm falls by the strength; 0.99^500 = 0.007 of the way is left
    assert norm_C[0].item() == pytest.approx(2**0.5 - 0.3, abs=0.007 * 0.3)
    # or to zero, about which it hops by at most one step, 0.01 (0.3 from the penalty + 0.15 from the loss)
    assert norm_C[1].item() < 0.0045


# goals: what follows a layer counts


def drifted_case(seed: int = 0, num_rows: int = 300, groups: int = 2) -> tuple[Affine, Tensor, Goal]:
    """Inputs that lost a cause, outputs that a scale, a stream and a ReLU follow."""
    x_GNJ = torch.stack([correlated(num_rows, 6, seed + group) for group in range(groups)]) / 3
    layer = Affine(seeded(groups, 4, 5, seed=seed + 1), seeded(groups, 4, seed=seed + 2), True)
    stream_GNT, slope_GT = seeded(groups, num_rows, 4, seed=seed + 3), 1 + seeded(groups, 4, seed=seed + 4).abs()
    intact = Affine(torch.cat([layer.w_GTJ, seeded(groups, 4, 1, seed=seed + 5)], 2), layer.bias_GT, True)
    target_GNT = intact(x_GNJ) * slope_GT[:, None] + stream_GNT
    drift_GNT = 0.1 * seeded(groups, num_rows, 4, seed=seed + 6)
    return layer, x_GNJ[..., :5], Goal(target_GNT, stream_GNT + drift_GNT, slope_GT, low=0.0)


def test_without_what_follows_the_refit_is_that_of_moments() -> None:
    x_NK, w_OK, kept_P = correlated(300, 8), seeded(3, 8), torch.tensor([1, 2, 3, 6])
    moments = empty_moments(4, 3)
    accumulate(moments, x_NK[:, kept_P], x_NK @ w_OK.T)
    layer = Affine(w_OK[None, :, kept_P], seeded(1, 3), True)
    goal = Goal((x_NK @ w_OK.T)[None], torch.zeros(1, 300, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    refitted = refit_rows(layer, x_NK[None, :, kept_P], goal, damp=0.01)
    torch.testing.assert_close(refitted.w_GTJ[0], refit_drifted(w_OK[:, kept_P], *per_row(moments), damp=0.01))
    mean_O, mean_J = moments.sum_T / 300, moments.sum_J / 300
    torch.testing.assert_close(refitted.bias_GT[0], matching_bias(mean_O, refitted.w_GTJ[0], mean_J))


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)])
def test_the_nearest_outputs_meet_the_goal_and_stay_where_they_met_it(low: float, high: float) -> None:
    layer, x_GNJ, goal = drifted_case()
    goal = replace(goal, low=low, high=high)
    y_GNT = layer(x_GNJ)
    nearest_GNT = goal.nearest(y_GNT)
    assert goal.error(y_GNT) > 0.01
    assert goal.error(nearest_GNT) < 1e-28
    torch.testing.assert_close(goal.nearest(nearest_GNT), nearest_GNT)
    # no outputs that meet the goal are closer than the nearest ones: the target's own among them
    exact_GNT = (goal.target_GNT - goal.offset_GNT) / goal.slope_GT[:, None]
    assert ((nearest_GNT - y_GNT).abs() <= (exact_GNT - y_GNT).abs() + 1e-12).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_relu_behind_the_layer_leaves_the_refit_more_freedom(seed: int) -> None:
    layer, x_GNJ, goal = drifted_case(seed)
    plain = refit_rows(layer, x_GNJ, replace(goal, low=-math.inf), damp=1e-6)
    clamped = refit_rows(layer, x_GNJ, goal, damp=1e-6)

    def distance(y_GNT: Tensor) -> float:
        return float((goal.nearest(y_GNT) - y_GNT).square().sum())

    assert distance(clamped(x_GNJ)) < distance(plain(x_GNJ)) < distance(layer(x_GNJ))


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_refit_never_has_more_error_on_the_held_out_rows(seed: int) -> None:
    layer, x_GNJ, goal = drifted_case(seed, num_rows=24)
    is_held_N = torch.arange(24) % 4 == 3
    chosen, held = refit_chosen(layer, x_GNJ, goal, is_held_N=is_held_N), goal.rows(is_held_N)
    assert held.error(chosen(x_GNJ[:, is_held_N])) <= held.error(layer(x_GNJ[:, is_held_N]))


def test_a_refit_that_held_out_rows_contradict_is_not_made() -> None:
    layer, x_GNJ, goal = drifted_case(num_rows=40)
    is_held_N = torch.arange(40) >= 30
    # what the layer gives is right on the held-out rows alone
    now_GNT = layer(x_GNJ) * goal.slope_GT[:, None] + goal.offset_GNT
    goal = replace(goal, target_GNT=torch.where(is_held_N[:, None], now_GNT, -now_GNT))
    assert refit_chosen(layer, x_GNJ, goal, is_held_N=is_held_N) is layer


def test_without_a_bias_to_move_there_is_none() -> None:
    layer, x_GNJ, goal = drifted_case()
    layer = Affine(layer.w_GTJ, torch.zeros_like(layer.bias_GT), False)
    refitted = refit_rows(layer, x_GNJ, replace(goal, low=-math.inf), damp=0)
    assert not refitted.bias_GT.any()
    wanted_GNT = (goal.target_GNT - goal.offset_GNT) / goal.slope_GT[:, None]
    solution_GJT = torch.linalg.lstsq(x_GNJ, wanted_GNT).solution
    torch.testing.assert_close(refitted.w_GTJ.mT, solution_GJT, rtol=1e-8, atol=1e-8)


def test_a_transposed_convolution_is_a_convolution_of_the_stuffed_input() -> None:
    x_BCS, weight = seeded(2, 3, 5, 6), seeded(3, 4, 3, 2, seed=1)
    expected = F.conv_transpose2d(x_BCS, weight, None, (2, 3), (1, 0), (1, 2), dilation=(1, 2))
    spread = stuffed(x_BCS, (2, 3), (1, 2))
    result = F.conv2d(spread, weight.flip(2, 3).transpose(0, 1), padding=(1, 2), dilation=(1, 2))
    torch.testing.assert_close(result, expected)
