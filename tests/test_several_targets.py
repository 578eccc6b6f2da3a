"""Several runtimes in one run: a file each, checked and timed together, one recommended."""

import json
from pathlib import Path

import pytest
from networks import images, residual

import lighten
from lighten import catalog
from lighten.core.errors import UnfitError
from lighten.core.spec import Quant
from lighten.export.onnx import OnnxExporter
from lighten.result import Result, read_manifest
from lighten.targets import FORMS, table, targets

pytest.importorskip("openvino", reason="needs lighten[openvino]")
TARGET = lighten.Target("onnxruntime,openvino")
PLAN = lighten.Plan({"stem": Quant(), "depthwise": Quant(), "project": Quant()})  # one file a runtime, no search


@pytest.fixture(scope="module")
def result() -> Result:
    return lighten.compress(residual(), images(), target=TARGET, recipe=lighten.Recipe(plan=PLAN))


def test_each_runtime_has_a_row_and_one_is_recommended(result: Result) -> None:
    rows = {row["runtime"]: row for row in result.report["runtimes"]}
    assert set(rows) == {"onnxruntime", "openvino"}
    assert [name for name, row in rows.items() if row["recommended"]] == [result.report["runtime"]]
    fastest = min(rows.values(), key=lambda row: row["original"]["latency_ms_p50"])
    assert result.report["baseline_runtime"] == fastest["runtime"]
    assert result.report["baseline"]["latency_ms_p50"] == fastest["original"]["latency_ms_p50"]
    assert result.report["speedup"] == pytest.approx(
        fastest["original"]["latency_ms_p50"] / rows[result.report["runtime"]]["latency_ms_p50"]
    )
    assert all(row["parity"]["sqnr_db"] > 20 and row["peak_memory_bytes"] > 1e7 for row in rows.values())


def test_the_folder_holds_every_file_and_verifies(result: Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    rows = {row["runtime"]: row for row in json.loads((folder / "report.json").read_text())["runtimes"]}
    for row in rows.values():
        assert {name: (folder / name).stat().st_size for name in row["files"]} == row["files"]
        assert sum(row["files"].values()) == row["size_bytes"]
    assert {"model.onnx", "model.xml", "model.bin"} <= set(read_manifest(folder)["files"])
    assert lighten.verify(folder)["ok"]
    (folder / "model.bin").write_bytes(b"other weights")
    (hashes, *_) = lighten.verify(folder)["checks"]
    assert (hashes["ok"], hashes["detail"]) == (False, "changed: model.bin")


def test_a_runtime_that_cannot_hold_the_network_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnfitError("No form for this network.")

    monkeypatch.setattr(OnnxExporter, "write_float", refuse)
    found = lighten.compress(residual(), images(), target=TARGET, recipe=lighten.Recipe(plan=lighten.Plan()))
    assert found.report["runtime"] == "openvino"
    assert found.model_file == "model.xml"
    refused = next(row for row in found.report["runtimes"] if row["runtime"] == "onnxruntime")
    assert refused["why"] == "No form for this network."
    with pytest.raises(UnfitError, match="No form"):
        lighten.compress(residual(), images())


def test_what_runtimes_execute_is_kept_for_each() -> None:
    found = targets()
    assert set(found) == set(catalog.names("exporters"))
    for name in ("onnxruntime", "openvino"):
        kinds = found[name]["kinds"]
        assert (kinds["conv2d"]["float32"], kinds["conv2d"]["int8"]) == ("fp32", "int8")
        assert (kinds["linear"]["int8"], kinds["linear"]["int4 weights"]) == ("int8", "int4")
        assert all(set(forms) <= set(FORMS) for forms in kinds.values())
    assert "depthwise conv2d" in table(found)


def test_an_unknown_runtime_among_several_is_refused() -> None:
    with pytest.raises(lighten.InputError, match="openvina"):
        lighten.compress(residual(), images(), target="onnxruntime,openvina")
