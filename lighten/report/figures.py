"""How a figure is written: one notation for the page and the terminal, plain ASCII but for the dash that stands for "unknown".

Sizes are decimal (1 MB is 1,000,000 bytes), as the command line reads them. Three significant digits say as much as the
measurements do; percentages have two decimals, so that equal columns line up.
"""

import math
from collections.abc import Callable

UNKNOWN = "\N{EN DASH}"
_PERCENT_METRICS = ("accuracy", "agreement", "probe", "top_5", "f1", "f1_binary", "word_error_rate")
_RELATIVE_METRICS = ("perplexity", "mse")
_LOWER_IS_BETTER = ("word_error_rate", "mean_kl")


def shown(value: float | None, write: Callable[[float], str]) -> str:
    """`write(value)`, or the dash where there is no value."""
    return UNKNOWN if value is None else write(value)


def significant(value: float, digits: int = 3) -> str:
    """Rounded to `digits` significant digits, thousands separated: 1234 -> "1,230", 0.04567 -> "0.0457"."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}" if decimals < 8 else f"{rounded:.{digits - 1}e}"


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{round(value):,}"


def large(value: float) -> str:
    """A count in thousands (k), millions (M) or billions (G) from 100,000 on; exact below."""
    if abs(value) < 100_000:
        return count(value)
    return _scaled(value, ((1e9, " G"), (1e6, " M"), (1e3, " k")))


def size(num_bytes: float) -> str:
    """Bytes as kB, MB or GB."""
    if abs(num_bytes) < 1_000:
        return f"{count(num_bytes)} bytes"
    return _scaled(num_bytes, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")))


def milliseconds(value: float) -> str:
    """A latency in milliseconds."""
    return f"{significant(value)} ms"


def duration(seconds: float) -> str:
    """Wall-clock time: "0.42 s", "12.3 s", "2 min 05 s", "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(fraction: float) -> str:
    """A fraction in percent, two decimals; never "-0.00 %"."""
    return f"{round(100 * fraction, 2) + 0.0:.2f} %"


def ratio(value: float) -> str:
    """A quotient without unit, three significant digits and at least two decimals below 10."""
    return f"{value:.2f}" if 0.1 <= abs(value) < 10 else significant(value)


def decibels(value: float) -> str:
    """One decimal: repeated measurements differ by more than the second."""
    return f"{value:.1f} dB"


def score(metric: str, value: float) -> str:
    """A score in the metric's usual notation: percent for shares of examples, four decimals for correlations and the like."""
    if metric in _PERCENT_METRICS:
        return percent(value)
    return significant(value, 4) if metric in _RELATIVE_METRICS else f"{value:.4f}"


def drop_unit(metric: str) -> str:
    """What one percent of drop means for this metric, half a sentence."""
    if metric in _RELATIVE_METRICS:
        return "relative to the original's score"
    if metric in _LOWER_IS_BETTER:
        return "1 % is 0.01 on the metric's own scale, compressed minus original"
    return "1 % is 0.01 on the metric's own scale, original minus compressed"


def metric_name(metric: str) -> str:
    """The metric's key as words."""
    return {"auc": "AUC", "mse": "mean squared error", "mean_kl": "mean KL"}.get(metric, metric.replace("_", " ").strip())


def capitalized(words: str) -> str:
    """The first letter in upper case, the others as they are."""
    return words[:1].upper() + words[1:]


def number_of(amount: int, singular: str, *, plural: str = "") -> str:
    """ "1 layer", "180 layers"."""
    return f"{count(amount)} {singular if amount == 1 else plural or singular + 's'}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    rounded = abs(float(f"{value:.2e}"))  # first rounded, so that 999,700 becomes 1.00 M and not 1,000 k
    scale, unit = next((scale, unit) for scale, unit in units if rounded >= scale)
    return f"{significant(value / scale)}{unit}"
