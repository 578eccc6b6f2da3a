"""Before and after: the table with its interval, and the two bars that people look for."""

from collections.abc import Callable

from lighten.report import charts, figures
from lighten.report.comparison import Line, lines
from lighten.report.markup import NOTHING, Html, cell, element, figure, head, join, number, paragraph, section, table, text
from lighten.report.schema import Report


def section_of(report: Report) -> Html:
    """Nothing where neither network was measured."""
    compared = lines(report)
    if not compared:
        return NOTHING
    bars = join(
        (
            _pair("File size", *_both(report, "size_bytes"), write=figures.size),
            _pair("Latency, median", *_both(report, "latency_ms_p50"), write=figures.milliseconds),
        )
    )
    sides = element("div", _table(compared), element("div", bars, class_="pairs"), class_="sides" if bars else None)
    return section("Before and after", sides, _legend(report), key="change")


def _table(compared: tuple[Line, ...]) -> Html:
    heads = (head(""), head("Original", "number"), head("Compressed", "number"), head("Change"))
    rows = (
        element(
            "tr",
            element("th", text(line.name), scope="row"),
            number(line.before),
            number(line.after),
            cell(figure(figures.capitalized(line.change)), class_="change"),
        )
        for line in compared
    )
    return table(heads, rows, class_="compared", caption="The original and the compressed network")


def _both(report: Report, key: str) -> tuple[float | None, float | None]:
    before, after = ({**report.get("baseline", {})}, {**report.get("compressed", {})})
    was, now = before.get(key), after.get(key)
    return (was if isinstance(was, (int, float)) else None, now if isinstance(now, (int, float)) else None)


def _pair(name: str, was: float | None, now: float | None, *, write: Callable[[float], str]) -> Html:
    if was is None or now is None or max(was, now) <= 0:
        return NOTHING
    top = max(was, now)
    rows = join(
        element(
            "div",
            element("span", text(side), class_="side"),
            charts.bar(value / top, kind=kind),
            element("span", figure(write(value)), class_="figure"),
        )
        for side, value, kind in (("original", was, "before"), ("compressed", now, "after"))
    )
    return element("figure", element("figcaption", text(name)), rows, class_="pair")


def _legend(report: Report) -> Html:
    said = []
    if "drop" in report:
        said.append(f"The drop is in percent: {figures.drop_unit(report.get('metric', ''))}.")
    if "drop_interval" in report:
        said.append("Its 95 % interval is paired: both networks answered the same examples.")
    if report.get("faster") is False:
        said.append("The compressed file is not faster than the original beyond the noise of the measurement.")
    return paragraph(figure(" ".join(said)), class_="small") if said else NOTHING
