"""The top of the page: the verdict, and the contract limit by limit."""

from collections.abc import Callable
from dataclasses import dataclass

from lighten.report import charts, figures
from lighten.report.comparison import drop_in_words
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
    """One limit with all that is said about it. exact: the measured figure to the last digit, for pointing at. decided: False
    where the examples are too few to tell on which side of the limit the network lies.
    """

    name: str
    limit: float | None
    measured: float | None
    holds: bool | None
    write: Callable[[float], str]
    beside: str
    exact: str = ""
    decided: bool = True

    @property
    def state(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.limit is None:
            return "no limit set"
        state = {True: "holds", False: "broken", None: "undecided"}[self.holds]
        return state if self.decided or self.holds is None else f"{state}, but undecided"


def header(report: Report) -> Html:
    """Verdict, what was compressed, the contract and what came of it in words."""
    return element(
        "header",
        paragraph(text("lighten report"), class_="eyebrow"),
        element("h1", charts.icon(_verdict_holds(report)), text(title(report))),
        paragraph(text(_subject(report)), class_="subject"),
        paragraph(figure(summary(report)), class_="lead"),
        _contract(report),
        _broken(report),
        _decision(report),
        _notes(report),
    )


def title(report: Report) -> str:
    """The verdict in a few words."""
    verdict = report.get("verdict")
    if verdict == "met":
        return "Contract met"
    if verdict == "infeasible":
        return "Contract infeasible"
    return "No verdict"


def summary(report: Report) -> str:
    """What was gained and lost, one sentence; "" where nothing was measured."""
    before, after = report.get("baseline", Measurement()), report.get("compressed", Measurement())
    parts = []
    was, now = before.get("size_bytes"), after.get("size_bytes")
    if was and now is not None:
        parts.append(f"{figures.ratio(now / was)} of the original's size")
    speedup = report.get("speedup")
    if speedup is not None:
        parts.append(f"{figures.ratio(speedup)} times as fast")
    elif report.get("faster") is False:
        parts.append("not faster")
    if report.get("drop") is not None:
        metric = figures.metric_name(report.get("metric", ""))
        parts.append(drop_in_words(report).replace("drop", f"a drop in {metric} of" if metric else "a drop of", 1))
    return f"{figures.capitalized(', '.join(parts))}." if parts else "Nothing was measured."


def _verdict_holds(report: Report) -> bool | None:
    return {"met": True, "infeasible": False}.get(report.get("verdict", ""))


def _subject(report: Report) -> str:
    model, data = report.get("model", {}), report.get("data", {})
    num_examples = report.get("num_examples", data.get("num_test"))
    parts = [
        model.get("source", ""),
        model.get("task", "").replace("-", " "),
        report.get("runtime", ""),
        "" if num_examples is None else figures.number_of(num_examples, "test example"),
    ]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _contract(report: Report) -> Html:
    tiles = [_tile(term, _picture(term, report)) for term in _terms(report)]
    return element("ul", *tiles, class_="contract", aria_label="The contract")


def _terms(report: Report) -> tuple[_Term, ...]:
    contract, before, after = report.get("contract", Contract()), report.get("baseline", {}), report.get("compressed", {})
    drop, size, latency = (
        contract.get("max_drop", Limit()),
        contract.get("size_bytes", Limit()),
        contract.get("latency_ms", Limit()),
    )
    bounds = interval(report.get("drop_interval"))
    between = "" if bounds is None else f"95 % interval {figures.percent(bounds[0])} to {figures.percent(bounds[1])}"
    num_bytes = size.get("measured", after.get("size_bytes"))
    metric = figures.metric_name(report.get("metric", ""))
    return (
        _term(f"Drop in {metric}" if metric else "Drop", drop, report.get("drop"), write=figures.percent, beside=between),
        _term(
            "File size",
            size,
            after.get("size_bytes"),
            write=figures.size,
            beside=_original(before.get("size_bytes"), figures.size),
            exact="" if num_bytes is None else f"{figures.count(num_bytes)} bytes",
        ),
        _term(
            "Latency, median",
            latency,
            after.get("latency_ms_p50"),
            write=figures.milliseconds,
            beside=_original(before.get("latency_ms_p50"), figures.milliseconds),
        ),
    )


def _term(
    name: str, limit: Limit, measured: float | None, *, write: Callable[[float], str], beside: str, exact: str = ""
) -> _Term:
    return _Term(name, limit.get("limit"), limit.get("measured", measured), limit.get("holds"), write, beside, exact)


def _original(value: float | None, write: Callable[[float], str]) -> str:
    return "" if value is None else f"original {write(value)}"


def _tile(term: _Term, picture: Html) -> Html:
    decided = term.limit is not None and term.measured is not None
    state = element("span", charts.icon(term.holds), text(term.state), class_="state") if decided else text(term.state)
    limit = NOTHING if term.limit is None else element("span", text("limit "), figure(term.write(term.limit)))
    kind = {True: "holds", False: "broken", None: "open"}[term.holds if decided else None]
    return element(
        "li",
        element("span", text(term.name), class_="name"),
        element("span", figure(figures.shown(term.measured, term.write)), class_="measured", title=term.exact or None),
        picture,
        element("span", state, limit, class_="terms"),
        element("span", figure(term.beside), class_="beside"),
        class_=kind,
    )


def _picture(term: _Term, report: Report) -> Html:
    if term.measured is None:
        return element("span", class_="gauge")
    said = "no limit" if term.limit is None else f"limit {term.write(term.limit)}"
    label = f"{term.name}: {term.write(term.measured)}, {said}, {term.state}"
    if term.write is figures.percent:
        bounds = interval(report.get("drop_interval"))
        return charts.whisker(term.measured, bounds, term.limit, holds=term.holds, label=label)
    if term.limit is None:
        return element("span", class_="gauge")
    return charts.bullet(term.measured, term.limit, holds=term.holds, label=label)


def _broken(report: Report) -> Html:
    broken = report.get("broken", [])
    if not broken:
        return NOTHING
    items = join(element("li", _broken_line(entry)) for entry in broken)
    intro = f"{figures.number_of(len(broken), 'limit')} of the contract broken; this is the best result that was found."
    return element("div", paragraph(text(intro)), element("ul", items), class_="remark harm")


def _broken_line(entry: Broken) -> Html:
    constraint = entry.get("constraint", "")
    write = WRITERS.get(constraint, figures.significant)
    name = NAMES.get(constraint, constraint or "limit")
    measured, limit = figures.shown(entry.get("measured"), write), figures.shown(entry.get("limit"), write)
    why = entry.get("why", "")
    return join(
        [
            element("strong", text(f"{name} "), figure(measured)),
            text(", limit "),
            figure(limit),
            text(f": {why}" if why else ""),
        ]
    )


def _decision(report: Report) -> Html:
    decision = report.get("decision", {})
    sentence = decision.get("sentence", "")
    if not sentence and "answer" in decision:
        sentence = f"Is the tolerance kept? The evidence: {decision['answer']}."
    kind = "remark harm" if decision.get("answer") == "broken" else "remark"
    return paragraph(figure(sentence), class_=kind) if sentence else NOTHING


def _notes(report: Report) -> Html:
    return join(paragraph(text(note), class_="remark") for note in report.get("notes", []))
