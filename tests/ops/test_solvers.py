"""GPTQ, annealed descent and AdaRound, all (weight, gram, grid) -> codes. Dimension key: O outputs, K columns, N rows."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from lighten.ops.adaround import adaround, adaround_relu
from lighten.ops.anneal import anneal
from lighten.ops.gptq import gptq, inverse_factor
from lighten.ops.grids import Grid, decode, encode, fit, nearest, ternary, with_scales
from lighten.ops.reconstruct import damped
from lighten.ops.rounding import output_loss

SOLVERS = {
    "gptq": gptq,
    "gptq, columns in order": partial(gptq, ordered=False),
    "anneal": anneal,
    "coordinate descent": partial(anneal, sweeps=0),
    "adaround": adaround,
}
NEVER_WORSE = ["anneal", "coordinate descent", "adaround"]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(num_columns: int, seed: int = 0) -> Tensor:
    """Inputs after a ReLU that share an eighth as many causes as there are columns."""
    causes = seeded(4 * num_columns, num_columns // 8, seed=seed) @ seeded(num_columns // 8, num_columns, seed=seed + 1)
    return torch.relu(causes / (num_columns // 8) ** 0.5 + 0.3 * seeded(4 * num_columns, num_columns, seed=seed + 2))


def gram_of(num_columns: int, seed: int = 0) -> Tensor:
    x_NK = rows_of(num_columns, seed).double()
    return x_NK.T @ x_NK / len(x_NK)


def loss(w_OK: Tensor, codes_OK: Tensor, gram_KK: Tensor, grid: Grid) -> Tensor:
    return output_loss(w_OK, decode(codes_OK, grid), gram_KK)


@pytest.fixture(params=SOLVERS.values(), ids=SOLVERS.keys())
def solve(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return request.param


def test_equals_rounding_when_inputs_are_uncorrelated(solve: Callable[..., Tensor]) -> None:
    w_OK = seeded(16, 32)
    grid = fit(w_OK, bits=3, group=8, symmetric=False)
    codes_OK = solve(w_OK, torch.eye(32), grid, damp=0.01)
    torch.testing.assert_close(decode(codes_OK, grid), nearest(w_OK, bits=3, group=8, symmetric=False))


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, None, True), (3, 16, True), (2, None, False), (2, 16, False)])
def test_halves_the_loss_of_rounding_where_inputs_are_correlated(
    solve: Callable[..., Tensor], bits: int, group: int | None, symmetric: bool
) -> None:
    w_OK, gram_KK = seeded(32, 64), gram_of(64)
    grid = fit(w_OK, bits=bits, group=group, symmetric=symmetric, ranges="mse")
    before = loss(w_OK, encode(w_OK, grid), gram_KK, grid).sum()
    codes_OK = solve(w_OK, gram_KK, grid)
    assert codes_OK.dtype == torch.int8
    assert grid.low <= codes_OK.min() <= codes_OK.max() <= grid.high
    assert loss(w_OK, codes_OK, gram_KK, grid).sum() < before / 2


@pytest.mark.parametrize("name", NEVER_WORSE)
@pytest.mark.parametrize("seed", range(5))
def test_no_row_ever_loses_more_than_by_rounding_to_nearest(name: str, seed: int) -> None:
    w_OK, gram_KK = seeded(16, 24, seed=seed), gram_of(24, seed=seed + 9)
    grid = fit(w_OK, bits=2 + seed % 3, symmetric=seed % 2 == 0)
    codes_OK = SOLVERS[name](w_OK, gram_KK, grid)
    assert (loss(w_OK, codes_OK, gram_KK, grid) <= loss(w_OK, encode(w_OK, grid), gram_KK, grid)).all()


def test_no_row_loses_even_when_learning_is_cut_short() -> None:
    w_OK, gram_KK = seeded(32, 24), gram_of(24)
    grid = fit(w_OK, bits=3)
    codes_OK = adaround(w_OK, gram_KK, grid, steps=3)
    assert (loss(w_OK, codes_OK, gram_KK, grid) <= loss(w_OK, encode(w_OK, grid), gram_KK, grid)).all()


def test_two_runs_give_the_same_codes(solve: Callable[..., Tensor]) -> None:
    w_OK, gram_KK = seeded(8, 32), gram_of(32)
    grid = fit(w_OK, bits=3)
    assert torch.equal(solve(w_OK, gram_KK, grid), solve(w_OK, gram_KK, grid))


def test_each_group_of_a_grouped_convolution_is_solved_by_itself(solve: Callable[..., Tensor]) -> None:
    gram_LKK, w_OK = torch.stack([gram_of(16, seed) for seed in range(3)]), seeded(6, 16)
    together_OK = solve(w_OK, gram_LKK, fit(w_OK, bits=3))
    for at in range(3):
        rows = slice(2 * at, 2 * at + 2)
        assert torch.equal(together_OK[rows], solve(w_OK[rows], gram_LKK[at], fit(w_OK[rows], bits=3)))


def test_works_on_any_uniform_grid(solve: Callable[..., Tensor]) -> None:
    w_OK, gram_KK = seeded(8, 32), gram_of(32)
    grids = [ternary(w_OK), fit(w_OK, bits=1), fit(w_OK, bits=4, per="tensor"), with_scales(fit(w_OK, bits=3), torch.float16)]
    for grid in grids:
        assert loss(w_OK, solve(w_OK, gram_KK, grid), gram_KK, grid).sum() < loss(w_OK, encode(w_OK, grid), gram_KK, grid).sum()


def test_inputs_that_are_always_zero_do_no_harm(solve: Callable[..., Tensor]) -> None:
    w_OK = seeded(4, 8)
    grid = fit(w_OK, bits=4)
    assert torch.equal(solve(w_OK, torch.zeros(8, 8), grid, damp=0.01), encode(w_OK, grid))


# GPTQ


def test_gptq_is_optimal_brain_surgeon_column_by_column() -> None:
    w_OK, gram_KK = seeded(4, 12), gram_of(16)[:12, :12]
    grid = fit(w_OK, bits=3, symmetric=False)
    hessian_KK, left_OK, codes = damped(gram_KK, 0.01), w_OK.double(), []
    for k in range(12):
        code_O = encode(left_OK[:, k : k + 1].float(), grid)[:, 0]
        inverse_JJ = torch.linalg.inv(hessian_KK[k:, k:])
        change_O = decode(code_O[:, None], grid)[:, 0].double() - left_OK[:, k]
        left_OK[:, k:] += change_O[:, None] * inverse_JJ[0] / inverse_JJ[0, 0]
        codes.append(code_O)
    assert torch.equal(gptq(w_OK, gram_KK, grid, ordered=False), torch.stack(codes, 1))


def test_gptq_takes_columns_of_large_inputs_first() -> None:
    w_OK, gram_KK, order_K = seeded(4, 12), gram_of(16)[:12, :12], torch.randperm(12)
    grid = fit(w_OK, bits=3)
    falling_K = (-gram_KK.diagonal()).argsort()
    sorted_OK = gptq(w_OK[:, falling_K], gram_KK[falling_K][:, falling_K], grid, ordered=False)
    assert torch.equal(gptq(w_OK, gram_KK, grid)[:, falling_K], sorted_OK)
    # so the order of the columns is all the same to it
    permuted_OK = gptq(w_OK[:, order_K], gram_KK[order_K][:, order_K], grid)
    assert torch.equal(permuted_OK, gptq(w_OK, gram_KK, grid)[:, order_K])


def test_gptq_in_several_blocks_equals_gptq_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w_OK, gram_KK = seeded(4, 48), gram_of(48)
    grid = fit(w_OK, bits=3, group=16)
    whole_OK = gptq(w_OK, gram_KK, grid)
    monkeypatch.setattr("lighten.ops.gptq.BLOCK", 7)
    assert torch.equal(gptq(w_OK, gram_KK, grid), whole_OK)


def test_the_factor_is_upper_triangular_and_squares_to_the_inverse() -> None:
    hessian_LKK = damped(gram_of(16), 0.01)[None]
    factor_LKK = inverse_factor(hessian_LKK)
    assert torch.equal(factor_LKK, factor_LKK.triu())
    # condition number below 1e4 here: twelve digits are left of sixteen
    torch.testing.assert_close(factor_LKK.mT @ factor_LKK @ hessian_LKK, torch.eye(16).double()[None], rtol=0, atol=1e-10)


def test_a_singular_gram_matrix_is_refused_without_damping() -> None:
    w_OK = seeded(2, 8)
    with pytest.raises(torch.linalg.LinAlgError):
        gptq(w_OK, torch.zeros(8, 8).index_fill_(0, torch.tensor([0]), 1.0), fit(w_OK, bits=4), damp=0)


# annealed descent


@pytest.mark.parametrize("sweeps", [0, 8])
def test_no_single_code_can_be_improved_afterwards(sweeps: int) -> None:
    w_OK, gram_KK = seeded(6, 16), gram_of(16)
    grid = fit(w_OK, bits=2, symmetric=False)
    codes_OK = anneal(w_OK, gram_KK, grid, damp=1e-6, sweeps=sweeps)
    best_O = loss(w_OK, codes_OK, gram_KK, grid)
    for k, code in product(range(16), range(grid.low, grid.high + 1)):
        changed_OK = codes_OK.clone()
        changed_OK[:, k] = code
        # decode is float32: losses carry its 1e-7
        assert (loss(w_OK, changed_OK, gram_KK, grid) >= best_O * (1 - 1e-5)).all()


def test_annealing_comes_near_the_best_of_all_codes() -> None:
    w_OK, gram_KK = seeded(200, 6), gram_of(16)[:6, :6]
    grid = fit(w_OK, bits=2, symmetric=False)
    every_CK = torch.tensor(list(product(range(grid.low, grid.high + 1), repeat=6)))
    change_OCK = (w_OK[:, None] - grid.scale * (every_CK - grid.zero)).double()
    best = ((change_OCK @ gram_KK) * change_OCK).sum(2).amin(1).sum()
    annealed, descended, passed = (
        loss(w_OK, codes_OK, gram_KK, grid).sum()
        for codes_OK in (
            anneal(w_OK, gram_KK, grid, damp=1e-6),
            anneal(w_OK, gram_KK, grid, damp=1e-6, sweeps=0),
            gptq(w_OK, gram_KK, grid, damp=1e-6),
        )
    )
    # decode is float32: a loss carries its 1e-7
    assert best * (1 - 1e-5) <= annealed <= descended <= passed
    # of what GPTQ leaves above the best, descent takes away more than half and annealing more than two thirds
    assert descended - best < (passed - best) / 2
    assert annealed - best < (passed - best) / 3


def test_annealing_in_several_blocks_equals_annealing_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w_OK, gram_KK = seeded(4, 48), gram_of(48)
    grid = fit(w_OK, bits=3, group=16)
    whole_OK = anneal(w_OK, gram_KK, grid)
    monkeypatch.setattr("lighten.ops.anneal.BLOCK", 7)
    assert torch.equal(anneal(w_OK, gram_KK, grid), whole_OK)


# AdaRound


def test_adaround_moves_every_weight_to_a_neighbour_on_the_grid() -> None:
    w_OK, gram_KK = seeded(8, 32), gram_of(32)
    grid = fit(w_OK, bits=3)
    change_OK = (decode(adaround(w_OK, gram_KK, grid), grid) - w_OK).abs()
    # one rounding of w / s in float32, about 1e-7 of 4 codes
    assert (change_OK <= grid.scale[:, 0] * (1 + 1e-5)).all()


def test_with_a_relu_behind_it_the_loss_after_the_relu_is_lower_still() -> None:
    w_OK, x_NK, bias_O = seeded(16, 32), rows_of(32), torch.linspace(-2, 0, 16)
    grid = fit(w_OK, bits=2, ranges="mse")

    def after_relu_O(codes_OK: Tensor) -> Tensor:
        outputs = (torch.relu(x_NK @ weight_OK.T + bias_O) for weight_OK in (w_OK, decode(codes_OK, grid)))
        return torch.sub(*outputs).square().mean(0)

    aware_O = after_relu_O(adaround_relu(w_OK, x_NK, grid, bias_O=bias_O))
    # both losses are sums of float32 rows in different orders
    assert (aware_O <= after_relu_O(encode(w_OK, grid)) * (1 + 1e-5)).all()
    blind_O = after_relu_O(adaround(w_OK, x_NK.T @ x_NK / len(x_NK), grid))
    assert aware_O.sum() < 0.9 * blind_O.sum()


def test_a_bias_that_keeps_the_relu_open_makes_it_the_linear_case() -> None:
    w_OK, x_NK = seeded(4, 32), rows_of(32)
    grid = fit(w_OK, bits=3)
    linear_OK = adaround(w_OK, x_NK.T @ x_NK / len(x_NK), grid)
    open_OK = adaround_relu(w_OK, x_NK, grid, bias_O=torch.full((4,), 100.0))
    # the same gradient up to float32 rounding, amplified over 500 steps: a few codes may differ
    assert (linear_OK != open_OK).float().mean() < 0.1
