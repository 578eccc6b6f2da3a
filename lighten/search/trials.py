"""Plans tried for real: each becomes a file, is loaded in the runtime, scored on the test examples and timed.

A trial is remembered by its plan, so a resumed run does not repeat it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lighten.core.cost import Target
from lighten.core.data import Batch, Data, Runner
from lighten.core.export import Export, Exporter
from lighten.core.method import Compressed, Prepared
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.evaluate.collect import collect
from lighten.evaluate.latency import Timing, time_interleaved
from lighten.evaluate.paired import Comparison, compare
from lighten.evaluate.predictions import Pass, Predictions
from lighten.evaluate.probe import collect_probe
from lighten.evaluate.zeros import require_zeros
from lighten.search.sensitivity import Effect

ORIGINAL = "original"


@dataclass(frozen=True)
class Trial:
    """One plan, measured. name: a few words for the report. comparison: with the original on the test examples."""

    name: str
    plan: Plan
    compressed: Compressed
    export: Export
    predictions: Predictions
    comparison: Comparison


@dataclass
class Trials:
    """The bench on which plans are tried. folder: holds the files. seen: every trial so far, by plan key. effects: of
    layers quantized alone, by site and bits of the weight, where the search asked.
    """

    model: Model
    prepared: Prepared
    data: Data
    exporter: Exporter
    target: Target
    run: Run
    folder: Path
    seen: dict[str, Trial] = field(default_factory=dict)
    effects: dict[str, dict[int, Effect]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.original = self.exporter.write_float(self.model, self.folder / f"original{self.exporter.suffix}")
        self.baseline = self.predict(self.original.path, "scoring the original", key="original")
        self.timed_on = representative_batch(self.data, self.target)

    def predict(self, path: Path, what: str, *, key: str) -> Predictions:
        """What the file says about the test examples, in the runtime, at the target's batch size."""

        def compute() -> dict[str, Any]:
            made = self._collect(self.exporter.open(path, self.target), what)
            parts = {"values": made.values, "targets": made.targets, "index": made.index}
            return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items() if part is not None}

        where = self.target.runtime
        kept = {
            name: part.numpy() for name, part in self.run.memory.remember_tensors(f"predictions-{where}-{key}", compute).items()
        }
        return Predictions(self.data.task, kept["values"], kept.get("targets"), kept["index"])

    def attempt(self, plan: Plan, name: str) -> Trial:
        """The plan as a file, scored. At once when the plan was tried before."""
        key = plan.key()
        if key not in self.seen:
            compressed = self.prepared.realize(plan)
            require_zeros(compressed, self.prepared.graph, step="the last step")
            export = self.exporter.write(compressed, self.folder / f"{key}{self.exporter.suffix}")
            predictions = self.predict(export.path, f"scoring {name}", key=key)
            comparison = self.compare(predictions)
            self.seen[key] = Trial(name, plan, compressed, export, predictions, comparison)
            self.run.ledger.note(
                "try", name=name, runtime=self.target.runtime, drop=comparison.drop, size_bytes=export.size_bytes
            )
        return self.seen[key]

    def compare(self, predictions: Predictions) -> Comparison:
        """With the original, on the same examples."""
        return compare(self.baseline, predictions, metric=self.data.metric, seed=self.run.seed, labels=self.data.labels)

    def time(self, paths: Mapping[str, Path], *, rounds: int = 30) -> Timing:
        """The original and the files in `paths`, interleaved call by call on one representative batch."""
        sessions = {ORIGINAL: self.original.path, **paths}
        return time_interleaved({name: self.call(path) for name, path in sessions.items()}, rounds=rounds)

    def call(self, path: Path) -> Callable[[], object]:
        """The file in its runtime, called with one representative batch."""
        session, batch = self.exporter.open(path, self.target), self.timed_on
        return lambda: session(*batch.inputs)

    def _collect(self, session: Runner, what: str) -> Predictions:
        how = Pass(self.data.task, batch_size=self.target.batch, progress=self.run.progress)
        if self.data.metric == "probe":
            return collect_probe(session, train=self.data.calibration, test=self.data.test, how=how, what=what)
        return collect(session, self.data.test, how=how, what=what)


def representative_batch(data: Data, target: Target) -> Batch:
    """What to time on: the largest of the first 64 test batches: for texts of many lengths a long one, for images any one."""
    batches = list(data.test.batches(target.batch, 64 * target.batch))
    full = [batch for batch in batches if len(batch.index) == target.batch] or batches
    return max(full, key=lambda batch: sum(value.numel() for value in batch.inputs))
