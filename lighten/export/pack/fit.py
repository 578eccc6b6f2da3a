"""Contexts that make a tensor's symbols cheap, found by counting; every choice is priced by its exact entropy, plus an
estimate of what tables and classes take.

Large tensors are judged by a sample: 2^19 symbols say enough about frequencies.
Dimension key: as streams.py; S sampled symbols, X indices of one axis, K classes of one axis, M contexts of the other axes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lighten.export.pack.coder import Array
from lighten.export.pack.streams import Contexts, Dims, Groups, Letters, counted, states_of
from lighten.export.pack.tables import table_bits

SAMPLE = 1 << 19
_GROUP_SAMPLE = 1 << 18
_WORTH_BITS = 16.0  # a choice that saves less only costs time
_CLASS_COUNTS = (2, 4, 8)
_ROUNDS = 3
_MOST_LETTERS = 32
_MOST_COUNTS = 1 << 23  # cells of a count, 32 MB
_QUANTILES = (3, 7)  # numbers of thresholds that are tried
_GROUP_SIZES = (4, 8, 16)


@dataclass(frozen=True)
class Fit:
    """bits: what contexts, tables and symbols take, estimated."""

    contexts: Contexts
    bits: float


@dataclass(frozen=True)
class _Sample:
    """Symbols, their states, and their flat places in the grid; weight: how many symbols each stands for."""

    symbol_S: Array
    state_S: Array
    place_S: Array
    weight: float

    def every(self, step: int, start: int) -> "_Sample":
        part = [one[start::step].astype(np.int64) for one in (self.symbol_S, self.state_S, self.place_S)]
        return _Sample(part[0], part[1], part[2], len(self.symbol_S) / max(1, len(part[0])))


def fit_stream(symbol_N: Array, dims: Dims, letters: Letters) -> Fit:
    """Classes alone, and beside the best groups: rows of different densities also look like groups."""
    place_N, no_state_N = np.arange(len(symbol_N)), np.broadcast_to(np.zeros(1, np.int64), symbol_N.shape)
    alone = _with_classes(_Sample(symbol_N, no_state_N, place_N, 1.0), dims, letters, Contexts())
    groups = _best_groups(symbol_N, dims, letters)
    if groups is None:
        return alone
    state_JG = states_of(groups.split(symbol_N.reshape(dims)), groups, letters)
    sample = _Sample(symbol_N, groups.join(state_JG, dims).ravel(), place_N, 1.0)
    return min(alone, _with_classes(sample, dims, letters, Contexts(groups=groups)), key=lambda fit: fit.bits)


def fit_chosen(symbol_N: Array, dims: Dims, letters: Letters, *, chosen: Array) -> Fit:
    """Classes for the symbols of chosen places."""
    sample = _Sample(symbol_N, np.broadcast_to(np.zeros(1, np.int64), symbol_N.shape), chosen, 1.0)
    return _with_classes(sample, dims, letters, Contexts())


def _best_groups(symbol_N: Array, dims: Dims, letters: Letters) -> Groups | None:
    """The cheapest, judged on the first rows."""
    rows = max(1, min(dims[0], _GROUP_SAMPLE // max(1, dims[1] * dims[2])))
    rows = rows // 16 * 16 or rows
    part = (rows, dims[1], dims[2])
    grid_OIR = symbol_N.reshape(dims)[:rows]
    best, least = None, _price(counted(grid_OIR.ravel(), np.zeros(grid_OIR.size, np.int64), (1, letters.count)), 1.0)
    for groups in _candidate_groups(grid_OIR, part, letters):
        symbol_JG = groups.split(grid_OIR)
        state_JG = states_of(symbol_JG, groups, letters)
        count_CA = counted(symbol_JG.ravel(), state_JG.ravel(), (groups.num_states, letters.count))
        bits = _price(count_CA, 1.0) + groups.num_states + 16 * len(groups.threshold_T)
        if bits < least - _WORTH_BITS and dims[groups.axis] % groups.size == 0:
            best, least = groups, bits
    return best


def _candidate_groups(grid_OIR: Array, dims: Dims, letters: Letters) -> Iterator[Groups]:
    """A convolution's kernel; for zeros and ones also short runs along either of the first axes."""
    if 2 <= dims[2] <= 49:
        yield from _thresholds(grid_OIR, Groups(2, dims[2]), letters)
        if letters.count == 2 and dims[2] <= 16:
            yield Groups(2, dims[2])
    if letters.count == 2:
        for axis, size in ((axis, size) for axis in (0, 1) for size in _GROUP_SIZES):
            if dims[axis] % size == 0:
                yield Groups(axis, size)


def _thresholds(grid_OIR: Array, groups: Groups, letters: Letters) -> Iterator[Groups]:
    """Quantiles of the mean activity."""
    distance_JG = np.abs(groups.split(grid_OIR).astype(np.int64) - letters.zero)
    before_JG = (np.cumsum(distance_JG, 1) - distance_JG)[:, 1:]
    mean_N = np.minimum((before_JG << 4) // np.arange(1, groups.size), 2**16 - 1).ravel()
    for count in _QUANTILES:
        threshold_T = np.unique(np.quantile(mean_N, np.linspace(0, 1, count + 2)[1:-1], method="nearest"))
        yield replace(groups, threshold_T=threshold_T.astype(np.int64))


def _with_classes(whole: _Sample, dims: Dims, letters: Letters, contexts: Contexts) -> Fit:
    """Greedy: axis by axis, more classes while they pay. Where a sample finds the classes, another one judges them."""
    # an odd step does not stay in the same columns of a matrix whose width is even
    step = 1 if len(whole.symbol_S) <= SAMPLE else 2 * (len(whole.symbol_S) // SAMPLE) + 1
    sample = _Placed(whole.every(step, 0), dims, letters)
    judge = sample if step == 1 else _Placed(whole.every(step, step // 2), dims, letters)
    least = judge.price(contexts)
    for axis in range(3):
        for num_classes in _CLASS_COUNTS:
            if dims[axis] < 2 * num_classes or not len(sample.symbol_S):
                break
            trial = sample.clustered(contexts, axis, num_classes)
            bits = np.inf if trial is None else judge.price(trial)
            if trial is None or bits > least - _WORTH_BITS:
                break
            contexts, least = trial, bits
    return Fit(contexts, least)


class _Placed:
    """A sample with the indices of each symbol along the three axes."""

    def __init__(self, sample: _Sample, dims: Dims, letters: Letters) -> None:
        self.symbol_S, self.weight = sample.symbol_S, sample.weight
        self._state_S, self._dims, self._letters = sample.state_S, dims, letters
        self._index_3S = np.unravel_index(sample.place_S, dims)
        # classes of many letters are found by how far these lie from zero, half an octave apart: an eighth of the counting
        distance_A = np.abs(np.arange(letters.count) - letters.zero)
        level_A = np.floor(2 * np.log2(1 + distance_A)).astype(np.int64) if letters.count > _MOST_LETTERS else None
        self._level_S = sample.symbol_S if level_A is None else level_A[sample.symbol_S]
        self._levels = letters if level_A is None else Letters(int(level_A.max()) + 1)

    def price(self, contexts: Contexts) -> float:
        """Bits of the whole stream."""
        sides = sum(_entropy(np.bincount(one)) + 4 * one.max(initial=0) for one in contexts.classes if len(one) > 1)
        count_CA = counted(self.symbol_S, self._context_S(contexts), (contexts.num_contexts, self._letters.count))
        return _price(count_CA, self.weight) + float(sides) + (contexts.num_contexts if contexts.num_contexts > 1 else 0)

    def clustered(self, contexts: Contexts, axis: int, num_classes: int) -> Contexts | None:
        """Indices of one axis in classes of like frequencies: k-means with the Kullback-Leibler divergence. None where
        counting would take too much memory.
        """
        others = replace(contexts, classes=_replaced(contexts, axis, np.zeros(1, np.int64)))
        size, num_others, num_letters = self._dims[axis], others.num_contexts, self._levels.count
        if size * num_others * num_letters > _MOST_COUNTS:
            return None
        mixed_S = self._index_3S[axis] * np.int64(num_others) + self._context_S(others)
        count_XMA = counted(self._level_S, mixed_S, (size * num_others, num_letters)).reshape(size, num_others, num_letters)
        class_X = _cluster(count_XMA.astype(np.float32), num_classes, self._levels)
        return None if class_X is None else replace(contexts, classes=_replaced(contexts, axis, class_X))

    def _context_S(self, contexts: Contexts) -> Array:
        mixed: Array = self._state_S
        for class_X, index_S in zip(contexts.classes, self._index_3S, strict=True):
            if len(class_X) > 1:
                mixed = mixed * (class_X.max() + 1) + class_X[index_S]
        return mixed


def _cluster(count_XMA: Array, num_classes: int, letters: Letters) -> Array | None:
    """None where fewer classes are left."""
    distance_A = np.abs(np.arange(letters.count) - letters.zero)
    total_X = count_XMA.sum((1, 2))
    mean_X = (count_XMA.sum(1) @ distance_A) / np.maximum(total_X, 1)
    class_X = mean_X.argsort(kind="stable").argsort(kind="stable") * num_classes // len(mean_X)
    for _ in range(_ROUNDS):
        sum_KMA = np.stack([count_XMA[class_X == one].sum(0) for one in range(num_classes)]) + 0.1
        bits_KMA = -np.log2(sum_KMA / sum_KMA.sum(2, keepdims=True))
        class_X = np.tensordot(count_XMA, bits_KMA, ((1, 2), (1, 2))).argmin(1)
    return class_X if len(np.unique(class_X)) == num_classes else None


def _replaced(contexts: Contexts, axis: int, class_X: Array) -> tuple[Array, Array, Array]:
    first, second, third = (class_X if place == axis else one for place, one in enumerate(contexts.classes))
    return first, second, third


def _price(count_CA: Array, weight: float) -> float:
    """Bits of the symbols, and about those of the tables.

    A sample looks cheaper under its own frequencies than all symbols do, by (letters - 1) / (2 ln 2) bits a context (Miller and
    Madow): left out, noise would look like structure in a small sample.
    """
    flattered = float(np.count_nonzero(count_CA) - np.count_nonzero(count_CA.sum(1))) / (2 * math.log(2))
    tables = sum(table_bits(count_CA.shape[1], weight * float(total)) for total in count_CA.sum(1) if total)
    return weight * _entropy(count_CA) + (weight - 1) * flattered + tables


def _entropy(count: Array) -> float:
    """Bits of all symbols: the sum over rows of -n log2(n / row's total)."""
    count = np.atleast_2d(count).astype(np.float64)
    total_C = count.sum(1)
    logs = np.log2(np.where(count > 0, count, 1.0))
    return float((total_C * np.log2(np.maximum(total_C, 1))).sum() - (count * logs).sum())
