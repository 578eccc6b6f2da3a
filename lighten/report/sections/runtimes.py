"""Where several runtimes were asked for: their files side by side, all timed in one run."""

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, element, head, join, number, paragraph, section, table, text
from lighten.report.schema import Report, Runtime


def section_of(report: Report) -> Html:
    """Nothing where one runtime alone was asked for."""
    rows = report.get("runtimes", [])
    if len(rows) < 2:
        return NOTHING
    metric = report.get("metric", "")
    names = ("File size", "Median", "95th percentile", "float32", figures.capitalized(figures.metric_name(metric)) or "Score")
    heads = [head("Runtime"), *(head(name, "number") for name in (*names, "Agreement", "Peak memory"))]
    fastest = report.get("baseline_runtime", "")
    said = f"Speed-ups are over the fastest float32 of all: that of {fastest}." if fastest else ""
    listed = table(heads, (_row(one, metric) for one in rows), class_="candidates", caption="Runtimes")
    return section("Runtimes", paragraph(text(said)) if said else NOTHING, listed, _refused(rows), key="runtimes")


def lines(report: Report) -> list[tuple[str, ...]]:
    """The same for a terminal; empty where one runtime alone was asked for."""
    rows = report.get("runtimes", [])
    if len(rows) < 2:
        return []
    metric = report.get("metric", "")
    head_line = ("", "size", "p50", "p95", "float32 p50", "score", "parity", "peak memory", "")
    marks = ["recommended" if one.get("recommended") else one.get("why", "") for one in rows]
    found = [(one.get("runtime", ""), *_figures(one, metric), mark) for one, mark in zip(rows, marks, strict=True)]
    return [head_line, *found]


def _figures(one: Runtime, metric: str) -> tuple[str, ...]:
    return (
        figures.shown(one.get("size_bytes"), figures.size),
        figures.shown(one.get("latency_ms_p50"), figures.milliseconds),
        figures.shown(one.get("latency_ms_p95"), figures.milliseconds),
        figures.shown(one.get("original", {}).get("latency_ms_p50"), figures.milliseconds),
        figures.shown(one.get("score"), lambda value: figures.score(metric, value)),
        figures.shown(one.get("parity", {}).get("sqnr_db"), figures.decibels),
        figures.shown(one.get("peak_memory_bytes"), figures.size),
    )


def _row(one: Runtime, metric: str) -> Html:
    chosen = one.get("recommended", False)
    mark = join((charts.icon(True), element("span", text("recommended"), class_="chosen"))) if chosen else NOTHING
    version = f" {one['version']}" if "version" in one else ""
    name = element("th", text(f"{one.get('runtime', '')}{version}"), mark, scope="row")
    return element("tr", name, *(number(value) for value in _figures(one, metric)), class_="chosen" if chosen else None)


def _refused(rows: list[Runtime]) -> Html:
    return join(paragraph(text(f"{one.get('runtime', '')}: {one['why']}")) for one in rows if "why" in one)
