import pytest

from lighten.report import figures


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (1234, "1,230"), (0.04567, "0.0457"), (9.996, "10.0"), (-2.5, "-2.50"), (1e-9, "1.00e-09"), (999.6, "1,000")],
)
def test_significant_digits(value, written):
    assert figures.significant(value) == written


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.00 kB"), (1_243_872, "1.24 MB"), (999_700, "1.00 MB"), (5e9, "5.00 GB")],
)
def test_sizes_are_decimal(num_bytes, written):
    assert figures.size(num_bytes) == written


@pytest.mark.parametrize(("count", "written"), [(42, "42"), (99_999, "99,999"), (307_562, "308 k"), (4_183_040, "4.18 M")])
def test_large_counts_are_rounded_and_small_ones_exact(count, written):
    assert figures.large(count) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.418, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds, written):
    assert figures.duration(seconds) == written


def test_percentages_have_two_decimals_and_no_negative_zero():
    assert [figures.percent(value) for value in (0.0022, -0.001, -0.00001, 1)] == ["0.22 %", "-0.10 %", "0.00 %", "100.00 %"]


def test_scores_are_written_as_their_metric_is_read():
    written = [figures.score(metric, 0.97216) for metric in ("accuracy", "spearman", "perplexity")]
    assert written == ["97.22 %", "0.9722", "0.9722"]
    assert figures.score("perplexity", 33.0629) == "33.06"


def test_the_drop_of_a_relative_metric_is_said_to_be_relative():
    assert figures.drop_unit("perplexity") == "relative to the original's score"
    assert "original minus compressed" in figures.drop_unit("accuracy")
