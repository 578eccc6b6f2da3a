"""The results of run.py as Markdown."""

from typing import Any


def table(results: dict[str, Any], networks: tuple[str, ...]) -> str:
    """Markdown, a section a network."""
    parts = [
        f"Machine: {results['machine']['processor']}, {results['machine']['cores']} cores; {results['threads']} thread(s).\n"
    ]
    return "\n".join(parts + [section(name, results[name]) for name in networks if name in results])


def section(name: str, facts: dict[str, Any]) -> str:
    """One network's table: every tool's score, drop, bytes and seconds, and its time at one thread over float32's in ONNX
    Runtime. "step s" is the tool's quantizing call, "module to file s" all from the torch module: for the peers the float32
    export, which they start from, comes on top.
    """
    head = f"### {name} ({facts['metric']}, {facts['num_test']} test, {facts['num_calibration']} calibration examples)\n"
    columns = (
        "tool",
        "score",
        "drop (95 % interval)",
        "bytes",
        "of fp32",
        "step s",
        "module to file s",
        "p50 ms",
        "times as fast",
    )
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    times = facts.get("latency", {}).get("threads", {}).get("1", {})
    for tool, entry in facts.items():
        if isinstance(entry, dict) and "score" in entry:
            rows.append(row(tool, entry, original=facts["original"], time=times.get(tool, {})))
        elif isinstance(entry, dict) and entry.keys() & {"error", "skipped"}:
            reason = str(entry.get("error") or entry.get("skipped")).replace("|", "/").replace("\n", " ")
            rows.append(f"| {tool} | {reason[:120]} |" + " |" * (len(columns) - 2))
    return "\n".join([head, *rows, foot(facts, times)])


def foot(facts: dict[str, Any], times: dict[str, Any]) -> str:
    """What the figures stand on: float32, what the clock cannot tell apart, and how busy the machine was."""
    lines = [f"\nfloat32 in ONNX Runtime: {facts['original']['bytes']:,} bytes."]
    if times:
        lines[0] = f"{lines[0][:-1]}, {times['original']['latency_ms_p50']:.2f} ms."
        again, busy = times["original_again"]["of_original"], facts["latency"]["cores_used_by_others"]["1"]
        lines.append(f"The same file a second time took {again:.2f} of it; other work used {busy} cores during the timing.")
    if "lighten_int8" in facts:
        mine = facts["lighten_int8"]
        lines.append(
            f"lighten_int8 over plain forward passes plus float32 export: {mine['whole_of_plain']:.2f} with its trace, "
            f"{mine['steps_of_plain']:.2f} without; other work used {mine['cores_used_by_others']} cores meanwhile."
        )
    return "\n".join(lines) + "\n"


def row(tool: str, entry: dict[str, Any], *, original: dict[str, Any], time: dict[str, Any]) -> str:
    """One tool's line."""
    low, high = entry["drop_interval"]
    step, whole = seconds(entry, original)
    cells = (
        tool,
        f"{entry['score']:.4f}",
        f"{entry['drop']:+.4f} ({low:+.4f} to {high:+.4f})",
        f"{entry['bytes']:,}",
        f"{entry['bytes'] / original['bytes']:.3f}",
        "" if step is None else f"{step:.1f}",
        f"{whole:.1f}",
        f"{time['latency_ms_p50']:.2f}" if time else "",
        f"{1 / time['of_original']:.2f}" if time else "",
    )
    return f"| {' | '.join(cells)} |"


def seconds(entry: dict[str, Any], original: dict[str, Any]) -> tuple[float | None, float]:
    """Of the quantizing call, None where it is not apart from a search, and all from the torch module to this very file."""
    if "compress_seconds" in entry:
        return None, entry["compress_seconds"]
    if "whole_seconds" in entry:
        return entry["quantize_seconds"], entry["whole_seconds"]
    return entry.get("seconds"), original["export_float_seconds"] + entry["seconds_whole"]
