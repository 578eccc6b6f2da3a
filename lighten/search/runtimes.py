"""The same network in several runtimes: each has its own best file, and all of them run against one another in one run.

What is fast in one runtime need not be in another, so each has a search of its own, on what was prepared once. The last timing
is common: every runtime's original and file, interleaved. Each file is held against the fastest original of all, in whichever
runtime that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lighten.core.cost import Budget
from lighten.evaluate.latency import Timing, time_interleaved
from lighten.search.faster import CHOSEN, Speed
from lighten.search.trials import ORIGINAL, Trials

_CLOSE = 0.01
_ROUNDING = 1e-9  # 1 - 475 / 500 is 0.05 and a few last bits


@dataclass(frozen=True)
class Contender:
    """One runtime's best file. trials: where it was found. original: the runtime's own float32 file, timed in the same run."""

    trials: Trials
    speed: Speed
    original_ms: tuple[float, float] | None = None

    @property
    def runtime(self) -> str:
        """The exporter's catalog key."""
        return self.trials.target.runtime


def race(contenders: Sequence[Contender], *, rounds: int) -> list[Contender]:
    """The contenders with times of one interleaved run."""
    calls = {}
    for one in contenders:
        calls[_original(one)] = one.trials.call(one.trials.original.path)
        calls[_file(one)] = one.trials.call(one.speed.trial.export.path)
    timing = time_interleaved(calls, rounds=rounds)
    fastest = min(contenders, key=lambda one: timing.latencies[_original(one)].p50_ms)
    return [_timed(one, timing, fastest) for one in contenders]


def best(contenders: Sequence[Contender], budget: Budget) -> Contender:
    """The fastest of those that hold the contract; the one that drops least where none does. Without a limit on the drop, those
    that drop hardly more than the best: speed alone is not what was asked for.
    """
    least = min(one.speed.trial.comparison.drop for one in contenders)
    most = budget.max_drop if budget.max_drop is not None else least + _CLOSE

    def merit(one: Contender) -> tuple[bool, bool, bool, float, float]:
        trial, taken = one.speed.trial, one.speed.timing.latencies[CHOSEN].p50_ms
        holds = trial.comparison.drop <= most + _ROUNDING
        fits = budget.size_bytes is None or trial.export.size_bytes <= budget.size_bytes
        is_quick = budget.latency_ms is None or taken <= budget.latency_ms
        return holds, fits, is_quick, 0.0 if holds else -trial.comparison.drop, -taken

    return max(contenders, key=merit)


def _timed(one: Contender, timing: Timing, fastest: Contender) -> Contender:
    names = {ORIGINAL: _original(fastest), CHOSEN: _file(one)}
    own = Timing(
        {name: timing.latencies[source] for name, source in names.items()},
        {name: timing.samples_ms[source] for name, source in names.items()},
        timing.noise_ratio,
    )
    original = timing.latencies[_original(one)]
    speed = replace(one.speed, timing=own, against=fastest.runtime)
    return replace(one, speed=speed, original_ms=(original.p50_ms, original.p95_ms))


def _original(one: Contender) -> str:
    return f"{one.runtime}, {ORIGINAL}"


def _file(one: Contender) -> str:
    return f"{one.runtime}, {CHOSEN}"
