"""Who pays for the compression: changed predictions class by class, and the examples themselves."""

import base64
import re
from collections.abc import Iterable, Sequence

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
from lighten.report.schema import ClassFlips, FlipExample, Flips, Report

MAX_CLASSES = 1_000
MAX_EXAMPLES = 50
MAX_IMAGE_CHARACTERS = 4_000_000  # of base64 in all, so that the page stays below 6 MB
_MAX_TEXT = 400
_WIDTH_SHOWN = 72  # as in style.css
_FEWEST_TO_SCROLL = 16
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)")


def classes(report: Report) -> Html:
    """Diverging bars: right to wrong on the left, wrong to right on the right."""
    flips = report.get("flips", Flips())
    per_class = flips.get("per_class", {})
    if not per_class and "count" not in flips:
        return NOTHING
    touched = sorted(((name, one) for name, one in per_class.items() if _num_changed(one)), key=_most_harmed_first)
    listed = _class_table(touched[:MAX_CLASSES]) if touched else NOTHING
    if len(touched) > _FEWEST_TO_SCROLL:
        listed = scrolling(listed, label="Changed predictions by class")
    said = _class_summary(report, flips, num_untouched=len(per_class) - len(touched))
    return section("Changed predictions by class", paragraph(figure(said)), listed, key="classes")


def examples(report: Report) -> Html:
    """The examples whose prediction changed, with both answers."""
    changed = report.get("flips", Flips()).get("examples", [])
    if not changed:
        return NOTHING
    shown = changed[:MAX_EXAMPLES]
    pictured = _within_budget(shown)
    cards = join(_card(example, image) for example, image in zip(shown, pictured, strict=True))
    said = figures.number_of(len(shown), "example") + ", those that lost most first."
    if any(example.get("image_png_base64") and not image for example, image in zip(shown, pictured, strict=True)):
        said += " Some thumbnails are left out to keep this page small."
    return section("Examples that changed", paragraph(figure(said)), element("ul", cards, class_="examples"), key="examples")


def _num_changed(one: ClassFlips) -> int:
    return one.get("changed", 0) or one.get("right_to_wrong", 0) + one.get("wrong_to_right", 0)


def _most_harmed_first(entry: tuple[str, ClassFlips]) -> tuple[int, int, str]:
    name, one = entry
    return -one.get("right_to_wrong", 0), one.get("wrong_to_right", 0), name


def _class_summary(report: Report, flips: Flips, *, num_untouched: int) -> str:
    per_class = flips.get("per_class", {}).values()
    changed = flips.get("count", sum(_num_changed(one) for one in per_class))
    num_examples = report.get("num_examples")
    among = "" if num_examples is None else f" among {figures.number_of(num_examples, 'example')}"
    harmed, healed = (
        sum(one.get("right_to_wrong", 0) for one in per_class),
        sum(one.get("wrong_to_right", 0) for one in per_class),
    )
    said = f"{figures.number_of(changed, 'prediction')} changed{among}"
    said += f": {figures.count(harmed)} from right to wrong, {figures.count(healed)} from wrong to right." if per_class else "."
    if num_untouched:
        said += f" {figures.number_of(num_untouched, 'class', plural='classes')} without any change not listed."
    return said


def _class_table(rows: Sequence[tuple[str, ClassFlips]]) -> Html:
    top = max(max(one.get("right_to_wrong", 0), one.get("wrong_to_right", 0)) for _, one in rows) or 1
    heads = (
        head("Class"),
        head("Right to wrong", "number left"),
        head("Wrong to right", "right"),
        head("Changed", "number"),
        head("Examples", "number"),
    )
    body = (_class_row(name, one, top=top) for name, one in rows)
    return table(heads, body, class_="classes", caption="Changed predictions by class, the most harmed first")


def _class_row(name: str, one: ClassFlips, *, top: int) -> Html:
    harmed, healed = one.get("right_to_wrong", 0), one.get("wrong_to_right", 0)
    return element(
        "tr",
        element("th", text(name), scope="row"),
        cell(charts.arm(harmed / top, figure(figures.count(harmed)), kind="harm"), class_="left"),
        cell(charts.arm(healed / top, figure(figures.count(healed)), kind="gain"), class_="right"),
        number(figures.shown(one.get("changed"), figures.count)),
        number(figures.shown(one.get("num_examples"), figures.count)),
    )


def _within_budget(shown: Iterable[FlipExample]) -> list[str]:
    """Each example's image, or "" for what is no base64 or no longer fits."""
    left, kept = MAX_IMAGE_CHARACTERS, []
    for example in shown:
        image = example.get("image_png_base64", "")
        fits = len(image) <= left and _BASE64.fullmatch(image) is not None
        left -= len(image) if fits else 0
        kept.append(image if fits else "")
    return kept


def _card(example: FlipExample, image: str) -> Html:
    title = example.get("title") or f"Example {example.get('index', figures.UNKNOWN)}"
    body = element(
        "div",
        element("span", text(title), class_="title"),
        _quotation(example.get("text", "")),
        _answers(example),
        class_="body",
    )
    return element("li", _thumbnail(image, title), body)


def _thumbnail(image: str, title: str) -> Html:
    if not image:
        return NOTHING
    kind = "tiny" if _width(image) < _WIDTH_SHOWN else None
    return element("img", src=f"data:image/png;base64,{image}", alt=f"Thumbnail of {title}", class_=kind, loading="lazy")


def _width(image: str) -> int:
    """Pixels, from the PNG's header: bytes 16 to 19. Images narrower than they are shown keep their pixels sharp."""
    return int.from_bytes(base64.b64decode(image[:32])[16:20], "big")


def _quotation(words: str) -> Html:
    words = words.strip()
    if not words:
        return NOTHING
    return element("q", text(words if len(words) <= _MAX_TEXT else f"{words[: _MAX_TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"))


def _answers(example: FlipExample) -> Html:
    lines = [
        ("truth", example.get("target"), None),
        ("before", example.get("before"), example.get("confidence_before")),
        ("after", example.get("after"), example.get("confidence_after")),
    ]
    target = example.get("target")
    parts = [
        part
        for name, answer, confidence in lines
        if answer is not None
        for part in (element("dt", text(name)), _answer(answer, confidence, right=_right(name, answer, target)))
    ]
    return element("dl", *parts, class_="answers") if parts else NOTHING


def _right(name: str, answer: str | float, target: str | float | None) -> bool | None:
    """Whether the answer is the truth; None where that cannot be said, as for numbers."""
    if name == "truth" or not isinstance(answer, str) or not isinstance(target, str):
        return None
    return answer == target


def _answer(answer: str | float, confidence: float | None, *, right: bool | None) -> Html:
    written = text(answer) if isinstance(answer, str) else figure(figures.significant(float(answer), 4))
    aloud = NOTHING if right is None else element("span", text("right: " if right else "wrong: "), class_="aloud")
    mark = element("span", NOTHING if right is None else charts.icon(right), aloud, class_="mark")
    sure = NOTHING if confidence is None else element("span", figure(f"{100 * confidence:.0f} %"), class_="sure")
    return element("dd", mark, element("span", written, class_="answer"), sure)
