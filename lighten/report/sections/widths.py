"""Widths: how many channels, heads or neurons each group had, and how many are left."""

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, cell, dotted, element, head, number, paragraph, scrolling, section, table, text
from lighten.report.schema import Report, Width

_FEWEST_TO_SCROLL = 16
_MAX_ROWS = 1_000


def section_of(report: Report) -> Html:
    """Nothing where no channel was cut."""
    widths = report.get("widths", [])
    if not widths:
        return NOTHING
    heads = (head("Group"), head("Before", "number"), head("After", "number"), head("Share that stays"))
    listed = table(heads, (_row(width) for width in widths[:_MAX_ROWS]), caption="Width of each group of channels")
    if len(widths) > _FEWEST_TO_SCROLL:
        listed = scrolling(listed, label="Widths")
    before, after = (sum(width.get(side, 0) for width in widths) for side in ("before", "after"))  # type: ignore[misc]
    said = f"{figures.number_of(len(widths), 'group')}: {figures.count(before)} channels became {figures.count(after)}."
    return section("Widths", paragraph(text(said)), listed, key="widths")


def _row(width: Width) -> Html:
    before, after = width.get("before", 0), width.get("after", 0)
    share = charts.bar(after / before, kind="after") if before else NOTHING
    counts = (number(figures.count(before), before), number(figures.count(after), after))
    return element("tr", cell(dotted(width.get("group", ""))), *counts, cell(share))
