"""Sizes, times and drops as people write them."""

import math
import re

from lighten.core.errors import InputError

_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MILLISECONDS = {"MS": 1.0, "S": 1000.0, "US": 0.001}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*")


def size_bytes(text: str) -> int:
    """ "2MB" (10^6), "2MiB" (2^20), "500kB" or plain bytes. Raises InputError otherwise."""
    number, unit = _split(text, "a size such as 2MB, 500kB, 2MiB or a number of bytes")
    if unit.upper() not in _BYTES or number <= 0:
        raise InputError(f"{text!r} is not a size.", hint="Write 2MB, 500kB, 2MiB or a number of bytes above 0.")
    return math.floor(number * _BYTES[unit.upper()])


def latency_ms(text: str) -> float:
    """ "5ms", "0.2s" or "800us", in milliseconds. Raises InputError otherwise, for a bare number too: its unit would be a
    guess.
    """
    number, unit = _split(text, "a time such as 5ms, 0.2s or 800us")
    if unit.upper() not in _MILLISECONDS or number <= 0:
        raise InputError(f"{text!r} is not a time.", hint="Write 5ms, 0.2s or 800us, above 0.")
    return number * _MILLISECONDS[unit.upper()]


def drop(text: str) -> float:
    """ "1%" or "0.01", a fraction in [0, 1). Raises InputError otherwise."""
    number, unit = _split(text, "a drop such as 1% or 0.01")
    value = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= value < 1:
        raise InputError(f"{text!r} is not a drop.", hint="Write 1% or 0.01, from 0 to below 100 %.")
    return value


def seed(text: str) -> int:
    """An integer from 0 to 2^63 - 1, what every generator takes. Raises InputError otherwise."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise InputError(f"{text!r} is not a seed.", hint="Write an integer from 0.")
    return int(text)


def _split(text: str, allowed: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None or not math.isfinite(float(match[1])):
        raise InputError(f"{text!r} is not {allowed}.")
    return float(match[1]), match[2]
