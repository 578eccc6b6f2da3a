"""The contract limit by limit: what was asked, what was measured, whether it holds."""

from collections.abc import Callable
from dataclasses import dataclass

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, element, figure, join, paragraph, text
from lighten.report.schema import Broken, Contract, Limit, Measurement, Report, interval

NAMES = {"max_drop": "Drop", "size_bytes": "File size", "latency_ms": "Latency"}
WRITERS: dict[str, Callable[[float], str]] = {
    "max_drop": figures.percent,
    "size_bytes": figures.size,
    "latency_ms": figures.milliseconds,
}


@dataclass(frozen=True)
class _Term:
    """One limit with all that is said about it. exact: the figure to the last digit, shown on pointing. bounds: the drop's
    interval. decided: False where the examples are too few to tell on which side of the limit the network lies.
    """

    name: str
    limit: float | None
    measured: float | None
    holds: bool | None
    write: Callable[[float], str]
    beside: str = ""
    exact: str | None = None
    bounds: tuple[float, float] | None = None
    decided: bool = True

    @property
    def is_tested(self) -> bool:
        """True when there is both a limit and a figure to hold against it."""
        return self.limit is not None and self.measured is not None

    @property
    def state(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.limit is None:
            return "no limit set"
        state = {True: "holds", False: "broken", None: "undecided"}[self.holds]
        return state if self.decided or self.holds is None else f"{state}, not yet certain"


def tiles(report: Report) -> Html:
    """The three limits side by side, whether set or not."""
    shown = ((_drop(report), _whisker), (_size(report), _bullet), (_latency(report), _bullet))
    return element("ul", *(_tile(term, draw(term)) for term, draw in shown), class_="contract", aria_label="The contract")


def broken(report: Report) -> Html:
    """The limits that do not hold, each with its number and the reason; nothing where all hold."""
    entries = report.get("broken", [])
    if not entries:
        return NOTHING
    items = join(element("li", _broken(entry)) for entry in entries)
    intro = f"{figures.number_of(len(entries), 'limit')} of the contract broken; this is the best result that was found."
    return element("div", paragraph(text(intro)), element("ul", items), class_="remark harm")


def _drop(report: Report) -> _Term:
    limit, bounds = report.get("contract", Contract()).get("max_drop", Limit()), interval(report.get("drop_interval"))
    metric = figures.metric_name(report.get("metric", ""))
    return _Term(
        name=f"Drop in {metric}" if metric else "Drop",
        limit=limit.get("limit"),
        measured=limit.get("measured", report.get("drop")),
        holds=limit.get("holds"),
        write=figures.percent,
        beside="" if bounds is None else f"95 % interval {figures.percent(bounds[0])} to {figures.percent(bounds[1])}",
        bounds=bounds,
        decided=report.get("decision", {}).get("answer") != "undecided",
    )


def _size(report: Report) -> _Term:
    limit = report.get("contract", Contract()).get("size_bytes", Limit())
    measured = limit.get("measured", report.get("compressed", Measurement()).get("size_bytes"))
    return _Term(
        name="File size",
        limit=limit.get("limit"),
        measured=measured,
        holds=limit.get("holds"),
        write=figures.size,
        beside=_original(report.get("baseline", Measurement()).get("size_bytes"), figures.size),
        exact=None if measured is None else f"{figures.count(measured)} bytes",
    )


def _latency(report: Report) -> _Term:
    limit = report.get("contract", Contract()).get("latency_ms", Limit())
    return _Term(
        name="Latency, median",
        limit=limit.get("limit"),
        measured=limit.get("measured", report.get("compressed", Measurement()).get("latency_ms_p50")),
        holds=limit.get("holds"),
        write=figures.milliseconds,
        beside=_original(report.get("baseline", Measurement()).get("latency_ms_p50"), figures.milliseconds),
    )


def _original(value: float | None, write: Callable[[float], str]) -> str:
    return "" if value is None else f"original {write(value)}"


def _tile(term: _Term, picture: Html) -> Html:
    state = element("span", charts.icon(term.holds) if term.is_tested else NOTHING, text(term.state), class_="state")
    limit = NOTHING if term.limit is None else element("span", text("limit "), figure(term.write(term.limit)))
    return element(
        "li",
        element("span", text(term.name), class_="name"),
        element("span", figure(figures.shown(term.measured, term.write)), class_="measured", title=term.exact),
        picture,
        element("span", state, limit, class_="terms"),
        element("span", figure(term.beside), class_="beside"),
        class_={True: "holds", False: "broken", None: "open"}[term.holds if term.is_tested else None],
    )


def _whisker(term: _Term) -> Html:
    if term.measured is None:
        return element("span", class_="gauge")
    return charts.whisker(term.measured, term.bounds, limit=term.limit, holds=term.holds, label=_label(term))


def _bullet(term: _Term) -> Html:
    if term.measured is None or term.limit is None:
        return element("span", class_="gauge")
    return charts.bullet(term.measured, term.limit, holds=term.holds, label=_label(term))


def _label(term: _Term) -> str:
    limit = "no limit" if term.limit is None else f"limit {term.write(term.limit)}, {term.state}"
    return f"{term.name}: {figures.shown(term.measured, term.write)}, {limit}"


def _broken(entry: Broken) -> Html:
    constraint, why = entry.get("constraint", ""), entry.get("why", "")
    write = WRITERS.get(constraint, figures.significant)
    measured, limit = figures.shown(entry.get("measured"), write), figures.shown(entry.get("limit"), write)
    named = element("strong", text(f"{NAMES.get(constraint, constraint or 'A limit')} "), figure(measured))
    return join((named, text(", limit "), figure(limit), text(f". {why}" if why else ".")))
