"""Timing with a clock that only moves when a call takes time, so every figure is known."""

import random

import pytest

from lighten.core.errors import InputError
from lighten.evaluate.latency import time_interleaved


class Clock:
    """Seconds that pass only in calls."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def taking(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return call


def test_constant_calls_give_their_time_exactly():
    clock = Clock()
    timing = time_interleaved(
        {"fp32": clock.taking("fp32", 0.004), "int8": clock.taking("int8", 0.002)}, rounds=10, clock=clock
    )
    fp32, int8 = timing.latencies["fp32"], timing.latencies["int8"]
    assert (fp32.p50_ms, fp32.p95_ms, fp32.min_ms, fp32.mean_ms) == pytest.approx((4, 4, 4, 4))
    assert int8.p50_ms == pytest.approx(2)
    assert timing.ratio_interval("int8", "fp32") == pytest.approx((0.5, 0.5))
    assert timing.noise_ratio == pytest.approx(1)
    assert list(timing.latencies) == ["fp32", "int8"]


def test_every_round_calls_each_name_once_and_the_first_twice_in_changing_order():
    clock = Clock()
    calls = {name: clock.taking(name, 0.01) for name in "abc"}
    time_interleaved(calls, rounds=8, warmup=1, min_seconds=0, clock=clock)
    rounds = [clock.log[start : start + 4] for start in range(4, len(clock.log), 4)]
    assert len(rounds) == 8
    assert all(sorted(one) == ["a", "a", "b", "c"] for one in rounds)
    assert len({one[0] for one in rounds}) == 3
    followers = {one[one.index("c") - 1] for one in rounds if one.index("c")}
    assert followers == {"a", "b"}


def test_short_calls_are_repeated_until_a_sample_lasts_a_millisecond():
    clock = Clock()
    timing = time_interleaved({"tiny": clock.taking("tiny", 3e-5)}, rounds=5, warmup=1, min_seconds=0, clock=clock)
    assert timing.latencies["tiny"].repeats == 34
    assert timing.latencies["tiny"].p50_ms == pytest.approx(0.03)
    assert len(clock.log) == 2 + 2 * 5 * 34


def test_measuring_goes_on_until_the_least_time_has_passed():
    clock = Clock()
    timing = time_interleaved({"a": clock.taking("a", 0.002)}, rounds=5, warmup=1, min_seconds=0.3, clock=clock)
    assert timing.latencies["a"].count == 150


def test_the_time_bound_ends_the_rounds_but_never_before_three():
    clock = Clock()
    timing = time_interleaved({"a": clock.taking("a", 1.0)}, rounds=100, warmup=2, max_seconds=20, clock=clock)
    assert 3 <= timing.latencies["a"].count <= 10
    assert clock.now <= 22
    slow = time_interleaved({"a": clock.taking("a", 50.0)}, rounds=100, max_seconds=20, clock=clock)
    assert slow.latencies["a"].count == 3


def test_drift_that_hits_both_alike_does_not_hide_a_small_gain():
    """The machine slows down threefold during the run; the true ratio is 0.95 and the noise of a call 1 %."""
    clock, chance = Clock(), random.Random(0)

    def drifting(seconds):
        return lambda: seconds * (1 + clock.now) * chance.gauss(1, 0.01)

    timing = time_interleaved(
        {"fp32": clock.taking("fp32", drifting(0.01)), "int8": clock.taking("int8", drifting(0.0095))},
        rounds=40,
        min_seconds=0,
        max_seconds=1e9,
        clock=clock,
    )
    low, high = timing.ratio_interval("int8", "fp32")
    assert low < 0.95 < high
    assert timing.is_faster("int8", "fp32")
    assert not timing.is_faster("fp32", "int8")


def test_equal_calls_are_not_called_faster():
    clock, chance = Clock(), random.Random(1)
    calls = {name: clock.taking(name, lambda: 0.01 * chance.gauss(1, 0.05)) for name in ("a", "b")}
    timing = time_interleaved(calls, rounds=60, clock=clock)
    assert not timing.is_faster("a", "b")
    assert not timing.is_faster("b", "a")
    assert timing.noise_ratio == pytest.approx(
        1, abs=0.03
    )  # medians of 60: 1.25 x 5 % / sqrt(60) each, so 3 % is 2.6 deviations


def test_three_rounds_claim_nothing():
    clock = Clock()
    timing = time_interleaved({"a": clock.taking("a", 30.0), "b": clock.taking("b", 10.0)}, max_seconds=1, clock=clock)
    assert timing.latencies["b"].count == 3
    assert timing.ratio_interval("b", "a") == pytest.approx((1 / 3, 1 / 3))
    assert not timing.is_faster("b", "a")


def test_nothing_to_time_is_refused():
    with pytest.raises(InputError, match="nothing to time"):
        time_interleaved({})
