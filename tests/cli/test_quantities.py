"""Sizes, times, drops and seeds as people write them."""

import argparse

import pytest

from lighten.cli import quantities
from lighten.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2MB", 2_000_000),
        ("500kB", 500_000),
        ("500 kb", 500_000),
        ("2MiB", 2_097_152),
        ("1.5GB", 1_500_000_000),
        ("10", 10),
        ("2.01MB", 2_010_000),
    ],
)
def test_a_size_is_in_bytes(text, expected):
    assert quantities.size_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("5ms", 5.0), ("0.2s", 200.0), ("800us", 0.8), ("2 MS", 2.0), (".5ms", 0.5), ("1e3us", 1.0)]
)
def test_a_time_is_in_milliseconds(text, expected):
    assert quantities.latency_ms(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("text", "expected"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("0.5 %", 0.005), ("57%", 0.57)])
def test_a_drop_is_the_fraction_as_it_is_written(text, expected):
    assert quantities.drop(text) == expected


def test_a_seed_is_a_whole_number():
    assert quantities.seed("7") == 7
    assert quantities.seed(str(2**63 - 1)) == 2**63 - 1


@pytest.mark.parametrize(("read", "most"), [(quantities.num_threads, 1024), (quantities.batch_size, 2**31 - 1)])
def test_a_count_is_from_1_to_its_limit(read, most):
    assert [read("1"), read("04"), read(str(most))] == [1, 4, most]
    for text in ("0", "-1", "1.5", "two", "", str(most + 1), "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is not an integer from 1 to {most}"):
            read(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *[
            (quantities.size_bytes, text)
            for text in ("", "MB", "2XB", "-2MB", "0", "2 %", "nan", "1e999", "2MB2", "1e300GB", "0.5")
        ],
        *[(quantities.latency_ms, text) for text in ("5", "5m", "0ms", "-1ms", "ms", "1e999s", "1e308s", "1e-999ms")],
        *[(quantities.drop, text) for text in ("1", "100%", "-1%", "1ms", "one", "nan")],
        *[(quantities.seed, text) for text in ("-1", "1.5", "x", "", str(2**63), "1" * 5000)],
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else value.__name__,
)
def test_anything_else_is_refused_with_the_text_as_given(read, text):
    with pytest.raises(InputError) as caught:
        read(text)
    assert repr(text) in str(caught.value)
