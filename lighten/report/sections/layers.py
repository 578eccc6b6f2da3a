"""Layer by layer: bytes before and after, the error quantization made, and what keeping the layer in float costs."""

from collections import Counter
from collections.abc import Sequence

from lighten.report import charts, figures
from lighten.report.markup import (
    NOTHING,
    Html,
    cell,
    dotted,
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
from lighten.report.schema import Layer, Report

MAX_ROWS = 1_000  # a row takes about a kilobyte of page
_FEWEST_FOR_STRIP = 12  # below this the table itself shows the whole network at a glance
_FEWEST_TO_SCROLL = 16


def section_of(report: Report) -> Html:
    """The strips in network order, then the table, largest layer first."""
    layers = report.get("layers", [])
    if not layers:
        return NOTHING
    ordered = sorted(layers, key=lambda layer: -layer.get("weight_bytes_before", 0))
    listed = _table(ordered[:MAX_ROWS])
    if len(layers) > _FEWEST_TO_SCROLL:
        listed = scrolling(listed, label="Layers")
    strips = _strips(layers) if len(layers) >= _FEWEST_FOR_STRIP else NOTHING
    return section("Layers", paragraph(figure(_summary(layers))), strips, listed, _legend(layers), key="layers")


def _summary(layers: Sequence[Layer]) -> str:
    specs = Counter(layer.get("spec", "unknown") for layer in layers)
    parts = ", ".join(f"{figures.count(amount)} {spec}" for spec, amount in specs.most_common())
    before = sum(layer.get("weight_bytes_before", 0) for layer in layers)
    after = sum(layer.get("weight_bytes_after", 0) for layer in layers)
    weights = f" Their weights went from {figures.size(before)} to {figures.size(after)}." if before else ""
    return f"{figures.number_of(len(layers), 'layer')}: {parts}.{weights}"


def _strips(layers: Sequence[Layer]) -> Html:
    before = [float(layer.get("weight_bytes_before", 0)) for layer in layers]
    after = [float(layer.get("weight_bytes_after", 0)) for layer in layers]
    errors = [layer.get("error_sqnr_db", 0.0) for layer in layers]
    tips = [_tip(layer) for layer in layers]
    sizes = charts.strip(before, after, tips=tips, label=f"Weight bytes of {len(layers)} layers, first to last")
    parts = [_captioned(f"Weight bytes, first layer to last; the largest {figures.size(max(before))}", sizes)]
    if any(errors):
        nothing = [0.0] * len(errors)
        noise = charts.strip(nothing, errors, tips=tips, label=f"SQNR of {len(layers)} layers, first to last", kind="error")
        parts.append(_captioned(f"SQNR, first layer to last; short is noisy, the best {figures.decibels(max(errors))}", noise))
    return element("div", *parts, class_="strips")


def _captioned(caption: str, picture: Html) -> Html:
    return element("figure", element("figcaption", figure(caption)), picture)


def _tip(layer: Layer) -> str:
    error = figures.shown(layer.get("error_sqnr_db"), figures.decibels)
    return f"{layer.get('site', 'unnamed')}: {layer.get('spec', 'unknown')}, {_bytes(layer)}, SQNR {error}"


def _bytes(layer: Layer) -> str:
    """The weight before and after, a dash for a layer that has none."""
    was, now = layer.get("weight_bytes_before"), layer.get("weight_bytes_after")
    if not was and not now:
        return figures.UNKNOWN
    return f"{figures.shown(was, figures.size)} \N{RIGHTWARDS ARROW} {figures.shown(now, figures.size)}"


def _table(layers: Sequence[Layer]) -> Html:
    heads = (
        head("Layer"),
        head("Became"),
        head("MACs", "number"),
        head("Weight bytes", "wide"),
        head("SQNR", "wide"),
        *([head("Loss rise alone", "number")] if _knows_effects(layers) else []),
        head("Float would cost", "number"),
    )
    top_bytes = max(layer.get("weight_bytes_before", 0) for layer in layers) or 1
    top_error = max(layer.get("error_sqnr_db", 0.0) for layer in layers) or 1.0
    with_effects = _knows_effects(layers)
    rows = (_row(layer, top_bytes=top_bytes, top_error=top_error, with_effects=with_effects) for layer in layers)
    return table(heads, rows, class_="layers sortable", caption="Layers, the largest first")


def _knows_effects(layers: Sequence[Layer]) -> bool:
    return any("loss_rise_alone" in layer or "noise_alone" in layer for layer in layers)


def _row(layer: Layer, *, top_bytes: float, top_error: float, with_effects: bool) -> Html:
    macs, cost = layer.get("macs"), layer.get("keep_cost_bytes")
    why = layer.get("why", "")
    spec = layer.get("spec", figures.UNKNOWN)
    return element(
        "tr",
        element(
            "th",
            element("span", dotted(layer.get("site", "unnamed")), class_="site"),
            element("span", text(layer.get("kind", "")), class_="kind"),
            element("span", text(why), class_="why") if why else NOTHING,
            scope="row",
        ),
        cell(element("span", text(spec), class_="spec float" if spec == "float" else "spec"), _form(layer)),
        number(figures.shown(macs, figures.large), macs),
        _bytes_cell(layer, top_bytes),
        _error_cell(layer, top_error),
        *([_effect_cell(layer)] if with_effects else []),
        _cost_cell(layer, cost),
    )


def _effect_cell(layer: Layer) -> Html:
    """What the layer alone does to the network: the loss where there is one, else the noise on the output."""
    rise, noise = layer.get("loss_rise_alone"), layer.get("noise_alone")
    if rise is None:
        return number(figures.shown(noise, lambda value: f"{figures.significant(value)} noise"), noise)
    return number(f"{rise:+.4f}", rise)


def _cost_cell(layer: Layer, cost: float | None) -> Html:
    wider = layer.get("wider_cost_bytes")
    said = NOTHING if wider is None else element("span", figure(f"twice the bits {_cost(wider)}"), class_="kind")
    return cell(figure(figures.shown(cost, _cost)), said, class_="number", value=cost)


def _form(layer: Layer) -> Html:
    """What a weight takes with all that belongs to it, and whether the runtime computes with it as it is."""
    bits = layer.get("bits_per_weight")
    parts = [*([f"{bits:.2f} bits a weight"] if bits is not None else []), *([layer["runs"]] if "runs" in layer else [])]
    return element("span", figure(", ".join(parts)), class_="kind") if parts else NOTHING


def _bytes_cell(layer: Layer, top_bytes: float) -> Html:
    was, now = layer.get("weight_bytes_before", 0), layer.get("weight_bytes_after", 0)
    picture = charts.overlaid(was / top_bytes, now / top_bytes) if was or now else NOTHING
    return cell(element("span", figure(_bytes(layer)), class_="figure"), picture, class_="wide", value=was)


def _cost(value: float) -> str:
    return f"+{figures.size(value)}" if value else "0"


def _error_cell(layer: Layer, top_error: float) -> Html:
    error = layer.get("error_sqnr_db")
    if error is None:
        return cell(text(figures.UNKNOWN), class_="wide unknown")
    picture = charts.bar(error / top_error, kind="error")
    return cell(element("span", figure(figures.decibels(error)), class_="figure"), picture, class_="wide", value=error)


def _legend(layers: Sequence[Layer]) -> Html:
    said = [
        "SQNR is the ratio of the layer's signal to the noise that quantization added, in decibels: higher is better.",
        "The last column is what the file would gain in bytes if the layer stayed in float.",
    ]
    if _knows_effects(layers):
        said.append("Loss rise alone: of the network with that layer alone quantized, on calibration examples.")
    if len(layers) > MAX_ROWS:
        said.append(f"The {figures.count(MAX_ROWS)} largest are listed; report.json holds all.")
    keys = join(
        element("span", element("span", class_=f"key {kind}"), text(name), class_="keyed")
        for kind, name in (("before", "before"), ("after", "after"))
    )
    return paragraph(keys, text(" ".join(said)), class_="small")
