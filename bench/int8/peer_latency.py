"""Latency of several files in one process, call by call, and how busy the rest of the machine was meanwhile (Linux)."""

import gc
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from peer_tools import Feed, Runner

NUM_WARM_UP, MIN_ROUNDS, MIN_SECONDS = 5, 50, 20.0


class OtherLoad:
    """How many cores the rest of the machine keeps busy from now on; latencies count only where this is near 0."""

    def __init__(self) -> None:
        self._began, self._busy = time.perf_counter(), self._seconds()

    @staticmethod
    def _seconds() -> float:
        # Linux: user, nice and system time of all cores in ticks, less this process's own
        ticks = Path("/proc/stat").read_text().split()[1:4]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])

    def cores(self) -> float:
        """Their average number since the start."""
        return round((self._seconds() - self._busy) / (time.perf_counter() - self._began), 2)


def interleave(runners: dict[str, Runner], feed: Feed) -> dict[str, list[float]]:
    """Milliseconds of each call. The order is drawn anew each round, or each file would always run after the same other."""
    samples: dict[str, list[float]] = {name: [] for name in runners}
    order, shuffle = list(runners), random.Random(0).shuffle
    for _ in range(NUM_WARM_UP):
        for run in runners.values():
            run(feed)
    gc.disable()
    began = time.perf_counter()
    while len(samples[order[0]]) < MIN_ROUNDS or time.perf_counter() - began < MIN_SECONDS:
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            runners[name](feed)
            samples[name].append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return samples


def summarize(samples: dict[str, list[float]]) -> dict[str, Any]:
    """p50, p95, count, and the median over rounds of this file's time over the original's."""
    original = np.array(samples["original"])
    return {
        name: {
            "latency_ms_p50": float(np.percentile(values, 50)),
            "latency_ms_p95": float(np.percentile(values, 95)),
            "of_original": float(np.median(np.array(values) / original)),
            "count": len(values),
        }
        for name, values in samples.items()
    }
