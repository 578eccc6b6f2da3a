"""Coverage enumerated over every outcome, limits worked out by hand, and the bootstrap against a plain loop."""

import math

import numpy as np
import pytest
import scipy.stats

from lighten.core.errors import InputError
from lighten.evaluate.intervals import _student_t, bootstrap_interval, paired_score_interval
from lighten.evaluate.metrics import METRICS


def coverage(num_examples, disagreements, share_lost, intervals):
    """Chance that the interval holds the true drop, summed over every outcome (lost, gained) of the trinomial."""
    lost, gained, low, high = intervals
    rates = disagreements / num_examples * np.array([share_lost, 1 - share_lost])
    counts = np.stack([lost, gained, num_examples - lost - gained], axis=1)
    chance = scipy.stats.multinomial.pmf(counts, num_examples, [*rates, 1 - rates.sum()])
    drop = rates[0] - rates[1]
    assert chance.sum() > 1 - 1e-6
    return chance[(low <= drop) & (drop <= high)].sum()


@pytest.mark.parametrize("num_examples", [10, 20, 50, 300, 5000])
def test_the_paired_interval_covers_the_true_drop_at_least_95_percent_of_the_time(num_examples):
    most = min(num_examples, 45)
    outcomes = [(b, c) for b in range(most + 1) for c in range(most + 1) if b + c <= min(num_examples, 60)]
    lost, gained = np.array(outcomes).T
    low, high = np.array([paired_score_interval(b, c, num_examples) for b, c in outcomes]).T
    lowest = min(
        coverage(num_examples, disagreements, share, (lost, gained, low, high))
        for disagreements in (0.1, 0.5, 1, 2, 3, 4, 5, 6.5, 8, 12, 18)
        for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.0)
        if disagreements < 0.95 * num_examples
    )
    assert lowest >= 0.95


def test_without_disagreement_the_interval_is_not_empty():
    """Tango's limits solve d^2 n = z^2 (1 - d) d there, so d = z^2 / (n + z^2)."""
    z_squared = scipy.stats.norm.ppf(0.985) ** 2
    low, high = paired_score_interval(0, 0, 500)
    assert high == pytest.approx(z_squared / (500 + z_squared))
    assert low == pytest.approx(-high)


def test_the_interval_is_mirrored_when_the_networks_change_places():
    low, high = paired_score_interval(12, 5, 400)
    assert paired_score_interval(5, 12, 400) == pytest.approx((-high, -low))


def test_the_interval_approaches_the_normal_one_when_many_examples_disagree():
    low, high = paired_score_interval(30_000, 20_000, 1_000_000)
    reach = scipy.stats.norm.ppf(0.985) * math.sqrt(50_000 - 10_000**2 / 1e6) / 1e6
    assert (low, high) == pytest.approx((0.01 - reach, 0.01 + reach), abs=1e-6)


def test_every_example_lost_reaches_one():
    """The statistic is sqrt(n (1 - d) / (1 + d)) there, so the low limit is (n - z^2) / (n + z^2)."""
    z_squared = scipy.stats.norm.ppf(0.985) ** 2
    low, high = paired_score_interval(20, 0, 20)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx((20 - z_squared) / (20 + z_squared))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20, 200])
def test_the_t_quantile_is_within_its_stated_error(freedom):
    assert _student_t(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=3e-3)


def test_the_bootstrap_interval_of_a_mean_is_the_t_interval():
    """10,000 resamples place a 2.5 % point within about 5 % of the reach (three standard errors of that quantile)."""
    rng = np.random.default_rng(1)
    difference, zeros = rng.normal(0.3, 1.0, size=400), np.zeros(400)
    totals = np.stack([1 + difference, np.ones(400)], axis=1)
    low, high, num_resamples = bootstrap_interval(METRICS["word_error_rate"], np.ones((400, 2)), totals, targets=zeros, seed=0)
    reach = scipy.stats.t.ppf(0.975, 399) * difference.std(ddof=1) / 20
    assert num_resamples == 10_000
    assert (low, high) == pytest.approx((difference.mean() - reach, difference.mean() + reach), abs=0.05 * reach)


def test_the_bootstrap_repeats_with_its_seed_and_has_no_width_for_equal_outputs():
    rng = np.random.default_rng(2)
    values, other, targets = rng.normal(size=50), rng.normal(size=50), rng.normal(size=50)
    spearman = METRICS["spearman"]
    once = bootstrap_interval(spearman, values, other, targets=targets, seed=3)
    assert once == bootstrap_interval(spearman, values, other, targets=targets, seed=3)
    assert once != bootstrap_interval(spearman, values, other, targets=targets, seed=4)
    assert bootstrap_interval(spearman, values, values, targets=targets, seed=3)[:2] == (0.0, 0.0)


def test_pairing_narrows_the_interval_when_the_networks_agree():
    """A noise of 0.1 on the values moves the correlation far less than drawing 200 other examples does."""
    rng = np.random.default_rng(5)
    targets = rng.normal(size=200)
    values = targets + rng.normal(size=200)
    low, high, _ = bootstrap_interval(METRICS["spearman"], values, values + 0.1 * rng.normal(size=200), targets=targets, seed=0)
    unpaired = 2 * 1.96 * (1 - 0.7**2) * math.sqrt(2 / 200)  # Fisher's standard error at a correlation near 0.7
    assert high - low < unpaired / 3


def test_one_example_has_no_interval():
    with pytest.raises(InputError, match="at least two"):
        bootstrap_interval(METRICS["mse"], np.ones(1), np.ones(1), targets=np.ones(1), seed=0)


def test_a_metric_that_most_resamples_leave_undefined_is_refused():
    values, targets = np.arange(4.0), np.array([1, 1, 1, 0])
    undefined_share = (3 / 4) ** 4 + (1 / 4) ** 4  # all positives, or all negatives
    assert undefined_share < 0.5
    low, high, num_resamples = bootstrap_interval(METRICS["auc"], values, values, targets=targets, seed=0)
    assert (low, high) == (0.0, 0.0)
    assert num_resamples / 10_000 == pytest.approx(1 - undefined_share, abs=0.02)
    with pytest.raises(InputError, match="undefined on most"):
        bootstrap_interval(METRICS["auc"], values, values, targets=np.ones(4, dtype=int), seed=0)
