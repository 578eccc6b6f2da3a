"""`lighten verify DIR`: the hashes, and the truth gate once more, on this machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lighten import catalog
from lighten.core.cost import Target
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.source import load_data
from lighten.evaluate.collect import collect
from lighten.evaluate.metrics import score
from lighten.evaluate.parity import parity
from lighten.evaluate.predictions import Pass
from lighten.evaluate.probe import collect_probe
from lighten.read.saved import load_saved
from lighten.result import MODEL_FILE, damaged_files, read_manifest

_PARITY_EXAMPLES = 64
_LEAST_SQNR_DB = 10.0


def verify(folder: str | Path, *, data: Data | str | Path | None = None, threads: int | None = None) -> dict[str, Any]:
    """Checks a folder that lighten wrote: {"ok": bool, "checks": [{"name", "ok", "detail"}]}.

    Hashes of all files; that the file holds the operators the report counts; with `data` (or the report's own source, where
    it is still there and unchanged) that the file agrees with the reloaded torch graph and scores as reported. threads: the
    report's number when None. Raises InputError when the folder is not one that lighten wrote.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    checks = [
        _check("hashes", not damaged, f"{len(manifest['files'])} files" if not damaged else f"changed: {', '.join(damaged)}")
    ]
    if not damaged:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        target = Target(report["runtime"], threads=threads or report["threads"], batch=report["batch"])
        checks += _truth(folder, report, target, data)
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _truth(folder: Path, report: dict[str, Any], target: Target, source: Data | str | Path | None) -> list[dict[str, Any]]:
    exporter = catalog.exporter(target.runtime)
    model, session = load_saved(folder), exporter.open(folder / MODEL_FILE, target)
    operators = exporter.operators(folder / MODEL_FILE)
    same_operators = operators == report["operators"]
    checks = [
        _check("operators", same_operators, _counts(operators) if same_operators else f"{operators}, not {report['operators']}")
    ]
    data, why_not = _data(source, report, model)
    if data is None:
        return [*checks, _check("score", True, f"not repeated: {why_not}")]
    data = replace(data, metric=report["metric"])
    how = Pass(data.task, batch_size=target.batch, limit=_PARITY_EXAMPLES)
    found = parity(model.module, session, data.test, how=how)
    needed = min(report["parity"]["sqnr_db"] - 3.0, 40.0) if source is None else _LEAST_SQNR_DB
    checks.append(_check("parity", found.sqnr_db >= needed, f"largest difference {found.max_abs:.4g}, {found.sqnr_db:.1f} dB"))
    measured = _score(session, data, target)
    reported = report["compressed"]["score"]
    same = abs(measured - reported) <= 1e-6 * max(1.0, abs(reported)) or source is not None
    return [*checks, _check("score", same, f"{data.metric} {measured:.6g}, reported {reported:.6g}")]


def _score(session: Any, data: Data, target: Target) -> float:
    how = Pass(data.task, batch_size=target.batch)
    if data.metric == "probe":
        made = collect_probe(session, train=data.calibration, test=data.test, how=how, what="scoring")
    else:
        made = collect(session, data.test, how=how, what="scoring")
    return score(data.metric, made.values, made.targets)


def _data(source: Data | str | Path | None, report: dict[str, Any], model: Model) -> tuple[Data | None, str]:
    if type(source) is Data:
        return source, ""
    if source is not None:
        return load_data(source, model=model, seed=report["seed"]), ""
    recorded = report["data"]["source"]
    try:
        data = load_data(recorded, model=model, seed=report["seed"])
    except InputError as error:
        return None, f"the data {recorded} cannot be read here ({error.message}); name it with --data"
    if report["metric"] == "agreement":
        return None, "the score is agreement with the original, which is not in the folder; use lighten compare"
    return (
        (data, "")
        if data.digest == report["data"]["digest"]
        else (None, f"the data {recorded} has changed; name it with --data")
    )


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}


def _counts(operators: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in operators.items())
