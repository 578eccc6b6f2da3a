"""Cutting a row of costs into runs."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate


def linear_partition(costs: Sequence[float], count: int) -> tuple[int, ...]:
    """The ends of `count` runs, each of at least one item, in which the costliest run costs least; the last end is len(costs).

    Exact, by dynamic programming over the start of the last run (Skiena 2008, The Algorithm Design Manual, section 8.5):
    least[k][n] = min over m < n of max(least[k - 1][m], costs[m] + ... + costs[n - 1]). Of the two terms one grows and one
    falls with m, so the best m is where they meet: O(count n log n). costs: 0 or above. Raises ValueError unless 1 <= count
    <= len(costs).
    """
    length = len(costs)
    if not 1 <= count <= length:
        raise ValueError(f"{length} items cannot be cut into {count} runs.")
    total = [0.0, *accumulate(costs)]
    least = [total[1:]]  # least[k][n - 1]: of the first n items in k + 1 runs
    starts: list[list[int]] = [[0] * length]
    for runs in range(1, count):
        row, begun = [float("inf")] * length, [0] * length
        for end in range(runs + 1, length + 1):
            meet = bisect_right(range(runs, end), 0.0, key=partial(_excess, least[-1], total, end))
            around = range(max(runs, runs + meet - 1), min(end, runs + meet + 1))
            row[end - 1], begun[end - 1] = min(
                (max(least[-1][start - 1], total[end] - total[start]), start) for start in around
            )
        least.append(row)
        starts.append(begun)
    ends = [length]
    for begun in reversed(starts[1:]):
        ends.append(begun[ends[-1] - 1])
    return tuple(reversed(ends))


def _excess(before: Sequence[float], total: Sequence[float], end: int, start: int) -> float:
    """By how much the runs before `start` cost more than the one from there to `end`."""
    return before[start - 1] - (total[end] - total[start])
