"""HTML from Python, safe by type: text becomes `Html` only through `text`, which escapes it, so the type checker refuses a
class name or a file name that was put into the page as it is.
"""

import html
from collections.abc import Iterable
from typing import NewType

Html = NewType("Html", str)

NOTHING = Html("")
_VOID = ("img", "meta", "wbr")


def text(value: object) -> Html:
    """Escaped text. Half surrogates, as undecodable file names hold them, become question marks."""
    return Html(html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True))


def dotted(name: str) -> Html:
    """An escaped dotted name that may break after a dot or an underscore."""
    broken = text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")
    return Html(broken)


def figure(written: str) -> Html:
    """A written number: escaped, with a true minus sign and no line break before its unit."""
    signed = f"\N{MINUS SIGN}{written[1:]}" if written.startswith("-") else written
    return text(signed.replace(" -", " \N{MINUS SIGN}").replace(" %", "\N{NO-BREAK SPACE}%"))


def element(tag: str, /, *children: Html, **attributes: object) -> Html:
    """`<tag attributes>children</tag>`. Attribute values are escaped; None leaves the attribute out. Underscores become
    hyphens and a trailing one is dropped: class_, aria_label.
    """
    written = "".join(f' {_key(key)}="{text(value)}"' for key, value in attributes.items() if value is not None)
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{''.join(children)}</{tag}>")


def join(parts: Iterable[Html]) -> Html:
    """The parts one after the other."""
    return Html("".join(parts))


def section(title: str, *children: Html, key: str) -> Html:
    """A headed section that can be linked to as #key."""
    heading = element("h2", text(title), id=f"{key}-title")
    return element("section", heading, *children, id=key, aria_labelledby=f"{key}-title")


def paragraph(*children: Html, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *children, class_=class_)


def scrolling(*children: Html, label: str) -> Html:
    """A region of bounded height with its own scroll bar, reachable by keyboard."""
    return element("div", *children, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(heads: Iterable[Html], rows: Iterable[Html], *, class_: str | None = None, caption: str = "") -> Html:
    """A table with one head row. caption: read aloud, not shown."""
    described = element("caption", text(caption), class_="aloud") if caption else NOTHING
    head = element("thead", element("tr", *heads))
    return element("table", described, head, element("tbody", *rows), class_=class_)


def head(title: str, class_: str | None = None) -> Html:
    """A column's head. class_: "number" aligns it with the numbers below."""
    return element("th", text(title), scope="col", class_=class_)


def cell(*children: Html, class_: str | None = None, value: float | None = None) -> Html:
    """A table cell. value: what the column is sorted by where the text is not enough."""
    return element("td", *children, class_=class_, data_value=value)


def number(written: str, value: float | None = None) -> Html:
    """A cell that holds a figure, right-aligned."""
    return cell(figure(written), class_="number", value=value)


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
