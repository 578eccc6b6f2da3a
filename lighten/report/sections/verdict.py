"""The top of the page: the verdict, what was compressed, the contract, and what a reader must know beside the figures."""

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, element, figure, join, paragraph, text
from lighten.report.schema import Measurement, Report
from lighten.report.sections import contract


def header(report: Report) -> Html:
    """Verdict, subject, one sentence of outcome, the contract, and the remarks."""
    holds = {"met": True, "infeasible": False}.get(report.get("verdict", ""))
    return element(
        "header",
        paragraph(text("lighten report"), class_="eyebrow"),
        element("h1", charts.icon(holds), text(title(report))),
        paragraph(text(_subject(report)), class_="subject"),
        paragraph(figure(summary(report)), class_="lead"),
        contract.tiles(report),
        contract.broken(report),
        _decision(report),
        _notes(report),
    )


def title(report: Report) -> str:
    """The verdict in a few words."""
    return {"met": "Contract met", "infeasible": "Contract infeasible"}.get(report.get("verdict", ""), "No verdict")


def summary(report: Report) -> str:
    """What was gained and lost, one sentence."""
    before, after = report.get("baseline", Measurement()), report.get("compressed", Measurement())
    was, now, speedup = before.get("size_bytes"), after.get("size_bytes"), report.get("speedup")
    parts = []
    if was and now is not None:
        parts.append(f"{figures.ratio(now / was)} of the original's size")
    if speedup is not None:
        parts.append(f"{figures.ratio(speedup)} times as fast")
    if "drop" in report:
        metric = figures.metric_name(report.get("metric", ""))
        parts.append(f"a drop{f' in {metric}' if metric else ''} of {figures.percent(report['drop'])}")
    return f"{figures.capitalized(', '.join(parts))}." if parts else "Nothing was measured."


def _subject(report: Report) -> str:
    model, num_examples = report.get("model", {}), report.get("num_examples", report.get("data", {}).get("num_test"))
    parts = (
        model.get("source", ""),
        model.get("task", "").replace("-", " "),
        report.get("runtime", ""),
        "" if num_examples is None else figures.number_of(num_examples, "test example"),
    )
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _decision(report: Report) -> Html:
    decision = report.get("decision", {})
    sentence, answer = decision.get("sentence", ""), decision.get("answer")
    return paragraph(figure(sentence), class_="remark harm" if answer == "broken" else "remark") if sentence else NOTHING


def _notes(report: Report) -> Html:
    return join(paragraph(text(note), class_="remark") for note in report.get("notes", []))
