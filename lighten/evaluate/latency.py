"""How long a call takes, two or more networks interleaved in one run.

Machines drift: clocks change, neighbours come and go. Figures from separate runs therefore do not compare. Here every round
times each network once, in a changing order, so drift falls on all of them alike, and the first one is timed a second time
under no other difference than its place in the order: the ratio of its two medians is the noise that any claim must exceed.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lighten.core.errors import InputError

Call = Callable[[], object]
_SHORTEST_SAMPLE_SECONDS = 1e-3  # far above the clock's own cost and step
_FEWEST_ROUNDS = 3
_FEWEST_TO_CLAIM = 6  # 1 / 2^6 is below 2.5 %
_NUM_RESAMPLES = 2_000


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call. count: samples. repeats: calls averaged in one sample, above 1 only for calls below 1 ms; then
    p95 is that of the averages, which hides single slow calls.
    """

    p50_ms: float
    p95_ms: float
    min_ms: float
    mean_ms: float
    count: int
    repeats: int


@dataclass(frozen=True)
class Timing:
    """latencies: by name. samples_ms: by name, one a round; round i of every name ran back to back. noise_ratio: the median
    of the first name's second timing over its first, 1 when the machine is quiet.
    """

    latencies: dict[str, Latency]
    samples_ms: dict[str, tuple[float, ...]]
    noise_ratio: float

    def ratio_interval(self, name: str, other: str) -> tuple[float, float]:
        """95 % interval of median(name) / median(other): rounds are resampled, both names together (2,000 resamples, seed
        0).
        """
        times, other_times = np.asarray(self.samples_ms[name]), np.asarray(self.samples_ms[other])
        generator = np.random.default_rng(0)
        drawn = (generator.integers(len(times), size=len(times)) for _ in range(_NUM_RESAMPLES))
        ratios = [np.median(times[rounds]) / np.median(other_times[rounds]) for rounds in drawn]
        low, high = np.quantile(ratios, [0.025, 0.975])
        return float(low), float(high)

    def is_faster(self, name: str, other: str) -> bool:
        """True when the whole interval of the ratio lies below 1, from at least 6 rounds: with fewer, every round favours one
        of two equal names by chance more often than 1 time in 40.
        """
        return len(self.samples_ms[name]) >= _FEWEST_TO_CLAIM and self.ratio_interval(name, other)[1] < 1


def time_interleaved(
    runners: Mapping[str, Call],
    *,
    rounds: int = 30,
    warmup: int = 5,
    min_seconds: float = 0.3,
    max_seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times calls without arguments. rounds: at least so many samples each. warmup: untimed calls each. min_seconds:
    measured at least so long for each name. max_seconds: no further round begins after it, though never fewer than 3 are
    made.

    Raises InputError when there is nothing to time or a bound is not positive.
    """
    if not runners:
        raise InputError("There is nothing to time.")
    if rounds < 1 or warmup < 1 or max_seconds <= 0:
        raise InputError(f"rounds, warmup and max_seconds must be above 0. Got {rounds}, {warmup} and {max_seconds}.")
    began = clock()
    first = next(iter(runners))
    control = f"{first} (again)"
    calls = {**runners, control: runners[first]}
    repeats = {
        name: _warm_up(call, warmup, max_seconds=max_seconds / len(calls) / 4, clock=clock) for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    measuring_since, done = clock(), 0
    while not _enough(done, rounds, clock() - measuring_since >= min_seconds * len(calls), late=clock() - began > max_seconds):
        for name in _order(list(calls), done):
            samples[name].append(_sample(calls[name], repeats[name], clock))
        done += 1
    kept = {name: tuple(samples[name]) for name in runners}
    latencies = {name: _summary(kept[name], repeats[name]) for name in runners}
    return Timing(latencies, kept, float(np.median(samples[control]) / np.median(samples[first])))


def _enough(done: int, rounds: int, long_enough: bool, *, late: bool) -> bool:
    return (done >= rounds and long_enough) or (late and done >= _FEWEST_ROUNDS)


def _order(names: list[str], number: int) -> list[str]:
    """Rotated by one every other round and reversed in between, so that no name always comes first or after the same one."""
    start = number // 2 % len(names)
    rotated = names[start:] + names[:start]
    return rotated if number % 2 == 0 else rotated[::-1]


def _warm_up(call: Call, warmup: int, *, max_seconds: float, clock: Callable[[], float]) -> int:
    """Calls untimed until caches and lazy set-up are done; gives how many calls make one sample."""
    began, fastest = clock(), math.inf
    for _ in range(warmup):
        before = clock()
        call()
        after = clock()
        fastest = min(fastest, after - before)
        if after - began > max_seconds:
            break
    return max(1, math.ceil(_SHORTEST_SAMPLE_SECONDS / max(fastest, 1e-7)))


def _sample(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    """Milliseconds a call, averaged over `repeats` calls."""
    before = clock()
    for _ in range(repeats):
        call()
    return 1000 * (clock() - before) / repeats


def _summary(times_ms: tuple[float, ...], repeats: int) -> Latency:
    p50_ms, p95_ms = np.quantile(times_ms, [0.5, 0.95])
    return Latency(float(p50_ms), float(p95_ms), min(times_ms), float(np.mean(times_ms)), len(times_ms), repeats)
