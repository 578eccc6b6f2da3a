"""Several runtimes in the report: one row each, the recommended one marked, the reason where there is no file."""

from typing import Any

from lighten.report.page import page
from lighten.report.table import table


def report() -> dict[str, Any]:
    original = {"latency_ms_p50": 4.0}
    fast = {"runtime": "openvino", "version": "2026.4", "size_bytes": 2_000_000, "latency_ms_p50": 1.5, "latency_ms_p95": 1.75}
    fast |= {"score": 0.91, "parity": {"sqnr_db": 41.5}, "peak_memory_bytes": 90_000_000, "original": original}
    slow = fast | {"runtime": "onnxruntime", "latency_ms_p50": 2.5, "latency_ms_p95": 2.75}
    rows = [slow, fast | {"recommended": True}, {"runtime": "litert", "why": "No form for a <b> operator."}]
    return {"metric": "accuracy", "baseline_runtime": "openvino", "runtimes": rows}


def test_the_terminal_has_a_row_for_each() -> None:
    rows = [line.split() for line in table(report()).splitlines()]
    assert next(row[:9] for row in rows if row and row[0] == "openvino") == [
        "openvino",
        "2.00",
        "MB",
        "1.50",
        "ms",
        "1.75",
        "ms",
        "4.00",
        "ms",
    ]
    assert [row[0] for row in rows if "recommended" in row] == ["openvino"]
    assert next(row for row in rows if row and row[0] == "litert")[-1] == "operator."


def test_the_page_marks_the_recommended_one_and_escapes_the_reason() -> None:
    made = page(report())
    assert made.count('<tr class="chosen">') == 1
    assert "litert: No form for a &lt;b&gt; operator." in made
    assert "fastest float32 of all: that of openvino" in made


def test_one_runtime_alone_has_no_table() -> None:
    alone = report() | {"runtimes": report()["runtimes"][:1]}
    assert "Runtimes" not in page(alone)
    assert "recommended" not in table(alone)
