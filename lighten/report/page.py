"""The report as one HTML file that opens offline: no fetches, no fonts; one style sheet and a few lines of script, inline.

The page is complete without the script, which only sorts the layers. A content security policy forbids every fetch, so a report
can be opened whoever sent it.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from lighten.report.markup import NOTHING, Html, element, join, text
from lighten.report.schema import Report, known
from lighten.report.sections import change, damage, evidence, layers, runtimes, training, verdict, widths, zeros

_CONTENTS = (
    ("change", "Before and after", change.section_of),
    ("runtimes", "Runtimes", runtimes.section_of),
    ("training", "Training", training.section_of),
    ("widths", "Widths", widths.section_of),
    ("zeros", "Zeros", zeros.section_of),
    ("layers", "Layers", layers.section_of),
    ("classes", "Classes", damage.classes),
    ("examples", "Examples", damage.examples),
    ("candidates", "Candidates", evidence.candidates),
    ("operators", "Operators", evidence.operators),
    ("measured", "Measurement", evidence.measured),
    ("steps", "Steps", evidence.steps),
    ("bad-rows", "Bad rows", evidence.bad_rows),
)


def page(report: Mapping[str, Any]) -> str:
    """The whole HTML file, below 6 MB. report: as in report/schema.py; missing and null entries leave their place out."""
    facts = known(report)
    sections = [(key, name, make(facts)) for key, name, make in _CONTENTS]
    made = [(key, name, part) for key, name, part in sections if part]
    return document(
        _title(facts),
        verdict.header(facts),
        _navigation([(key, name) for key, name, _ in made]),
        element("main", *(part for _, _, part in made)),
        element("footer", text("Every figure on this page is in report.json, beside it.")),
    )


def document(title: str, *parts: Html) -> str:
    """A whole HTML file with our style and script around the parts of its body."""
    body = element("body", *parts, _inline("script", _resource("sort.js")))
    return "<!doctype html>\n" + element("html", _head(title), body, lang="en") + "\n"


def _title(report: Report) -> str:
    source = report.get("model", {}).get("source", "")
    return f"{verdict.title(report)}: {source}" if source else verdict.title(report)


def _head(title: str) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", text(title)),
        _inline("style", _resource("style.css")),
    )


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_resource("sort.js").encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _navigation(made: list[tuple[str, str]]) -> Html:
    if len(made) < 3:
        return NOTHING
    links = join(element("a", text(name), href=f"#{key}") for key, name in made)
    return element("nav", links, aria_label="Sections")


def _inline(name: str, content: str) -> Html:
    """Our own style or script, which must not be escaped; both are free of "</"."""
    return Html(f"<{name}>{content}</{name}>")


def _resource(name: str) -> str:
    return resources.files("lighten.report").joinpath(name).read_text(encoding="utf-8")
