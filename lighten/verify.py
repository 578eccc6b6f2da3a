"""`lighten verify DIR`: the hashes, and the truth gate once more, on this machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lighten import catalog
from lighten.core.cost import Target
from lighten.core.data import Data, Runner
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.source import load_data
from lighten.engine.threads import torch_threads
from lighten.evaluate.collect import collect
from lighten.evaluate.metrics import metric_named, score
from lighten.evaluate.parity import parity
from lighten.evaluate.predictions import Pass
from lighten.evaluate.probe import collect_probe
from lighten.gather import device
from lighten.read.saved import load_saved
from lighten.report.write import JSON_NAME
from lighten.result import damaged_files, exported_file, read_manifest

_PARITY_EXAMPLES = 64
_SLACK_DB = 3.0
_LEAST_SQNR_DB, _MOST_SQNR_DB = 10.0, 40.0
_ROUNDING = 1e-6


def verify(folder: str | Path, *, data: Data | str | Path | None = None, threads: int | None = None) -> dict[str, Any]:
    """Checks a folder that lighten wrote: {"ok": bool, "checks": [{"name", "ok", "detail"}]}.

    Hashes of all files; that the file holds the operators the report counts; with `data` (or the report's own source, where
    it is still there and unchanged) that the file agrees with the reloaded torch graph and scores as reported: on the same
    processor to rounding, on another, whose kernels round elsewhere, within the half width of the report's interval. Where
    `data` are other examples than the report's, the score is only told. threads: the report's number when None. Raises
    InputError when the folder is not one that lighten wrote.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    detail = f"changed: {', '.join(damaged)}" if damaged else f"{len(manifest['files'])} files"
    checks = [_check("hashes", not damaged, detail)]
    if not damaged:
        report = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        target = Target(report["runtime"], threads=report["threads"] if threads is None else threads, batch=report["batch"])
        with torch_threads(target.threads):
            checks += _truth(folder, report, target, data)
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _truth(folder: Path, report: dict[str, Any], target: Target, source: Data | str | Path | None) -> list[dict[str, Any]]:
    exporter = catalog.exporter(target.runtime)
    file = exported_file(folder, read_manifest(folder))
    model, session = load_saved(folder), exporter.open(file, target)
    operators = exporter.operators(file)
    same_operators = operators == report["operators"]
    checks = [
        _check("operators", same_operators, _counts(operators) if same_operators else f"{operators}, not {report['operators']}")
    ]
    data, why_not = _data(source, report, model)
    if data is None:
        return [*checks, *(_check(name, True, f"not repeated: {why_not}") for name in ("parity", "score"))]
    data = replace(data, metric=report["metric"])
    return [*checks, _parity(model, session, data, report), _score(session, data, target, report)]


def _parity(model: Model, session: Runner, data: Data, report: dict[str, Any]) -> dict[str, Any]:
    how = Pass(data.task, batch_size=report["batch"], limit=_PARITY_EXAMPLES)
    found = parity(model.module, session, data.test, how=how)
    reported = report["parity"]["sqnr_db"]  # null where there was no difference at all
    same = _MOST_SQNR_DB if reported is None else min(reported - _SLACK_DB, _MOST_SQNR_DB)
    needed = same if _is_reported(data, report) else _LEAST_SQNR_DB
    return _check("parity", found.sqnr_db >= needed, f"largest difference {found.max_abs:.4g}, {found.sqnr_db:.1f} dB")


def _score(session: Runner, data: Data, target: Target, report: dict[str, Any]) -> dict[str, Any]:
    metric = metric_named(data.metric)
    if metric.against_original is not None:
        return _check("score", True, f"not repeated: {data.metric} needs the original; use lighten compare")
    how = Pass(data.task, batch_size=target.batch)
    if data.metric == "probe":
        made = collect_probe(session, train=data.calibration, test=data.test, how=how, what="scoring")
    else:
        made = collect(session, data.test, how=how, what="scoring")
    measured, reported = score(data.metric, made.values, made.targets), report["compressed"]["score"]
    low, high = report["drop_interval"]
    scale = max(1.0, abs(reported))
    allowed = _ROUNDING * scale
    if report["device"] != device():
        allowed += (high - low) / 2 * (scale if metric.scale == "relative" else 1.0)
    holds = abs(measured - reported) <= allowed
    if _is_reported(data, report):
        return _check("score", holds, f"{data.metric} {measured:.6g}, reported {reported:.6g}")
    return _check(
        "score", True, f"{data.metric} {measured:.6g} on these {len(data.test)} examples; reported {reported:.6g} on others"
    )


def _is_reported(data: Data, report: dict[str, Any]) -> bool:
    """True for the very examples of the report."""
    return bool(data.digest) and data.digest == report["data"]["digest"]


def _data(source: Data | str | Path | None, report: dict[str, Any], model: Model) -> tuple[Data | None, str]:
    if source is not None:
        return load_data(source, model=model, seed=report["seed"]), ""
    recorded = report["data"]["source"]
    try:
        data = load_data(recorded, model=model, seed=report["seed"])
    except InputError as error:
        return None, f"the data {recorded} cannot be read here ({error.message}); name it with --data"
    return (data, "") if _is_reported(data, report) else (None, f"the data {recorded} has changed; name it with --data")


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}


def _counts(operators: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in operators.items())
