"""Dimension key: O rows, K columns, V values of a codebook, P parts."""

import itertools

import pytest
import torch
from torch import Tensor

from lighten.ops import grids
from lighten.ops.codebooks import Codebook, cluster, decode, encode, fit, refine


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(w_OK: Tensor, book: Codebook, weight_OK: Tensor | float = 1.0) -> float:
    return ((decode(encode(w_OK, book), book) - w_OK).square() * weight_OK).double().sum().item()


def least_error(values: list[float], weights: list[float], num_values: int) -> float:
    """Over all ways to cut the sorted values into intervals."""
    pairs = torch.tensor(sorted(zip(values, weights, strict=True)), dtype=torch.float64)
    costs = []
    for cuts in itertools.combinations(range(1, len(pairs)), num_values - 1):
        pieces = torch.tensor_split(pairs, cuts)
        costs.append(sum(float((w * (x - (w * x).sum() / w.sum()) ** 2).sum()) for x, w in (piece.T for piece in pieces)))
    return min(costs)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_small_parts_have_the_least_error_of_all_codebooks(bits: int, weighted: bool, seed: int) -> None:
    w_OK = normal(1, 14, seed)
    weight_OK = normal(1, 14, seed + 100).square() if weighted else torch.ones_like(w_OK)
    book = fit(w_OK, bits=bits, sensitivity_OK=weight_OK if weighted else None)
    least = least_error(w_OK[0].tolist(), weight_OK[0].tolist(), 2**bits)
    # nearest values may only do better than the intervals did, and both are sums of a few float32 numbers
    assert error(w_OK, book, weight_OK) == pytest.approx(least, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("bits", range(1, 9))
def test_k_means_from_the_uniform_grid_is_never_worse_than_the_grid(bits: int) -> None:
    w_OK = normal(8, 2000) ** 3
    low_O1, high_O1 = w_OK.amin(1, keepdim=True), w_OK.amax(1, keepdim=True)
    uniform = Codebook(low_O1 + (high_O1 - low_O1) * torch.linspace(0, 1, 2**bits), 1, 2000)
    start, end = error(w_OK, uniform), error(w_OK, refine(w_OK, uniform))
    assert end < start
    assert error(w_OK, fit(w_OK, bits=bits, rows=1)) <= end * (1 + 1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_codebook_beats_the_best_uniform_grid_of_as_many_levels(bits: int) -> None:
    w_OK = normal(8, 2000)
    grid = grids.fit(w_OK, bits=bits, symmetric=False, ranges="mse")
    uniform = (grids.decode(grids.encode(w_OK, grid), grid) - w_OK).square().sum()
    assert error(w_OK, fit(w_OK, bits=bits, rows=1)) < uniform


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_a_normal_tensor_comes_to_the_error_of_the_lloyd_max_quantizer(bits: int, published: float) -> None:
    # Max 1960, table 1; the quantiles stand for the distribution itself, cut off at 5 standard deviations
    middles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    w_OK = torch.special.ndtri(middles).float()[None]
    assert error(w_OK, fit(w_OK, bits=bits)) / w_OK.numel() == pytest.approx(published, rel=2e-3)


def test_values_that_already_fit_come_back_exactly() -> None:
    values_V = torch.tensor([-2.0, -0.5, 0.0, 3.0])
    w_OK = values_V[torch.randint(0, 4, (6, 50), generator=torch.Generator().manual_seed(0))]
    book = fit(w_OK, bits=2)
    assert torch.equal(decode(encode(w_OK, book), book), w_OK)
    assert torch.equal(decode(encode(w_OK, fit(w_OK, bits=4)), fit(w_OK, bits=4)), w_OK)


def test_sensitive_weights_are_kept_at_the_expense_of_the_others() -> None:
    w_OK = normal(1, 1000)
    w_OK[0, :3] = torch.tensor([-1.0, 0.1, 1.2])
    sensitivity_OK = torch.ones_like(w_OK)
    sensitivity_OK[0, :3] = 1e6
    book = fit(w_OK, bits=2, sensitivity_OK=sensitivity_OK)
    noise_K = (decode(encode(w_OK, book), book) - w_OK)[0].abs()
    assert noise_K[:3].max() < 1e-3
    assert error(w_OK, book, sensitivity_OK) < error(w_OK, fit(w_OK, bits=2), sensitivity_OK)


@pytest.mark.parametrize(
    ("rows", "columns", "num_parts"), [(None, None, 1), (1, None, 8), (None, 32, 3), (1, 32, 24), (4, 48, 4)]
)
def test_parts_have_codebooks_of_their_own(rows: int | None, columns: int | None, num_parts: int) -> None:
    w_OK = normal(8, 96)
    book = fit(w_OK, bits=3, rows=rows, columns=columns)
    assert book.values_PV.shape == (num_parts, 8)
    rounded_OK = decode(encode(w_OK, book), book)
    # the first part as a matrix of its own gives the same
    first = w_OK[: book.rows, : book.columns]
    alone = fit(first, bits=3)
    assert torch.equal(rounded_OK[: book.rows, : book.columns], decode(encode(first, alone), alone))
    assert torch.equal(decode(encode(rounded_OK, book), book), rounded_OK)


def test_zeros_of_a_sparse_matrix_stay_zero_and_take_no_value_from_the_rest() -> None:
    w_OK = normal(4, 300)
    w_OK[w_OK.abs() < 1] = 0
    book = fit(w_OK, bits=3, rows=1, keep_zero=True)
    assert (book.values_PV == 0).sum(1).tolist() == [1, 1, 1, 1]
    assert (decode(encode(w_OK, book), book)[w_OK == 0] == 0).all()


def test_a_constant_matrix_and_fewer_weights_than_values_are_exact() -> None:
    for w_OK in (torch.full((2, 10), 0.3), normal(1, 5), torch.zeros(1, 1)):
        book = fit(w_OK, bits=4)
        assert torch.equal(decode(encode(w_OK, book), book), w_OK)


def test_two_runs_give_the_same_bytes() -> None:
    w_OK = normal(4, 5000)
    assert torch.equal(fit(w_OK, bits=4).values_PV, fit(w_OK, bits=4).values_PV)


def test_stored_bytes_count_the_codebooks() -> None:
    w_OK = normal(16, 512)
    assert fit(w_OK, bits=3, rows=1).stored_bytes(w_OK.numel()) == 16 * 512 * 3 // 8 + 16 * 8 * 4
    book = fit(w_OK, bits=3, rows=1)
    half = Codebook(book.values_PV.half(), book.rows, book.columns)
    # SqueezeLLM's count: 3 bits, and 8 values of 16 bits for each row of 512
    assert half.stored_bytes(w_OK.numel()) * 8 / w_OK.numel() == 3.25


@pytest.mark.parametrize(
    ("knobs", "message"), [({"bits": 3, "columns": 7}, "1 x 64|8 x 7"), ({"bits": 0}, "1 to 8 bits. Got 0")]
)
def test_knobs_that_do_not_fit_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(normal(8, 64), **knobs)


@pytest.mark.parametrize("num_values", [1, 2, 3, 5])
def test_clusters_of_any_number_have_the_least_error(num_values: int) -> None:
    value_N = normal(1, 14)[0]
    value_V = cluster(value_N, num_values)
    found = (value_N[:, None] - value_V).square().amin(1).double().sum().item()
    least = least_error(value_N.tolist(), [1.0] * 14, num_values)
    assert found == pytest.approx(least, rel=1e-5, abs=1e-9)


def test_no_more_distinct_numbers_than_clusters_are_kept_as_they_are() -> None:
    values = torch.tensor([0.3, -1.0, 2.5, 7.0, 7.1])
    many_N = values[torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(cluster(many_N, 5), values.sort().values)
    book = fit(many_N.reshape(10, 100), bits=3)
    assert torch.equal(decode(encode(many_N.reshape(10, 100), book), book).flatten(), many_N)
    with pytest.raises(ValueError, match="do not make 2 clusters"):
        cluster(many_N[:0], 2)
