"""The report as plain text for a terminal, plain ASCII but for the dash of an unknown figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from lighten.report import figures
from lighten.report.comparison import lines
from lighten.report.schema import Contract, Report, known
from lighten.report.sections import runtimes
from lighten.report.sections.contract import NAMES, WRITERS
from lighten.report.sections.verdict import title


def table(report: Mapping[str, Any]) -> str:
    """Before and after, then the contract limit by limit, then the notes; ends without a line break."""
    facts = known(report)
    compared = [
        ("", "original", "compressed", "change"),
        *((one.name, one.before, one.after, one.change) for one in lines(facts)),
    ]
    parts = [_columns(compared)] if len(compared) > 1 else ["Nothing was measured."]
    if several := runtimes.lines(facts):
        parts.append(_columns(several))
    terms = _terms(facts)
    parts.append("\n".join([f"{title(facts)}.", *terms]))
    parts.extend(facts.get("notes", []))
    return "\n\n".join(parts)


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    """The first and last column to the left, the figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    made = (
        [f"{row[0]:<{widths[0]}}", *(f"{one:>{width}}" for one, width in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        for row in rows
    )
    return "\n".join("  ".join(parts).rstrip() for parts in made)


def _terms(report: Report) -> list[str]:
    contract, reasons = report.get("contract", Contract()), _reasons(report)
    limits = {
        "max_drop": contract.get("max_drop"),
        "size_bytes": contract.get("size_bytes"),
        "latency_ms": contract.get("latency_ms"),
    }
    made = []
    for key, term in limits.items():
        if term is None or "limit" not in term:
            continue
        write = WRITERS[key]
        state = {True: "holds", False: "broken", None: "undecided"}[term.get("holds")]
        measured = figures.shown(term.get("measured"), write)
        reason = f": {reasons[key]}" if key in reasons else ""
        made.append(f"  {NAMES[key]:<9}  {measured:>9}  limit {write(term['limit']):>9}  {state}{reason}")
    return made


def _reasons(report: Report) -> dict[str, str]:
    return {
        entry["constraint"]: entry["why"] for entry in report.get("broken", []) if "constraint" in entry and entry.get("why")
    }
