"""Patterns and masks: exact counts, known choices, what is refused; shares of zeros by layer and by time."""

import pytest
import torch

from lighten.ops import densities, relaxed
from lighten.ops.masks import Pattern, block_sums, holds, mask, masks_together, num_kept, pattern_of, regrown, spread
from lighten.ops.sparse_scores import movement, synaptic_flow, taylor, wanda

PATTERNS = ("unstructured", "2:4", "1:4", "4:8", "4x1", "1x4", "8x8", "16x1")


def scores(rows: int = 16, columns: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("unstructured", Pattern()), ("2:4", Pattern(kept=2, among=4)), ("4x1", Pattern(4, 1)), ("8x16", Pattern(8, 16))],
)
def test_a_pattern_is_read_from_its_text(text, pattern):
    assert pattern_of(text) == pattern


@pytest.mark.parametrize("text", ["", "4:4", "5:4", "0:4", "2:", "4x", "0x4", "2:4:8", "x", "dense", "-1:4", "2 : 4"])
def test_a_text_that_is_no_pattern_is_refused_with_it(text):
    with pytest.raises(ValueError, match="Got"):
        pattern_of(text)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_a_mask_holds_its_pattern_and_has_the_share_of_zeros_to_the_block(text, ratio):
    pattern = pattern_of(text)
    if pattern.ratio is not None:
        ratio = pattern.ratio
    mask_OK = mask(scores(32, 64), pattern, ratio)
    assert holds(mask_OK, pattern)
    # as many zeros as asked for, and less than a block more
    assert 0 <= (1 - ratio) * mask_OK.numel() - int(mask_OK.sum()) + 1e-6 < pattern.size + 1e-6


def test_the_largest_scores_stay_and_2_of_4_are_those_of_each_group():
    score_OK = torch.tensor([[0.1, 0.9, 0.3, 0.2, 5.0, 6.0, 7.0, 8.0]])
    assert mask(score_OK, Pattern(), 0.5).tolist() == [[False] * 4 + [True] * 4]
    assert mask(score_OK, pattern_of("2:4"), 0.5).tolist() == [[False, True, True, False, False, False, True, True]]


def test_of_equal_scores_the_first_stay_so_that_a_mask_is_the_same_everywhere():
    assert mask(torch.ones(1, 6), Pattern(), 0.5).tolist() == [[True] * 3 + [False] * 3]


def test_a_smaller_share_of_n_of_m_removes_the_smallest_of_those_that_go():
    score_OK = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]])
    assert mask(score_OK, pattern_of("2:4"), 0.25).tolist() == [[False, False, True, True, True, True, True, True]]


def test_a_block_has_the_sum_of_its_scores():
    score_OK = torch.zeros(4, 4)
    score_OK[0, 0], score_OK[2:, 2:] = 3.0, 1.0
    assert block_sums(score_OK, pattern_of("2x2")).tolist() == [[3, 0], [0, 4]]
    assert mask(score_OK, pattern_of("2x2"), 0.75).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_by_row_every_row_keeps_the_same_number():
    assert mask(scores(), Pattern(), 0.75, by_row=True).sum(1).tolist() == [8] * 16


def test_layers_are_compared_with_each_other_and_none_becomes_all_zero():
    large, small = scores(), 1e-6 * scores(seed=1)
    first, second = masks_together([large, small], Pattern(), 0.5)
    assert int(second.sum()) == 1
    assert bool(second.flatten()[small.argmax()])
    assert int(first.sum()) == large.numel() - 1


def test_what_is_no_such_pattern_is_seen():
    mask_OK = mask(scores(), pattern_of("4x1"), 0.5)
    assert not holds(mask_OK, pattern_of("1x4"))
    assert not holds(torch.ones(4, 8, dtype=torch.bool), pattern_of("2:4"))


@pytest.mark.parametrize(
    ("text", "size", "why"), [("2:4", (8, 6), "6 inputs"), ("4x1", (10, 8), "10 outputs"), ("1x8", (8, 12), "12 inputs")]
)
def test_a_size_that_does_not_divide_is_said(text, size, why):
    assert why in (pattern_of(text).misfit(*size) or "")
    assert pattern_of(text).misfit(16, 16) is None


def test_the_count_has_no_rounding_error_of_the_ratio():
    assert [num_kept(1000, ratio) for ratio in (0.9, 0.8, 0.7, 0.99)] == [100, 200, 300, 10]
    assert num_kept(3, 0.99) == 1


def test_growth_by_gradient_takes_the_largest_and_drops_the_smallest():
    mask_OK = torch.tensor([[True, True, True, True, False, False, False, False]])
    weight_OK = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    gradient_OK = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 9.0, 2.0, 3.0]])
    grown_OK = regrown(mask_OK, weight_OK, gradient_OK, pattern=Pattern(), share=0.25)
    assert grown_OK.tolist() == [[True, True, True, False, False, True, False, False]]
    # one that was dropped comes back where its own gradient is the largest: nothing is forced out
    gradient_OK[0, 3] = 10.0
    assert torch.equal(regrown(mask_OK, weight_OK, gradient_OK, pattern=Pattern(), share=0.25), mask_OK)


@pytest.mark.parametrize("text", ["unstructured", "4x1", "2x2"])
def test_moving_masks_keep_count_and_pattern(text):
    pattern = pattern_of(text)
    mask_OK = mask(scores(), pattern, 0.9)
    grown_OK = regrown(mask_OK, scores(seed=1), scores(seed=2), pattern=pattern, share=0.5)
    assert int(grown_OK.sum()) == int(mask_OK.sum())
    assert holds(grown_OK, pattern)
    assert not torch.equal(grown_OK, mask_OK)


def test_the_cubic_schedule_has_its_ends_and_its_middle():
    # s_t = s_f + (s_i - s_f)(1 - t)^3: half way an eighth of the way is left
    assert densities.cubic(0.0, start=0.1, end=0.9) == pytest.approx(0.1)
    assert densities.cubic(0.5, start=0.0, end=0.8) == pytest.approx(0.8 * 7 / 8)
    assert densities.cubic(2.0, start=0.1, end=0.9) == pytest.approx(0.9)


def test_the_share_that_moves_falls_as_a_cosine_to_nothing():
    assert [densities.cosine(at, share=0.3) for at in (0, 0.5, 1, 1.2)] == pytest.approx([0.3, 0.15, 0, 0])


def test_erk_keeps_small_layers_and_meets_the_ratio():
    shapes = [(16, 1, 3, 3), (64, 64, 3, 3), (10, 64)]
    ratios = densities.erk(shapes, 0.9)
    sizes = [144, 36_864, 640]
    assert sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True)) == pytest.approx(0.9 * sum(sizes))
    assert ratios[0] == 0
    # densities in proportion to (64 + 64 + 3 + 3) / 36,864 and (10 + 64) / 640 where none is capped
    free = densities.erk(shapes[1:], 0.99)
    assert (1 - free[0]) / (1 - free[1]) == pytest.approx((134 / 36_864) / (74 / 640))


def test_owl_keeps_more_where_outliers_are_and_stays_near_the_mean():
    ratios = densities.outliers([0.0, 0.02, 0.04], [100, 100, 100], 0.7)
    assert ratios == pytest.approx([0.78, 0.7, 0.62])
    assert densities.outliers([0.1, 0.1], [10, 30], 0.5) == pytest.approx([0.5, 0.5])


def test_scores_are_what_their_formulas_say():
    w_OK, g_OK = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 0.5]])
    assert wanda(w_OK, torch.tensor([4.0, 9.0])).tolist() == [[2, 6]]
    assert taylor(w_OK, g_OK).tolist() == [[3, 1]]
    # the step -lr g moves the first weight away from zero and the second too
    assert movement(w_OK, g_OK).tolist() == [[3, 1]]
    assert synaptic_flow(w_OK, g_OK.abs()).tolist() == [[3, 1]]


def test_a_grouped_convolution_has_input_norms_of_its_own_in_wanda():
    w_OK = torch.ones(4, 2)
    assert wanda(w_OK, torch.tensor([[1.0, 4.0], [9.0, 16.0]])).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_proximal_steps_set_to_zero_what_is_small():
    assert relaxed.soft_threshold(torch.tensor([-2.0, 0.5, 1.5]), 1.0).tolist() == [-1, 0, 0.5]
    shrunk_GN = relaxed.shrink_groups(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    torch.testing.assert_close(shrunk_GN, torch.tensor([[2.4, 3.2], [0.0, 0.0]]))


def test_hard_concrete_gates_are_shut_as_often_as_their_probability_says():
    log_alpha = torch.tensor([-1.0, 0.0, 2.0]).repeat(100_000, 1)
    gates = relaxed.hard_concrete(log_alpha, torch.rand(log_alpha.shape, generator=torch.Generator().manual_seed(0)))
    # 100,000 draws: a deviation of 0.0016 at most, four of them
    torch.testing.assert_close((gates > 0).float().mean(0), relaxed.open_probability(log_alpha[0]), atol=0.0064, rtol=0)
    assert relaxed.hard_concrete(torch.tensor([-10.0, 10.0]), None).tolist() == [0, 1]


def test_the_variational_penalty_falls_to_nothing_where_noise_drowns_the_weight():
    penalty = relaxed.variational_penalty(torch.tensor([-8.0, 0.0, 8.0]))
    assert bool((penalty.diff() < 0).all())
    assert float(penalty[2]) == pytest.approx(0, abs=1e-3)


def test_a_block_mask_is_spread_over_its_weights():
    assert spread(torch.tensor([[True, False]]), pattern_of("2x2")).tolist() == [[True, True, False, False]] * 2
