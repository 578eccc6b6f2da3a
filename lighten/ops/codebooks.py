"""Codebooks: each weight is one of a few values, found by k-means (Deep Compression, arXiv:1510.00149, section 3).

In one dimension a cluster is an interval of the sorted values, and sums over intervals are differences of running sums. So
k-means costs one sort, and then V log M a turn instead of V M; the best intervals follow from dynamic programming.
Weighted by the diagonal of the Fisher information it is the codebook of SqueezeLLM (arXiv:2306.07629, equation 4).

Dimension key: O rows, K columns, P parts of a matrix with a codebook each, M weights of a part, V values of a codebook,
E places where a cluster may end.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lighten.ops.packing import packed_bytes

_TURNS = 100  # of Lloyd's algorithm at most; from the starts used here it settles in 10 to 50
_MOST_VALUES = 2**22  # weights sorted at a time, 50 bytes each
_MOST_COSTS = 2**22  # intervals priced at a time, 8 bytes each


@dataclass(frozen=True)
class Codebook:
    """values_PV: ascending, in the type they are stored in; a part is `rows` x `columns` weights, and parts run row by row."""

    values_PV: Tensor
    rows: int
    columns: int

    @property
    def bits(self) -> int:
        """The width of a code: 1 to 8."""
        return (self.values_PV.shape[1] - 1).bit_length()

    def stored_bytes(self, num_values: int) -> int:
        """Packed codes, and the values in their own type."""
        return packed_bytes(num_values, self.bits) + self.values_PV.numel() * self.values_PV.element_size()


def fit(
    w_OK: Tensor,
    *,
    bits: int,
    rows: int | None = None,
    columns: int | None = None,
    sensitivity_OK: Tensor | None = None,
    keep_zero: bool = False,
) -> Codebook:
    """2^bits values for each part of a matrix, with the least sum of sensitivity * (weight - value)^2.

    bits: 1 to 8. rows, columns: of the parts that have a codebook of their own; None for all, so that the matrix shares one;
    rows=1 is one for each output channel. sensitivity_OK: 0 or more, none is as good as all equal. keep_zero: one of the values
    is 0 and the zeros among the weights ask for nothing, so that a sparse matrix stays sparse.
    The least of all for parts of up to 64 weights (512 at 7 and 8 bits); beyond, the best intervals between as many candidate
    ends, then k-means, and never worse than k-means from a uniform grid. No random numbers. A matrix of no more distinct values
    with one codebook keeps them.
    Raises ValueError when the matrix does not split into parts, or bits are not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"A codebook has 1 to 8 bits. Got {bits}.")
    rows, columns = rows or w_OK.shape[0], columns or w_OK.shape[1]
    value_PM = _parts(w_OK.detach().float(), rows, columns)
    weight_PM = torch.ones_like(value_PM) if sensitivity_OK is None else _parts(sensitivity_OK.float(), rows, columns)
    distinct_V = distinct(value_PM) if len(value_PM) == 1 else value_PM[:0].flatten()
    if 0 < len(distinct_V) <= 2**bits:
        return Codebook(pad(distinct_V, (0, 2**bits - len(distinct_V)), value=float(distinct_V[-1]))[None], rows, columns)
    if keep_zero:
        weight_PM = weight_PM * (value_PM != 0)
    at_once = max(1, _MOST_VALUES // value_PM.shape[1])
    chunks = zip(torch.split(value_PM, at_once), torch.split(weight_PM, at_once), strict=True)
    book_PV = torch.cat([_best(_sorted(*chunk), 2**bits - keep_zero) for chunk in chunks]).float()
    if keep_zero:
        book_PV = pad(book_PV, (1, 0)).sort(1).values
    return Codebook(book_PV, rows, columns)


def cluster(value_N: Tensor, num_values: int) -> Tensor:
    """At most num_values values, ascending, float32, with the least sum of (number - value)^2, as `fit` finds them; the numbers
    themselves where no more of them differ. Raises ValueError for no numbers.
    """
    if not value_N.numel() or num_values < 1:
        raise ValueError(f"{value_N.numel()} numbers do not make {num_values} clusters.")
    distinct_V = distinct(value_N.detach().float())
    if len(distinct_V) <= num_values:
        return distinct_V
    value_1N = value_N.detach().float()[None]
    return distinct(_best(_sorted(value_1N, torch.ones_like(value_1N)), num_values)[0].float())


def distinct(values: Tensor) -> Tensor:
    """Each value once, ascending, of one dimension."""
    found: Tensor = values.unique()  # type: ignore[no-untyped-call]
    return found


def refine(w_OK: Tensor, book: Codebook, *, sensitivity_OK: Tensor | None = None) -> Codebook:
    """Lloyd's algorithm from a given codebook until nothing moves: each value the weighted mean of the weights nearest to it.
    The error never rises.
    """
    value_PM = _parts(w_OK.detach().float(), book.rows, book.columns)
    weight_PM = torch.ones_like(value_PM) if sensitivity_OK is None else _parts(sensitivity_OK.float(), book.rows, book.columns)
    refined_PV = _lloyd(_sorted(value_PM, weight_PM), book.values_PV.double())
    return Codebook(refined_PV.to(book.values_PV.dtype), book.rows, book.columns)


def encode(w_OK: Tensor, book: Codebook) -> Tensor:
    """The place of the nearest value, uint8, shape O x K; a tie takes the lower one."""
    book_PV = book.values_PV.float()
    middle_PV = (book_PV[:, 1:] + book_PV[:, :-1]) / 2
    codes_PM = torch.searchsorted(middle_PV, _parts(w_OK.detach().float(), book.rows, book.columns), out_int32=True)
    return _matrix(codes_PM.to(torch.uint8), book, w_OK.shape[1])


def decode(codes_OK: Tensor, book: Codebook) -> Tensor:
    """values[code], float32, shape O x K."""
    codes_PM = _parts(codes_OK, book.rows, book.columns)
    return _matrix(book.values_PV.float().gather(1, codes_PM.long()), book, codes_OK.shape[1])


class _Sorted(NamedTuple):
    """value_PM: ascending. sums_3PM: running sums of weight, weight * value and weight * value^2, from 0, float64."""

    value_PM: Tensor
    sums_3PM: Tensor

    def between(self, ends_PE: Tensor) -> Tensor:
        """The three sums over each interval: shape (3, P, E - 1)."""
        return self.sums_3PM.gather(2, ends_PE.expand(3, -1, -1)).diff(dim=2)


def _parts(values_OK: Tensor, rows: int, columns: int) -> Tensor:
    """A part's values in a row: shape P x M."""
    num_rows, num_columns = values_OK.shape
    if num_rows % rows or num_columns % columns:
        raise ValueError(f"A matrix of {num_rows} x {num_columns} does not split into parts of {rows} x {columns}.")
    tiles = values_OK.reshape(num_rows // rows, rows, num_columns // columns, columns)
    return tiles.transpose(1, 2).reshape(-1, rows * columns)


def _matrix(values_PM: Tensor, book: Codebook, num_columns: int) -> Tensor:
    tiles = values_PM.reshape(-1, num_columns // book.columns, book.rows, book.columns)
    return tiles.transpose(1, 2).reshape(-1, num_columns)


def _sorted(value_PM: Tensor, weight_PM: Tensor) -> _Sorted:
    value_PM, order_PM = value_PM.sort(1)
    weight_PM = weight_PM.gather(1, order_PM).double()
    moments = torch.stack([weight_PM, weight_PM * value_PM, weight_PM * value_PM.double().square()])
    return _Sorted(value_PM, pad(moments.cumsum(2), (1, 0)))


def _best(part: _Sorted, num_values: int) -> Tensor:
    """The better codebook of two starts, for each part; float64."""
    low_P1, high_P1 = part.value_PM[:, :1].double(), part.value_PM[:, -1:].double()
    uniform_PV = low_P1 + (high_P1 - low_P1) * torch.linspace(0, 1, num_values, dtype=torch.float64, device=low_P1.device)
    first_PV = _lloyd(part, _means(part, _best_ends(part, num_values), uniform_PV))
    other_PV = _lloyd(part, uniform_PV)
    return torch.where((_error(part, first_PV) <= _error(part, other_PV))[:, None], first_PV, other_PV)


def _lloyd(part: _Sorted, book_PV: Tensor) -> Tensor:
    for _ in range(_TURNS):
        before_PV, book_PV = book_PV, _means(part, _nearest_ends(part, book_PV), book_PV)
        if torch.equal(before_PV, book_PV):
            break
    return book_PV


def _nearest_ends(part: _Sorted, book_PV: Tensor) -> Tensor:
    """Where, among the sorted weights, those nearest to each value begin and end: shape P x (V + 1)."""
    middle_PV = ((book_PV[:, 1:] + book_PV[:, :-1]) / 2).float()
    return pad(pad(torch.searchsorted(part.value_PM, middle_PV), (1, 0)), (0, 1), value=part.value_PM.shape[1])


def _means(part: _Sorted, ends_PE: Tensor, otherwise_PV: Tensor) -> Tensor:
    """The weighted mean of each interval; `otherwise` where it holds no weight. Ascending."""
    weight_PV, moment_PV, _ = part.between(ends_PE)
    return torch.where(weight_PV > 0, moment_PV / weight_PV, otherwise_PV).sort(1).values


def _error(part: _Sorted, book_PV: Tensor) -> Tensor:
    weight_PV, moment_PV, square_PV = part.between(_nearest_ends(part, book_PV))
    error_PV: Tensor = square_PV - 2 * book_PV * moment_PV + book_PV.square() * weight_PV
    return error_PV.sum(1)


def _best_ends(part: _Sorted, num_values: int) -> Tensor:
    """The ends of the best intervals, found by dynamic programming over the candidates: shape P x (V + 1)."""
    places_PE = _candidates(part.value_PM, min(max(64, 4 * num_values), 512))
    at_once = max(1, _MOST_COSTS // places_PE.shape[1] ** 2)
    sums_3PE = part.sums_3PM.gather(2, places_PE.expand(3, -1, -1))
    chunks = zip(torch.split(sums_3PE, at_once, 1), torch.split(places_PE, at_once), strict=True)
    return torch.cat([places.gather(1, _cheapest(_costs(sums), num_values)) for sums, places in chunks])


def _candidates(value_PM: Tensor, count: int) -> Tensor:
    """Every place for few weights; for many, half of them equally many weights apart, half equally far apart."""
    parts, length = value_PM.shape
    if length <= count:
        return torch.arange(length + 1, device=value_PM.device).expand(parts, -1)
    by_rank_E = torch.linspace(0, length, count // 2 + 1, device=value_PM.device).long()
    share_E = torch.linspace(0, 1, count // 2 + 1, device=value_PM.device)[1:-1]
    by_value_PE = torch.searchsorted(value_PM, value_PM[:, :1] + (value_PM[:, -1:] - value_PM[:, :1]) * share_E)
    return torch.cat([by_rank_E.expand(parts, -1), by_value_PE], 1).sort(1).values


def _costs(sums_3PE: Tensor) -> Tensor:
    """[p, j, i]: what one cluster from place i to place j costs, infinite where j < i. Shape P x E x E, float32, which halves
    the time.
    """
    weight_PEE, moment_PEE, square_PEE = (sums_3PE[:, :, :, None] - sums_3PE[:, :, None, :]).unbind()
    error_PEE = (square_PEE - moment_PEE.square() / weight_PEE.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0).float()
    return error_PEE.masked_fill(torch.ones_like(error_PEE[0], dtype=torch.bool).triu(1), torch.inf)


def _cheapest(cost_PEE: Tensor, num_values: int) -> Tensor:
    """Candidates at which the cheapest chain of num_values intervals ends: shape P x (V + 1)."""
    totals = [cost_PEE[:, :, 0]]
    for _ in range(num_values - 1):
        totals.append((totals[-1][:, None, :] + cost_PEE).amin(2))
    ends = [torch.full_like(totals[0][:, :1], cost_PEE.shape[1] - 1, dtype=torch.int64)]
    for total_PE in reversed(totals[:-1]):
        last_PE = cost_PEE.gather(1, ends[-1][:, :, None].expand(-1, -1, cost_PEE.shape[2]))[:, 0]
        ends.append((total_PE + last_PE).argmin(1, keepdim=True))
    return torch.cat([torch.zeros_like(ends[0]), *reversed(ends)], 1)
