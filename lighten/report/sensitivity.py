"""What `lighten sensitivity` found, as a table for a terminal, as one self-contained page with its plot, and as files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lighten.engine.files import unwritable, write_atomic
from lighten.report import charts, figures
from lighten.report.markup import Html, cell, dotted, element, figure, head, join, number, paragraph, section, text
from lighten.report.markup import scrolling as scrolled
from lighten.report.markup import table as html_table
from lighten.report.page import document
from lighten.report.write import encode

JSON_NAME = "sensitivity.json"
PAGE_NAME = "sensitivity.html"
_FEWEST_TO_SCROLL = 16
_LEAST = 1e-9  # of a harm, where its logarithm is drawn
_LINES = ("before", "error", "after")  # of the style sheet, the widest bits first
_UNITS = {"kl": "mean KL, millinats", "noise": "noise on the output, thousandths"}
Found = Mapping[str, Any]


def write(found: Found, folder: Path) -> Path:
    """Writes sensitivity.json and sensitivity.html, and gives the page's path. Raises InputError when the folder cannot be
    written.
    """
    data, shown = encode(found), page(found).encode("utf-8", "replace")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_atomic(folder / JSON_NAME, data)
    write_atomic(folder / PAGE_NAME, shown)
    return folder / PAGE_NAME


def table(found: Found) -> str:
    """For a terminal: a line for each layer and width, the layer that hurts most in the fewest bits first."""
    unit = _UNITS[found["harm"]]
    heads = ("layer", "kind", "weights", "bits", "bytes", "SQNR weight", "output", unit, "loss rise", "float costs", "")
    rows = [heads, *(line for layer in _ordered(found) for line in _lines(found, layer))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    made = [
        "  ".join(
            value.ljust(width) if place < 2 else value.rjust(width) for place, (value, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([*made, "", *_said(found)])


def page(found: Found) -> str:
    """The whole HTML file; everything in it is also in sensitivity.json."""
    source = found["model"]["source"]
    title = "Sensitivity"
    top = element(
        "header",
        paragraph(text(f"{found['data']['num_examples']} calibration examples, {found['runtime']}"), class_="eyebrow"),
        element("h1", text(title)),
        paragraph(dotted(source), class_="subject"),
    )
    listed = _table(found)
    listed = scrolled(listed, label="Layers") if len(found["layers"]) > _FEWEST_TO_SCROLL else listed
    said = join(paragraph(figure(line), class_="small") for line in _said(found))
    layers = section("Layers", _plot(found), listed, said, key="layers")
    foot = element("footer", text(f"Every figure on this page is in {JSON_NAME}, beside it. {found['device']}."))
    return document(f"{title}: {source}", top, element("main", layers), foot)


def _ordered(found: Found) -> list[dict[str, Any]]:
    return sorted(found["layers"], key=lambda layer: -layer["widths"][-1][found["harm"]])


def _lines(found: Found, layer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    made = []
    for place, width in enumerate(layer["widths"]):
        named = (layer["site"], layer["kind"], figures.count(layer["weights"])) if place == 0 else ("", "", "")
        cost = _costs(layer) if place == 0 else ("", "")
        made.append((*named, str(width["bits"]), figures.count(width["bytes"]), *_figures(found, width), *cost))
    return made


def _figures(found: Found, width: Mapping[str, Any]) -> tuple[str, str, str, str]:
    rise = width["loss_rise"]
    return (
        figures.shown(width["weight_sqnr_db"], figures.decibels),
        figures.shown(width["output_sqnr_db"], figures.decibels),
        figures.significant(1000 * width[found["harm"]]),
        figures.UNKNOWN if rise is None else f"{rise:+.4f}",
    )


def _costs(layer: Mapping[str, Any]) -> tuple[str, str]:
    """Of float in place of 8 bits, in bytes and, where it was timed, in milliseconds."""
    widest = layer["widths"][0]["bytes"]
    size = _signed(layer.get("float_cost_bytes", 4 * layer["weights"] - widest))
    cost_ms = layer.get("float_cost_ms")
    if cost_ms is None:
        return size, ""
    is_noise = abs(cost_ms) <= layer["noise_ms"]
    return size, "same time" if is_noise else f"{cost_ms:+.3g} ms"


def _signed(num_bytes: float) -> str:
    return figures.size(num_bytes) if num_bytes < 0 else f"+{figures.size(num_bytes)}"


def _said(found: Found) -> list[str]:
    """What a reader must know beside the figures."""
    said = [
        "Each layer is quantized alone, its codes rounded to the nearest, activations to 8 bits; codes that are solved for, as "
        f"in the file, hurt less. Measured on {found['data']['num_examples']} calibration examples.",
        "SQNR is signal to noise, of the weight and of the layer's own output; loss rise is of the task's mean loss.",
    ]
    whole = found.get("all_in_8_bits")
    if whole:
        said.append(
            f"Float costs: added to the file with every layer in 8 bits ({figures.size(whole['size_bytes'])}, "
            f"{figures.milliseconds(whole['latency_ms_p50'])} a call of {figures.number_of(found['batch'], 'example')} on "
            f"{figures.number_of(found['threads'], 'thread')}), timed interleaved; below "
            f"{figures.milliseconds(whole['noise_ms'])} the clock cannot tell. Fewer than 8 bits save bytes; integer kernels "
            "take the same time, for the runtime widens codes once, when it loads the file."
        )
    return said


def _plot(found: Found) -> Html:
    """One line a width over the layers, first to last, each a factor of ten a step."""
    layers: Sequence[Mapping[str, Any]] = found["layers"]
    harms = [[max(layer["widths"][place][found["harm"]], _LEAST) for layer in layers] for place in range(len(found["widths"]))]
    kinds = [_LINES[min(place, len(_LINES) - 1)] for place in range(len(harms))]
    tips = [
        f"{layer['site']}: "
        + ", ".join(f"{width['bits']} bits {figures.significant(1000 * width[found['harm']])}" for width in layer["widths"])
        for layer in layers
    ]
    unit = _UNITS[found["harm"]]
    picture = charts.curves(
        [([math.log10(value) for value in line], kind) for line, kind in zip(harms, kinds, strict=True)],
        tips=tips,
        label=f"{unit} by layer, first to last, logarithmic, a line for each width",
    )
    ends = [1000 * end for end in (min(map(min, harms)), max(map(max, harms)))]
    keys = join(
        element("span", element("span", class_=f"key {kind}"), text(f"{bits} bits"), class_="keyed")
        for kind, bits in zip(kinds, found["widths"], strict=True)
    )
    said = f"{figures.capitalized(unit)}, {figures.significant(ends[0])} to {figures.significant(ends[1])}, logarithmic"
    return element("figure", element("figcaption", figure(f"{said}; first layer to last. "), keys), picture, class_="strips")


def _table(found: Found) -> Html:
    heads = (
        head("Layer"),
        head("Weights", "number"),
        *(head(f"{bits} bits", "wide") for bits in found["widths"]),
        head("Float costs", "number"),
        head("and", "number"),
    )
    top = max(width[found["harm"]] for layer in found["layers"] for width in layer["widths"]) or 1.0
    rows = (_row(found, layer, top) for layer in _ordered(found))
    return html_table(heads, rows, class_="layers sortable", caption="Layers, the one that hurts most in few bits first")


def _row(found: Found, layer: Mapping[str, Any], top: float) -> Html:
    size, took = _costs(layer)
    return element(
        "tr",
        element(
            "th",
            element("span", dotted(layer["site"]), class_="site"),
            element("span", text(layer["kind"]), class_="kind"),
            scope="row",
        ),
        number(figures.large(layer["weights"]), layer["weights"]),
        *(_width_cell(found, width, top) for width in layer["widths"]),
        number(size, layer.get("float_cost_bytes")),
        number(took or figures.UNKNOWN, layer.get("float_cost_ms")),
    )


def _width_cell(found: Found, width: Mapping[str, Any], top: float) -> Html:
    """The harm as a bar, linear, so that what matters is what is seen; beneath it the rest in small."""
    weight, output, harm, rise = _figures(found, width)
    return cell(
        element("span", figure(harm), class_="figure"),
        charts.bar(width[found["harm"]] / top, kind="error"),
        element("span", figure(f"weight {weight}, output {output}, loss {rise}"), class_="kind"),
        class_="wide",
        value=width[found["harm"]],
    )
