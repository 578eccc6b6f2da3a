"""Sizes, times, drops and seeds as people write them."""

import pytest

from lighten.cli import quantities
from lighten.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2MB", 2_000_000), ("500kB", 500_000), ("500 kb", 500_000), ("2MiB", 2_097_152), ("1.5GB", 1_500_000_000), ("10", 10)],
)
def test_a_size_is_in_bytes(text, expected):
    assert quantities.size_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("5ms", 5.0), ("0.2s", 200.0), ("800us", 0.8), ("2 MS", 2.0), (".5ms", 0.5), ("1e3us", 1.0)]
)
def test_a_time_is_in_milliseconds(text, expected):
    assert quantities.latency_ms(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("text", "expected"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("0.5 %", 0.005), ("99.9%", 0.999)])
def test_a_drop_is_a_fraction(text, expected):
    assert quantities.drop(text) == pytest.approx(expected, rel=1e-12)


def test_a_seed_is_a_whole_number():
    assert quantities.seed("7") == 7


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *[(quantities.size_bytes, text) for text in ("", "MB", "2XB", "-2MB", "0", "2 %", "nan", "1e999", "2MB2")],
        *[(quantities.latency_ms, text) for text in ("5", "5m", "0ms", "-1ms", "ms", "1e999s")],
        *[(quantities.drop, text) for text in ("1", "100%", "-1%", "1ms", "one", "nan")],
        *[(quantities.seed, text) for text in ("-1", "1.5", "x", "", str(2**63))],
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_anything_else_is_refused_with_the_text_as_given(read, text):
    with pytest.raises(InputError) as caught:
        read(text)
    assert repr(text) in str(caught.value)
