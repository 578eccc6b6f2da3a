"""Frequency tables, written in few bits.

A frequency is a small float: entry 0 is 0; entry e > 0 is (2^m + (e - 1) mod 2^m) 2^((e - 1) div 2^m), with m mantissa bits.
Entries are coded as differences from letter to letter. The encoder picks the entries that make table and symbols together
shortest, by dynamic programming, so that a table is as smooth as its counts deserve.
Dimension key: A letters, E entries, K classes of differences.
"""

import numpy as np

from lighten.export.pack.coder import TOTAL_BITS, Array, Coder, corrupt, number

_EXPONENTS = 16
_CLASS_SK = np.array([[20, 12, 14, 9, 5, 2, 1, 1], [48, 6, 5, 1, 1, 1, 1, 1]], np.int64) << (TOTAL_BITS - 6)
"""How likely a difference has k = 0 to 7 bits, once folded to 0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ...: in a rough table and
in a smooth one.
"""
_SMOOTH = 100  # letters from which on a table is taken for smooth without a trial
_COARSE, _FINE = 64, 512  # symbols a letter from which on a second and a third bit of mantissa pay

_BINARY_BITS = 10


def code_table(coder: Coder, count_A: Array) -> Array:
    """The frequencies, int64, shape (A,), of sum 2^20, that the decoder also gets.

    count_A: how often each letter occurs when packing; only its length matters when unpacking. A is at least 1.
    """
    if len(count_A) == 1:
        return np.array([2**TOTAL_BITS])
    return _code_binary(coder, count_A) if len(count_A) == 2 else _code_entries(coder, count_A)


def table_bits(num_letters: int, total: float) -> float:
    """About what `code_table` writes."""
    return _BINARY_BITS if num_letters == 2 else 3 + num_letters * (0.6 + 0.12 * np.log2(1 + total / num_letters))


def _code_binary(coder: Coder, count_A: Array) -> Array:
    """t of 10 bits, skipping the middle so that both 0 and 1 are there: a letter that never comes is nearly free."""
    highest = 2**_BINARY_BITS
    total = int(count_A.sum())
    step = round(int(count_A[1]) * highest / total) if total else 0
    if total and 0 < count_A[1] < total:
        step = min(max(step, 1), highest - 1)
    code = number(coder, step - (step >= highest // 2), _BINARY_BITS)
    ones = (code + (code >= highest // 2)) << (TOTAL_BITS - _BINARY_BITS)
    return np.array([2**TOTAL_BITS - ones, ones])


def _code_entries(coder: Coder, count_A: Array) -> Array:
    mantissa, style, entry_A = _shortest(count_A)
    mantissa, style = number(coder, mantissa, 2), number(coder, style, 1)
    folded_A = _code_folded(coder, _fold(np.diff(entry_A, prepend=_start(mantissa))), _CLASS_SK[style])
    entry_A = _start(mantissa) + np.cumsum(_unfold(folded_A))
    if entry_A.min() < 0 or entry_A.max() >= len(_weights(mantissa)):
        raise corrupt("a frequency is out of range")
    return _normalized(_weights(mantissa)[entry_A])


def _code_folded(coder: Coder, folded_A: Array, class_K: Array) -> Array:
    """The number of bits of each, then for each number of bits above 1 all those below the leading one."""
    class_A = coder.code(np.array([int(value).bit_length() for value in folded_A], np.int64), class_K)
    found_A = np.minimum(class_A, 1).astype(np.int64)
    for bits in range(2, len(class_K)):
        where = class_A == bits
        found_A[where] = coder.numbers(folded_A[where] & (2 ** (bits - 1) - 1), bits - 1) | 2 ** (bits - 1)
    return found_A


def _fold(difference_A: Array) -> Array:
    folded_A: Array = np.where(difference_A < 0, -2 * difference_A - 1, 2 * difference_A)
    return folded_A


def _unfold(folded_A: Array) -> Array:
    difference_A: Array = np.where(folded_A % 2, -(folded_A + 1) // 2, folded_A // 2)
    return difference_A


def _start(mantissa: int) -> int:
    """The entry before the first letter."""
    return _EXPONENTS // 2 << mantissa


def _weights(mantissa: int) -> Array:
    step_E = np.arange(_EXPONENTS << mantissa)
    return np.concatenate([[0], ((1 << mantissa) + step_E % (1 << mantissa)) << (step_E >> mantissa)])


def _normalized(weight_A: Array) -> Array:
    """To the sum 2^20, rounded down; what is missing goes to the first of the greatest."""
    if not weight_A.any():
        raise corrupt("a table is empty")
    frequency_A: Array = (weight_A << TOTAL_BITS) // weight_A.sum()
    frequency_A[frequency_A.argmax()] += 2**TOTAL_BITS - frequency_A.sum()
    return frequency_A


def _shortest(count_A: Array) -> tuple[int, int, Array]:
    """Mantissa bits, style and entries. A table without counts (when unpacking) is any."""
    if not count_A.any():
        return 0, 0, np.zeros(len(count_A), np.int64)
    each = count_A.sum() / len(count_A)
    mantissa = 1 + int(each >= _COARSE) + int(each >= _FINE)
    styles = (1,) if len(count_A) > _SMOOTH else (0, 1)
    paths = {style: _path(count_A, mantissa, _CLASS_SK[style]) for style in styles}
    style = min(paths, key=lambda one: paths[one][0])
    return mantissa, style, paths[style][1]


def _path(count_A: Array, mantissa: int, class_K: Array) -> tuple[float, Array]:
    """The bits of table and symbols, and the entries, by dynamic programming over letters.

    With weights w and their sum close to S, N symbols cost sum(-n log2(w / S)) + N (sum(w) / S - 1) / ln 2 to first order.
    """
    weight_E = _weights(mantissa).astype(np.float64)
    total, scale = float(count_A.sum()), float(count_A.max()) / weight_E[-1]
    share_E = weight_E * scale / total
    bits_E = -np.log2(np.maximum(share_E, 2.0**-24))
    slack_E = total * share_E / np.log(2)
    step_EE = _difference_bits(len(weight_E), class_K)
    cost_E = step_EE[_start(mantissa)] + count_A[0] * bits_E + slack_E
    each_E = np.arange(len(weight_E))
    came = np.empty((len(count_A), len(weight_E)), np.int32)
    for letter in range(1, len(count_A)):
        reached_EE = cost_E[:, None] + step_EE
        came[letter] = reached_EE.argmin(0)
        cost_E = reached_EE[came[letter], each_E] + count_A[letter] * bits_E + slack_E
    entry_A = np.empty(len(count_A), np.int64)
    entry_A[-1] = cost_E.argmin()
    for letter in range(len(count_A) - 1, 0, -1):
        entry_A[letter - 1] = came[letter, entry_A[letter]]
    return float(cost_E.min()), entry_A


def _difference_bits(num_entries: int, class_K: Array) -> Array:
    """[e, f]: bits of the step from entry e to entry f; infinite beyond 7 bits."""
    entry_E = np.arange(num_entries)
    folded_EE = _fold(entry_E[None, :] - entry_E[:, None])
    class_EE = np.frexp(folded_EE.astype(np.float64))[1]
    bits_K = TOTAL_BITS - np.log2(class_K) + np.maximum(np.arange(len(class_K)) - 1, 0)
    bits_EE: Array = np.append(bits_K, np.inf)[np.minimum(class_EE, len(class_K))]
    return bits_EE
