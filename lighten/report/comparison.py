"""Before and after, line by line; the page and the terminal show the same lines."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lighten.report import figures
from lighten.report.schema import Measurement, Report, interval

_COUNTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("params", "Parameters", figures.large),
    ("macs", "MACs", figures.large),
    ("peak_memory_bytes", "Peak memory", figures.size),
)


@dataclass(frozen=True)
class Line:
    """Written figures. change: what the step from before to after means, in words; "" where one of them is unknown."""

    name: str
    before: str
    after: str
    change: str


def lines(report: Report) -> tuple[Line, ...]:
    """What was measured on either side; a quantity that neither side knows has no line."""
    before, after = report.get("baseline", Measurement()), report.get("compressed", Measurement())
    made = (_score(report, before, after), _size(before, after), *_latencies(report, before, after), *_counts(before, after))
    return tuple(line for line in made if (line.before, line.after) != (figures.UNKNOWN, figures.UNKNOWN))


def drop_in_words(report: Report) -> str:
    """ "drop 0.22 % (95 %: -0.10 % to 0.54 %)", or "" where it was not measured."""
    drop, bounds = report.get("drop"), interval(report.get("drop_interval"))
    return "" if drop is None else f"drop {figures.percent(drop)}{_between(bounds, figures.percent)}"


def _score(report: Report, before: Measurement, after: Measurement) -> Line:
    metric = report.get("metric", "")

    def write(value: float) -> str:
        return figures.score(metric, value)

    name = figures.capitalized(figures.metric_name(metric)) or "Score"
    was, now = (figures.shown(side.get("score"), write) for side in (before, after))
    return Line(name, was, now, drop_in_words(report))


def _size(before: Measurement, after: Measurement) -> Line:
    was, now = before.get("size_bytes"), after.get("size_bytes")
    return Line("File size", figures.shown(was, figures.size), figures.shown(now, figures.size), _share(was, now))


def _latencies(report: Report, before: Measurement, after: Measurement) -> Iterable[Line]:
    speedup, bounds = report.get("speedup"), interval(report.get("speedup_interval"))
    was, now = before.get("latency_ms_p50"), after.get("latency_ms_p50")
    known = _speed(was, now) if speedup is None else f"{figures.ratio(speedup)} times as fast{_between(bounds, figures.ratio)}"
    yield Line("Latency, median", *_written(was, now), known)
    was, now = before.get("latency_ms_p95"), after.get("latency_ms_p95")
    yield Line("Latency, 95th percentile", *_written(was, now), _speed(was, now))


def _written(was: float | None, now: float | None) -> tuple[str, str]:
    return figures.shown(was, figures.milliseconds), figures.shown(now, figures.milliseconds)


def _counts(before: Measurement, after: Measurement) -> Iterable[Line]:
    before_counts: dict[str, object] = {**before}
    after_counts: dict[str, object] = {**after}
    for key, name, write in _COUNTS:
        was, now = _number(before_counts.get(key)), _number(after_counts.get(key))
        yield Line(name, figures.shown(was, write), figures.shown(now, write), _share(was, now))


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _share(was: float | None, now: float | None) -> str:
    if was is None or now is None or was <= 0:
        return ""
    return "the same" if was == now else f"{figures.ratio(now / was)} of the original"


def _speed(was: float | None, now: float | None) -> str:
    return "" if was is None or now is None or now <= 0 else f"{figures.ratio(was / now)} times as fast"


def _between(bounds: tuple[float, float] | None, write: Callable[[float], str]) -> str:
    return "" if bounds is None else f" (95 %: {write(bounds[0])} to {write(bounds[1])})"
