"""Two networks side by side on the same data: scores, the drop with its interval, flips, and time, interleaved."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten import catalog
from lighten.core.cost import Target
from lighten.core.data import Data, Runner
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.run import Progress, Silent
from lighten.data.source import load_data
from lighten.engine.threads import torch_threads
from lighten.evaluate.collect import collect
from lighten.evaluate.latency import time_interleaved
from lighten.evaluate.metrics import metric_named
from lighten.evaluate.paired import compare as compare_predictions
from lighten.evaluate.predictions import Pass, Predictions
from lighten.evaluate.probe import collect_probe
from lighten.read.source import load
from lighten.result import MANIFEST, exported_file, read_manifest

Source = Model | nn.Module | str | Path


@dataclass(frozen=True)
class _Side:
    """A network ready to run. model: None where only an exported file is there. where: the runtime it runs in."""

    name: str
    runner: Runner
    model: Model | None
    where: str
    size_bytes: int | None


def compare(
    first: Source,
    second: Source,
    data: str | Path | Data,
    *,
    metric: str | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores, drop (positive when `second` is worse), its 95 % interval, flips and latency, as JSON data.

    first, second: an exported file (.onnx, .xml) or a folder that lighten wrote (both run in their runtime), or anything
    `lighten.load` reads (runs in torch). At least one must be more than a file, since the data is prepared for a model.
    metric: what is scored; what suits the data when None. Raises InputError as the readers do.
    """
    target, progress = target or Target(), progress or Silent()
    sides = [_open(first, target), _open(second, target)]
    model = next((side.model for side in sides if side.model is not None), None)
    if type(data) is not Data:
        data = load_data(data, model=_needed(model), progress=progress)
    if metric is not None:
        data = replace(data, metric=metric_named(metric).name)
    with torch_threads(target.threads):
        predictions = [_predict(side, data, target, progress=progress) for side in sides]
        latency = _time(sides, data, target)
    compared = compare_predictions(*predictions, metric=data.metric, labels=data.labels)
    return {
        "metric": data.metric,
        "num_examples": compared.num_examples,
        **{name: _facts(side) for name, side in zip(("first", "second"), sides, strict=True)},
        "first_score": compared.original_score,
        "second_score": compared.compressed_score,
        "drop": compared.drop,
        "drop_interval": list(compared.drop_interval),
        "drop_method": compared.method,
        "flips": compared.flips.to_dict(),
        "latency": latency,
        "threads": target.threads,
        "batch": target.batch,
    }


def _open(source: Source, target: Target) -> _Side:
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and path.suffix in catalog.SUFFIXES:
        return _file_side(path, None, target)
    model = load(source)
    if path is not None and model.origin.kind == "saved" and (path / MANIFEST).is_file():
        return _file_side(exported_file(path, read_manifest(path)), model, target)
    return _Side(model.origin.source, model.module, model, "torch", None)


def _file_side(file: Path, model: Model | None, target: Target) -> _Side:
    if not file.is_file():
        raise InputError(f"{file} does not exist.")
    target = replace(target, runtime=catalog.SUFFIXES[file.suffix])
    session = catalog.exporter(target.runtime).open(file, target)
    return _Side(str(file), session, model, target.runtime, file.stat().st_size)


def _needed(model: Model | None) -> Model:
    if model is None:
        raise InputError(
            "Two .onnx files say nothing about how to prepare the data.",
            hint="Name one as a folder or model that lighten loads.",
        )
    return model


def _predict(side: _Side, data: Data, target: Target, *, progress: Progress) -> Predictions:
    how = Pass(data.task, batch_size=target.batch, progress=progress)
    if data.metric == "probe":
        return collect_probe(side.runner, train=data.calibration, test=data.test, how=how, what=f"scoring {side.name}")
    return collect(side.runner, data.test, how=how, what=f"scoring {side.name}")


def _facts(side: _Side) -> dict[str, Any]:
    return {"source": side.name, "runtime": side.where, "size_bytes": side.size_bytes}


def _time(sides: list[_Side], data: Data, target: Target) -> dict[str, Any]:
    batch = next(iter(data.test.batches(target.batch, target.batch)))

    def call(runner: Runner) -> Any:
        def run() -> None:
            with torch.no_grad():
                runner(*batch.inputs)

        return run

    timing = time_interleaved({"first": call(sides[0].runner), "second": call(sides[1].runner)})
    low, high = timing.ratio_interval("second", "first")
    milliseconds = {
        name: {"p50_ms": one.p50_ms, "p95_ms": one.p95_ms, "count": one.count} for name, one in timing.latencies.items()
    }
    return {**milliseconds, "ratio_interval": [low, high], "noise_ratio": timing.noise_ratio}
