"""What was tried, what really runs, how it was measured, and what was done when."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighten.report import charts, figures
from lighten.report.markup import (
    NOTHING,
    Html,
    cell,
    element,
    figure,
    head,
    join,
    number,
    paragraph,
    scrolling,
    section,
    table,
    text,
)
from lighten.report.schema import BadRow, Candidate, Measurement, Parity, Report

MAX_ROWS = 200
_FEWEST_TO_SCROLL = 16
_NARROW = ("int8", "uint8", "int4", "uint4")


@dataclass(frozen=True)
class _Column:
    """cell: the candidate's entry as written, "" where there is none."""

    name: str
    cell: Callable[[Candidate], str]
    class_: str = "number"
    absent: str = figures.UNKNOWN


def candidates(report: Report) -> Html:
    """Every network that was tried, the chosen one marked; a column that nothing fills is left out."""
    tried = report.get("candidates", [])
    if not tried:
        return NOTHING
    columns = [column for column in _candidate_columns(report.get("metric", "")) if any(column.cell(one) for one in tried)]
    heads = [head("Candidate"), *(head(column.name, column.class_) for column in columns)]
    rows = (_candidate(one, columns) for one in tried[:MAX_ROWS])
    listed = table(heads, rows, class_="candidates", caption="Candidates tried")
    listed = scrolling(listed, label="Candidates tried") if len(tried) > _FEWEST_TO_SCROLL else listed
    return section("Candidates tried", listed, _cut(len(tried)), key="candidates")


def operators(report: Report) -> Html:
    """What the runtime executes after its own optimization, counted."""
    counts = report.get("operators", {})
    if not counts:
        return NOTHING
    split = sorted(((*_kind(key), amount) for key, amount in counts.items()), key=lambda one: (-one[2], one[0]))
    top, total = max(*counts.values(), 1), sum(counts.values())
    num_narrow = sum(amount for _, precision, amount in split if precision in _NARROW)
    rows = (_operator(name, precision, amount, top=top) for name, precision, amount in split)
    listed = table(
        (head("Operator"), head("Type"), head("Count", "wide")), rows, class_="operators", caption="Operators executed"
    )
    said = f"{figures.count(num_narrow)} of {figures.number_of(total, 'operator')} run on integers in the loaded file."
    listed = scrolling(listed, label="Operators executed") if len(split) > _FEWEST_TO_SCROLL else listed
    return section("Operators executed", paragraph(figure(said)), listed, key="operators")


def measured(report: Report) -> Html:
    """Everything a reader needs to judge the figures or repeat them."""
    facts = [(name, value) for name, value in (*_setting(report), *_agreement(report)) if value]
    if not facts:
        return NOTHING
    parts = join(element("div", element("dt", text(name)), element("dd", figure(value))) for name, value in facts)
    return section("How it was measured", element("dl", parts, class_="facts"), key="measured")


def steps(report: Report) -> Html:
    """The ledger, entry by entry."""
    entries = report.get("steps", [])
    if not entries:
        return NOTHING
    heads = (head("Step"), head("Ended after", "number"), head("Since the last", "wide"), head("Facts"))
    ends = [_seconds(entry) for entry in entries]
    spans = [_since(end, previous) for end, previous in zip(ends, [0.0, *ends[:-1]], strict=True)]
    top = max((span for span in spans if span is not None), default=0.0) or 1.0
    rows = (_step(entry, span, top=top) for entry, span in zip(entries[:MAX_ROWS], spans, strict=False))
    listed = table(heads, rows, class_="steps", caption="Steps of the run")
    listed = scrolling(listed, label="Steps") if len(entries) > _FEWEST_TO_SCROLL else listed
    return section("Steps", listed, _cut(len(entries)), key="steps")


def bad_rows(report: Report) -> Html:
    """The rows of the data that were left out."""
    rows = report.get("data", {}).get("bad_rows", [])
    if not rows:
        return NOTHING
    said = f"{figures.number_of(len(rows), 'row')} could not be used and took no part in any figure on this page."
    listed = table((head("Where"), head("Why")), (_bad_row(row) for row in rows[:MAX_ROWS]), class_="bad", caption="Bad rows")
    listed = scrolling(listed, label="Bad rows") if len(rows) > _FEWEST_TO_SCROLL else listed
    return section("Bad rows", paragraph(figure(said)), listed, _cut(len(rows)), key="bad-rows")


def _candidate_columns(metric: str) -> tuple[_Column, ...]:
    def score(value: float) -> str:
        return figures.score(metric, value)

    return (
        _Column(figures.capitalized(figures.metric_name(metric)) or "Score", lambda one: _cell(one.get("score"), score)),
        _Column("Drop", lambda one: _cell(one.get("drop"), figures.percent)),
        _Column("File size", lambda one: _cell(one.get("size_bytes"), figures.size)),
        _Column("Latency", lambda one: _cell(one.get("latency_ms_p50"), figures.milliseconds)),
        _Column("Why", lambda one: one.get("why", ""), class_="why", absent=""),
    )


def _cell(value: float | None, write: Callable[[float], str]) -> str:
    return "" if value is None else write(value)


def _candidate(one: Candidate, columns: Sequence[_Column]) -> Html:
    chosen = one.get("chosen", False)
    mark = join((charts.icon(True), element("span", text("chosen"), class_="chosen"))) if chosen else NOTHING
    cells = (cell(figure(column.cell(one) or column.absent), class_=column.class_) for column in columns)
    name = element("th", text(one.get("name", "unnamed")), mark, scope="row")
    return element("tr", name, *cells, class_="chosen" if chosen else None)


def _kind(key: str) -> tuple[str, str]:
    name, colon, precision = key.rpartition(":")
    return (name, precision) if colon else (key, figures.UNKNOWN)


def _operator(name: str, precision: str, amount: int, *, top: int) -> Html:
    narrow = precision in _NARROW
    return element(
        "tr",
        element("th", text(name), scope="row"),
        cell(element("span", text(precision), class_="spec" if narrow else "spec float")),
        cell(
            element("span", figure(figures.count(amount)), class_="figure"),
            charts.bar(amount / top, kind="after" if narrow else "before"),
            class_="wide",
        ),
    )


def _setting(report: Report) -> Iterable[tuple[str, str]]:
    data, count = report.get("data", {}), figures.count
    num_examples = report.get("num_examples", data.get("num_test"))
    yield "Data", data.get("source", "")
    yield "Test examples", "" if num_examples is None else count(num_examples)
    yield "Calibration examples", count(data["num_calibration"]) if "num_calibration" in data else ""
    yield "Classes", count(len(data["labels"])) if data.get("labels") else ""
    yield "Metric", figures.metric_name(report.get("metric", ""))
    yield "Interval of the drop", report.get("drop_method", "")
    yield "Runtime", report.get("runtime", "")
    yield "Device", report.get("device", "")
    yield "Threads", count(report["threads"]) if "threads" in report else ""
    yield "Batch", count(report["batch"]) if "batch" in report else ""
    yield (
        "Input shapes",
        ", ".join(" \N{MULTIPLICATION SIGN} ".join(map(str, shape)) for shape in report.get("input_shapes", [])),
    )
    yield "Timed calls a network", _num_timed(report)
    yield "Seed", str(report["seed"]) if "seed" in report else ""
    yield "Timing noise", _noise(report.get("latency_noise_ratio"))
    yield "Whole run", figures.duration(report["seconds"]) if "seconds" in report else ""
    yield "Peak memory of the run", figures.size(report["peak_memory_bytes"]) if "peak_memory_bytes" in report else ""


def _agreement(report: Report) -> Iterable[tuple[str, str]]:
    parity = report.get("parity", Parity())
    worst = report.get("parity_max_abs", parity.get("max_abs"))
    yield "File against torch, largest difference", "" if worst is None else figures.significant(worst)
    yield "File against torch, mean difference", figures.significant(parity["mean_abs"]) if "mean_abs" in parity else ""
    yield "File against torch, SQNR", figures.decibels(parity["sqnr_db"]) if "sqnr_db" in parity else ""
    yield "Mean KL to the original", figures.significant(report["mean_kl"]) if "mean_kl" in report else ""
    yield "Versions", ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())


def _num_timed(report: Report) -> str:
    num_calls = report.get("compressed", Measurement()).get("latency_count")
    return "" if num_calls is None else f"{figures.count(num_calls)}, the two interleaved"


def _noise(ratio: float | None) -> str:
    return "" if ratio is None else f"the original timed twice: ratio {ratio:.3f}"


def _seconds(entry: Mapping[str, Any]) -> float | None:
    seconds = entry.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _since(end: float | None, previous: float | None) -> float | None:
    return None if end is None or previous is None else max(end - previous, 0.0)


def _step(entry: Mapping[str, Any], span: float | None, *, top: float) -> Html:
    facts = ", ".join(f"{key} {_fact(value)}" for key, value in entry.items() if key not in ("what", "seconds"))
    return element(
        "tr",
        element("th", text(entry.get("what", "unnamed")), scope="row"),
        number(figures.shown(_seconds(entry), figures.duration)),
        cell(
            element("span", figure(figures.shown(span, figures.duration)), class_="figure"),
            charts.bar((span or 0.0) / top, kind="before"),
            class_="wide",
        ),
        cell(text(facts), class_="why"),
    )


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return figures.significant(value, 4)
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(entry) for entry in value) if len(value) <= 4 else f"{len(value)} entries"
    return str(value)


def _bad_row(row: BadRow) -> Html:
    return element("tr", element("th", text(row.get("where", "")), scope="row"), cell(text(row.get("why", "")), class_="why"))


def _cut(num_rows: int) -> Html:
    if num_rows <= MAX_ROWS:
        return NOTHING
    return paragraph(text(f"The first {figures.count(MAX_ROWS)} are listed; report.json holds all."), class_="small")
