"""The page's charts: inline SVG in percent of the width, so that they stretch; colours come from the style sheet.

A chart never carries a number alone: each stands beside its figures in text, or names them in its label and tooltips.
"""

from collections.abc import Sequence
from itertools import pairwise

from lighten.report.markup import NOTHING, Html, element, join, text

_STRIP_HEIGHT = 96


def bar(fraction: float, *, kind: str) -> Html:
    """A horizontal bar of `fraction` of the width, hidden from screen readers: its figure stands beside it."""
    return element("span", _fill(fraction, kind), class_="bar", aria_hidden="true")


def overlaid(before: float, after: float) -> Html:
    """Two bars on one line, fractions of the width: what was, and in front of it what is left."""
    return element("span", _fill(before, "before"), _fill(after, "after"), class_="bar", aria_hidden="true")


def arm(fraction: float, written: Html, *, kind: str) -> Html:
    """One side of a diverging bar with its figure at the tip; the style sheet turns it to the left or the right."""
    length = element("span", class_=f"length {kind}", style=f"--share:{min(max(fraction, 0.0), 1.0):.4f}", aria_hidden="true")
    return element("div", length, element("span", written, class_="figure"), class_="arm")


def bullet(measured: float, limit: float, *, holds: bool | None, label: str) -> Html:
    """A measured size or time from 0, with a mark at the limit."""
    end = 1.12 * max(measured, limit) or 1.0
    kind = "harm" if holds is False else "after"
    return _picture(
        _rectangle(0, 100, kind="track", inset=4),
        _rectangle(0, 100 * measured / end, kind=kind, inset=4),
        _mark(100 * limit / end, kind="limit"),
        label=label,
    )


def whisker(drop: float, bounds: tuple[float, float] | None, *, limit: float | None, holds: bool | None, label: str) -> Html:
    """A drop with its interval on an axis through zero, and a mark at the limit."""
    low, high = bounds or (drop, drop)
    seen = [0.0, drop, low, high, *([] if limit is None else [limit])]
    margin = 0.08 * (max(seen) - min(seen)) or 1.0
    start, end = min(seen) - margin, max(seen) + margin

    def place(value: float) -> float:
        return 100 * (value - start) / (end - start)

    kind = "harm" if holds is False else "after"
    return _picture(
        _rectangle(0, 100, kind="track", inset=9),
        _mark(place(0.0), kind="zero"),
        _rectangle(place(low), place(high), kind=f"{kind} soft", inset=6),
        element("circle", cx=f"{place(drop):.2f}%", cy="10", r="5", class_=kind),
        NOTHING if limit is None else _mark(place(limit), kind="limit"),
        label=label,
    )


def strip(before: Sequence[float], after: Sequence[float], *, tips: Sequence[str], label: str, kind: str = "after") -> Html:
    """One column an entry, in order: `before` behind `after`. tips: what a column says when pointed at."""
    top = max([*before, *after], default=0.0) or 1.0
    width = 100 / max(len(tips), 1)
    columns = join(
        element(
            "g",
            element("title", text(tip)),
            _column(place * width, width, height=was / top, kind="before"),
            _column(place * width, width, height=now / top, kind=kind),
        )
        for place, (was, now, tip) in enumerate(zip(before, after, tips, strict=True))
    )
    base = element("line", x1="0", x2="100%", y1=_STRIP_HEIGHT - 0.5, y2=_STRIP_HEIGHT - 0.5, class_="axis")
    return element("svg", columns, base, class_="strip", role="img", aria_label=label, height=_STRIP_HEIGHT)


def curves(
    lines: Sequence[tuple[Sequence[float | None], str]], *, tips: Sequence[str], label: str, mark: int | None = None
) -> Html:
    """Lines over the same places, each its values (None where there is none) and its kind; the axis spans what occurs. mark:
    the place that is pointed out. tips: what a place says when pointed at.
    """
    known = [value for values, _ in lines for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    width = 100 / max(len(tips), 1)

    def point(place: int, value: float) -> tuple[str, str]:
        share = (high - value) / ((high - low) or 1.0)
        return f"{(place + 0.5) * width:.3f}%", f"{4 + share * (_STRIP_HEIGHT - 8):.1f}"

    drawn = []
    for values, kind in lines:
        points = [point(place, value) for place, value in enumerate(values) if value is not None]
        for (x1, y1), (x2, y2) in pairwise(points):
            drawn.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind))
        drawn.extend(element("circle", cx=x, cy=y, r="2.5", class_=kind) for x, y in points)
    shown = NOTHING if mark is None else _column(mark * width, width, height=1.0, kind="mark")
    hit = join(
        element("g", element("title", text(tip)), _column(place * width, width, height=1.0, kind="hit"))
        for place, tip in enumerate(tips)
    )
    return element("svg", shown, *drawn, hit, class_="curves", role="img", aria_label=label, height=_STRIP_HEIGHT)


def icon(holds: bool | None) -> Html:
    """A tick, a cross, or a dash for what is undecided; the word always stands beside it."""
    path = {True: "M3 8.5l3.2 3.2L13 4.8", False: "M4 4l8 8M12 4l-8 8", None: "M3.5 8h9"}[holds]
    kind = {True: "yes", False: "no", None: "open"}[holds]
    return element("svg", element("path", d=path), class_=f"icon {kind}", viewBox="0 0 16 16", aria_hidden="true")


def _picture(*shapes: Html, label: str) -> Html:
    return element("svg", *shapes, class_="gauge", role="img", aria_label=label, height="20")


def _rectangle(left: float, right: float, *, kind: str, inset: int) -> Html:
    width = max(right - left, 0.0)
    return element("rect", x=f"{left:.2f}%", width=f"{width:.2f}%", y=inset, height=20 - 2 * inset, class_=kind)


def _mark(place: float, *, kind: str) -> Html:
    return element("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1="0", y2="20", class_=kind)


def _column(left: float, width: float, *, height: float, kind: str) -> Html:
    tall = height * (_STRIP_HEIGHT - 2)
    gap = 0.16 * width
    return element(
        "rect",
        x=f"{left + gap / 2:.3f}%",
        width=f"{width - gap:.3f}%",
        y=f"{_STRIP_HEIGHT - tall:.1f}",
        height=f"{tall:.1f}",
        class_=kind,
    )


def _fill(fraction: float, kind: str) -> Html:
    """At least a pixel wide, so that a small amount is seen; nothing for none."""
    width = 100 * min(max(fraction, 0.0), 1.0)
    return element("span", class_=f"fill {kind}", style=f"width:{width:.2f}%") if width else NOTHING
