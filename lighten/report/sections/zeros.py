"""Zeros: how many weights of each sparse tensor are zero."""

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, cell, dotted, element, head, number, paragraph, scrolling, section, table, text
from lighten.report.schema import Report, Zeros

_FEWEST_TO_SCROLL = 16
_MAX_ROWS = 1_000


def section_of(report: Report) -> Html:
    """Nothing where no step made a tensor sparse."""
    zeros = report.get("zeros", [])
    if not zeros:
        return NOTHING
    heads = (head("Tensor"), head("Pattern"), head("Weights", "number"), head("Zeros", "number"), head("Share of zeros"))
    listed = table(heads, (_row(one) for one in zeros[:_MAX_ROWS]), caption="Zeros of each sparse tensor")
    if len(zeros) > _FEWEST_TO_SCROLL:
        listed = scrolling(listed, label="Zeros")
    weights, gone = (sum(one.get(key, 0) for one in zeros) for key in ("weights", "zeros"))  # type: ignore[misc]
    said = f"{figures.count(gone)} of {figures.count(weights)} weights of {figures.number_of(len(zeros), 'tensor')} are zero."
    return section("Zeros", paragraph(text(said)), listed, key="zeros")


def _row(zeros: Zeros) -> Html:
    weights, gone = zeros.get("weights", 0), zeros.get("zeros", 0)
    share = charts.bar(gone / weights, kind="after") if weights else NOTHING
    counts = (number(figures.count(weights), weights), number(figures.count(gone), gone))
    return element("tr", cell(dotted(zeros.get("tensor", ""))), cell(text(zeros.get("pattern", ""))), *counts, cell(share))
