"""Optimal brain surgeon: known answers, the best of all choices on small layers, and what it must beat."""

from itertools import combinations

import pytest
import torch

from lighten.ops.gradual import removals_in_rounds
from lighten.ops.masks import Pattern, holds, mask, pattern_of
from lighten.ops.obs import refit_masked, removals
from lighten.ops.reconstruct import damped
from lighten.ops.rounding import output_loss
from lighten.ops.sparse_gpt import sparse_gpt

DAMP = 1e-4


def layer(rows: int = 8, columns: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and the Gram matrix of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    x_NK = torch.randn(400, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator).double(), (x_NK.T @ x_NK / 400).double()


def least_squares(w_K: torch.Tensor, hessian_KK: torch.Tensor, kept: list[int]) -> float:
    """The least error with the weights of `kept` alone: what is left after projection."""
    cross = hessian_KK @ w_K
    solved = torch.linalg.solve(hessian_KK[kept][:, kept], cross[kept])
    return float(w_K @ cross - solved @ cross[kept])


def test_with_uncorrelated_inputs_the_order_is_that_of_the_magnitudes_and_nothing_is_updated():
    w_OK = layer()[0]
    found = removals(w_OK, torch.eye(16), Pattern(), damp=0.01)
    torch.testing.assert_close(found.rank_OK, 1.01 * w_OK.square())
    mask_OK = mask(found.rank_OK, Pattern(), 0.5)
    torch.testing.assert_close(refit_masked(w_OK, w_OK, torch.eye(16), mask_OK=mask_OK), w_OK * mask_OK)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_losses_of_what_goes_add_up_to_the_error_of_the_best_weights_that_stay(ratio):
    w_OK, gram_KK = layer()
    hessian_KK = damped(gram_KK, DAMP)
    loss_OK, rank_OK = removals(w_OK, gram_KK, Pattern(), damp=DAMP)
    mask_OK = mask(rank_OK, Pattern(), ratio)
    for w_K, mask_K, loss_K in zip(w_OK, mask_OK, loss_OK, strict=True):
        kept = mask_K.nonzero()[:, 0].tolist()
        assert float(loss_K[~mask_K].sum()) == pytest.approx(least_squares(w_K, hessian_KK, kept), rel=1e-6)


def test_one_weight_at_a_time_lies_between_the_best_of_all_choices_and_magnitude():
    w_OK, gram_KK = layer(rows=6, columns=8)
    hessian_KK = damped(gram_KK, DAMP)
    loss_OK, rank_OK = removals(w_OK, gram_KK, Pattern(), damp=DAMP)
    mask_OK = mask(rank_OK, Pattern(), 0.5, by_row=True)
    greedy = float((loss_OK * ~mask_OK).sum())
    best = sum(min(least_squares(w_K, hessian_KK, list(kept)) for kept in combinations(range(8), 4)) for w_K in w_OK)
    by_size = mask(w_OK.abs(), Pattern(), 0.5, by_row=True)
    updated = sum(
        least_squares(w_K, hessian_KK, mask_K.nonzero()[:, 0].tolist()) for w_K, mask_K in zip(w_OK, by_size, strict=True)
    )
    # 70 choices a row; greedy has no bound, but lies between the best and magnitude with its best weights
    assert best <= greedy * (1 + 1e-9)
    assert greedy < updated


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "4x1", "1x4", "2x2"])
def test_the_surgeon_beats_magnitude_with_the_same_update_in_every_pattern(text):
    w_OK, gram_KK = layer(rows=16, columns=32)
    pattern = pattern_of(text)
    ratio = pattern.ratio or 0.5
    masks = mask(removals(w_OK, gram_KK, pattern, damp=DAMP).rank_OK, pattern, ratio), mask(w_OK.abs(), pattern, ratio)
    refitted = [refit_masked(w_OK, w_OK @ gram_KK, gram_KK, mask_OK=mask_OK, damp=DAMP) for mask_OK in masks]
    surgeon, magnitude = (float(output_loss(w_OK, one, gram_KK).sum()) for one in refitted)
    plain = float(output_loss(w_OK, w_OK * masks[1], gram_KK).sum())
    assert holds(masks[0], pattern)
    assert surgeon < 0.85 * magnitude < plain


def test_the_refit_is_the_least_squares_solution_on_each_row_s_own_support():
    w_OK, gram_KK = layer()
    mask_OK = mask(torch.rand(8, 16, generator=torch.Generator().manual_seed(3)), Pattern(), 0.5)
    refitted_OK = refit_masked(w_OK, w_OK @ gram_KK, gram_KK, mask_OK=mask_OK, damp=DAMP)
    hessian_KK = damped(gram_KK, DAMP)
    assert not refitted_OK[~mask_OK].any()
    for w_K, mask_K, found_K in zip(w_OK, mask_OK, refitted_OK, strict=True):
        kept = mask_K.nonzero()[:, 0]
        solved = torch.linalg.solve(hessian_KK[kept][:, kept], (hessian_KK @ w_K)[kept])
        # the residual is a 1e-5 of the goal; the condition of this system is about 1e4 at most
        torch.testing.assert_close(found_K[kept], solved, rtol=1e-3, atol=1e-3)


def test_groups_of_a_convolution_are_layers_of_their_own():
    parts = [layer(seed=seed) for seed in (1, 2)]
    w_OK, gram_LKK = torch.cat([w for w, _ in parts]), torch.stack([gram for _, gram in parts])
    together = removals(w_OK, gram_LKK, Pattern(), damp=DAMP)
    apart = [removals(w, gram, Pattern(), damp=DAMP) for w, gram in parts]
    torch.testing.assert_close(together.rank_OK, torch.cat([one.rank_OK for one in apart]))
    mask_OK = mask(together.rank_OK, Pattern(), 0.5)
    cross_OK = torch.cat([w @ gram for w, gram in parts])
    refitted = refit_masked(w_OK, cross_OK, gram_LKK, mask_OK=mask_OK, damp=DAMP)
    first = refit_masked(parts[0][0], cross_OK[:8], gram_LKK[0], mask_OK=mask_OK[:8], damp=DAMP)
    # each run ends when all its rows are settled
    torch.testing.assert_close(refitted[:8], first, rtol=1e-3, atol=1e-3)


def test_of_two_equal_inputs_one_goes_for_nothing_and_the_other_takes_over():
    gram_KK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    w_OK = torch.tensor([[1.0, 2.0, 0.5]]).double()
    found = removals(w_OK, gram_KK, Pattern(), damp=1e-9)
    mask_OK = mask(found.rank_OK, Pattern(), 1 / 3)
    refitted_OK = refit_masked(w_OK, w_OK @ gram_KK, gram_KK, mask_OK=mask_OK, damp=1e-9)
    assert mask_OK.tolist() == [[False, True, True]]
    torch.testing.assert_close(refitted_OK, torch.tensor([[0.0, 3.0, 0.5]]).double(), atol=1e-6, rtol=0)


def test_weights_that_are_zero_already_go_first():
    w_OK, gram_KK = layer()
    w_OK[:, ::2] = 0
    mask_OK = mask(removals(w_OK, gram_KK, Pattern(), damp=DAMP).rank_OK, Pattern(), 0.5)
    assert torch.equal(mask_OK, w_OK != 0)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x1", "1x4"])
def test_rounds_with_a_fit_behind_each_come_near_to_one_weight_at_a_time(text):
    w_OK, gram_KK = layer(rows=16, columns=64)
    pattern = pattern_of(text)
    ratio = pattern.ratio or 0.5
    rounds = removals_in_rounds(w_OK, gram_KK, pattern, damp=DAMP)
    masks = (
        mask(removals(w_OK, gram_KK, pattern, damp=DAMP).rank_OK, pattern, ratio),
        mask(rounds.rank_OK, pattern, ratio),
        sparse_gpt(w_OK, gram_KK, pattern, ratio=ratio, damp=DAMP),
        mask(w_OK.abs(), pattern, ratio),
    )
    refitted = [refit_masked(w_OK, w_OK @ gram_KK, gram_KK, mask_OK=mask_OK, damp=DAMP) for mask_OK in masks]
    exact, near, ordered, magnitude = (float(output_loss(w_OK, one, gram_KK).sum()) for one in refitted)
    assert all(holds(mask_OK, pattern) and int(mask_OK.sum()) == w_OK.numel() // 2 for mask_OK in masks)
    # neither order is the best; measured 1.0 to 1.2, and SparseGPT 1.3 to 3.8
    assert near < 1.3 * exact
    assert near < 0.9 * min(ordered, magnitude)
    # the estimate is an error itself, of weights a few steps from the best
    assert float((rounds.loss_OK * ~masks[1]).sum()) == pytest.approx(near, rel=0.15)


def test_with_uncorrelated_inputs_the_ordered_mask_is_that_of_magnitudes_in_each_block_of_columns():
    w_OK = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.cat([mask(part.abs(), Pattern(), 0.5) for part in w_OK.split(128, 1)], 1)
    assert torch.equal(sparse_gpt(w_OK, torch.eye(256), Pattern(), ratio=0.5), expected)
