"""Sizes, times, drops and counts as people write them."""

import argparse
import math
import re
from collections.abc import Mapping
from decimal import Decimal

from lighten.core.errors import InputError

_BYTES = {"": "1", "B": "1", "KB": "1e3", "MB": "1e6", "GB": "1e9", "KIB": "1024", "MIB": "1048576", "GIB": "1073741824"}
_MILLISECONDS = {"MS": "1", "S": "1000", "US": "0.001"}
_FRACTIONS = {"": "1", "%": "0.01"}
_COUNTS = {"": "1", "K": "1e3", "M": "1e6", "B": "1e9", "T": "1e12"}
_FLOP = {"FLOP": "1", "GFLOP": "1e9", "TFLOP": "1e12", "PFLOP": "1e15"}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z%]*)\s*")
_WHOLE = re.compile(r"[0-9]{1,19}")
_LARGEST = 2**63 - 1  # what torch takes as a seed, and more bytes than any disk has


def size_bytes(text: str) -> int:
    """ "2MB" (10^6), "2MiB" (2^20), "500kB" or plain bytes. Raises InputError otherwise."""
    value = _scaled(text, _BYTES)
    if value is None or not 1 <= value <= _LARGEST:
        raise InputError(f"{text!r} is not a size.", hint="Write 2MB, 500kB, 2MiB or a number of bytes above 0.")
    return math.floor(value)


def latency_ms(text: str) -> float:
    """ "5ms", "0.2s" or "800us", in milliseconds. Raises InputError otherwise, for a bare number too: its unit would be a
    guess.
    """
    value = _scaled(text, _MILLISECONDS)
    if value is None or not 0 < float(value) < math.inf:
        raise InputError(f"{text!r} is not a time.", hint="Write 5ms, 0.2s or 800us, above 0.")
    return float(value)


def count(text: str) -> int:
    """ "7B", "350M" or a plain number, as people count parameters. Raises InputError otherwise."""
    value = _scaled(text, _COUNTS)
    if value is None or not 1 <= value <= _LARGEST:
        raise InputError(f"{text!r} is not a count.", hint="Write 7B, 350M or a number above 0.")
    return math.floor(value)


def bytes_per_s(text: str) -> float:
    """ "50GB/s", bytes a second and not bits. Raises InputError otherwise."""
    value = _scaled(text.removesuffix("/s"), _BYTES) if text.endswith("/s") else None
    if value is None or not 0 < float(value) < math.inf:
        raise InputError(f"{text!r} is not a speed of a link.", hint="Write 50GB/s; 400 gigabits a second are 50GB/s.")
    return float(value)


def flop_per_s(text: str) -> float:
    """ "400TFLOP/s", additions and multiplications a second. Raises InputError otherwise."""
    value = _scaled(text.removesuffix("/s"), _FLOP) if text.endswith("/s") else None
    if value is None or not 0 < float(value) < math.inf:
        raise InputError(f"{text!r} is not a speed.", hint="Write 400TFLOP/s.")
    return float(value)


def drop(text: str) -> float:
    """ "1%" or "0.01", a fraction in [0, 1). Raises InputError otherwise."""
    value = _scaled(text, _FRACTIONS)
    if value is None or not 0 <= float(value) < 1:
        raise InputError(f"{text!r} is not a drop.", hint="Write 1% or 0.01, from 0 to below 100 %.")
    return float(value)


def seed(text: str) -> int:
    """An integer from 0 to 2^63 - 1, what every generator takes. Raises InputError otherwise."""
    if _WHOLE.fullmatch(text) is None or int(text) > _LARGEST:
        raise InputError(f"{text!r} is not a seed.", hint="Write an integer from 0.")
    return int(text)


def num_threads(text: str) -> int:
    """An integer from 1 to 1024, for argparse: each thread is really started, so a slip of the finger must not ask for more."""
    return _count(text, most=1024)


def num_ranks(text: str) -> int:
    """An integer from 1 to 1024, for argparse: each is a process of its own."""
    return _count(text, most=1024)


def batch_size(text: str) -> int:
    """An integer from 1 to 2^31 - 1, the largest dimension that every runtime takes, for argparse."""
    return _count(text, most=2**31 - 1)


def _count(text: str, *, most: int) -> int:
    if _WHOLE.fullmatch(text) is None or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to {most}")
    return int(text)


def _scaled(text: str, units: Mapping[str, str]) -> Decimal | None:
    """The number in the units' common measure, in decimal as it was written: 2.01MB are 2,010,000 bytes, not one less. None
    where it is no number or its unit is unknown.
    """
    match = _NUMBER.fullmatch(text)
    factor = None if match is None else units.get(match[2].upper())
    return None if match is None or factor is None else Decimal(match[1]) * Decimal(factor)
