"""Networks timed where they will run: written for the target, opened in its runtime and called in turns."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lighten.core.cost import Target
from lighten.core.data import Batch
from lighten.core.export import Exporter, Session
from lighten.core.model import Model
from lighten.core.run import Clock, Progress, Ranks, Times
from lighten.evaluate.latency import time_interleaved

_ROUNDS = 40
_LEAST_NOISE = 0.02  # what equal files differ by on a quiet machine with calls this short


@dataclass
class FileClock:
    """A core.run.Clock. batch: what every network is called with. folder: for the files."""

    exporter: Exporter
    target: Target
    batch: Batch
    folder: Path
    progress: Progress

    def __call__(self, models: Mapping[str, Callable[[], Model]], /) -> Times:
        """noise: how far the first network's second timing was from its first, at least 2 %."""
        tracked = self.progress.track(models.items(), what="writing networks to time", total=len(models))
        opened = {name: self.exporter.open(self._written(name, build), self.target) for name, build in tracked}
        timing = time_interleaved({name: _call(session, self.batch) for name, session in opened.items()}, rounds=_ROUNDS)
        seconds = {name: latency.p50_ms / 1000 for name, latency in timing.latencies.items()}
        return Times(seconds, max(abs(timing.noise_ratio - 1), _LEAST_NOISE))

    def _written(self, name: str, build: Callable[[], Model]) -> Path:
        """The network's file, which says by its name that it is there already."""
        path = self.folder / f"timed-{hashlib.sha256(name.encode()).hexdigest()[:16]}{self.exporter.suffix}"
        if not path.is_file():
            self.exporter.write_float(build(), path)
        return path


@dataclass
class SharedClock:
    """A core.run.Clock of all ranks: the first one measures, as two that measure at once disturb each other."""

    ranks: Ranks
    clock: Clock

    def __call__(self, models: Mapping[str, Callable[[], Model]], /) -> Times:
        """The first rank's times."""
        times = self.clock(models) if self.ranks.number == 0 else None
        seconds, noise = self.ranks.share(times and [dict(times.seconds), times.noise], is_patient=True)
        return Times(seconds, noise)


def _call(session: Session, batch: Batch) -> Callable[[], object]:
    return lambda: session(*batch.inputs)
