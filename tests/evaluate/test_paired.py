"""Drops, decisions and flips on predictions made by hand."""

import json

import numpy as np
import pytest

from lighten.core.errors import InputError
from lighten.evaluate.paired import compare
from lighten.evaluate.predictions import Predictions

CLASSES = ("ant", "bee", "cat")


def logits(classes, *, num_classes=3, margin=4.0):
    return (margin * np.eye(num_classes))[np.asarray(classes)].astype(np.float32)


def classified(classes, targets=None, task="classification"):
    labels = None if targets is None else np.asarray(targets)
    return Predictions(task, logits(classes), labels, np.arange(len(classes)))


def with_rates(lost, gained, num_examples):
    """Predictions of class 0 or 1 for label 0, with the given numbers of disagreements."""
    before, after = np.zeros(num_examples, int), np.zeros(num_examples, int)
    after[:lost] = 1
    before[lost : lost + gained] = 1
    return classified(before, np.zeros(num_examples, int)), classified(after, np.zeros(num_examples, int))


def test_the_drop_in_accuracy_is_lost_minus_gained():
    comparison = compare(*with_rates(9, 4, 1000), metric="accuracy")
    assert (comparison.lost, comparison.gained, comparison.num_examples) == (9, 4, 1000)
    assert comparison.original_score == pytest.approx(0.996)
    assert comparison.compressed_score == pytest.approx(0.991)
    assert comparison.drop == pytest.approx(0.005)
    low, high = comparison.drop_interval
    assert -0.01 < low < 0
    assert 0.005 < high < 0.02


def test_flips_are_counted_per_class_and_sorted_by_lost_confidence():
    original = classified([0, 0, 1, 2, 2], targets=[0, 1, 1, 2, 0])
    values = original.values.copy()
    values[0] = [1.0, 1.1, 0.0]  # right to wrong, a narrow change
    values[2] = [9.0, 0.0, 0.0]  # right to wrong, a sure one
    values[4] = [9.0, 0.0, 0.0]  # wrong to right
    compressed = Predictions("classification", values, original.targets, original.index)
    flips = compare(original, compressed, metric="accuracy", labels=CLASSES).flips
    assert flips.num_changed == 3
    assert flips.classes == {
        "ant": {"num_examples": 2, "changed": 2, "right_to_wrong": 1, "wrong_to_right": 1},
        "bee": {"num_examples": 2, "changed": 1, "right_to_wrong": 1, "wrong_to_right": 0},
        "cat": {"num_examples": 1, "changed": 0, "right_to_wrong": 0, "wrong_to_right": 0},
    }
    assert [change.index for change in flips.examples] == [2, 4, 0]
    assert (flips.examples[0].original, flips.examples[0].compressed, flips.examples[0].target) == ("bee", "ant", "bee")
    was = np.exp(4) / (np.exp(4) + 2)
    assert flips.examples[0].lost == pytest.approx(was - 1 / (np.exp(9) + 2), abs=1e-6)


def test_at_most_50_changed_examples_are_named_though_all_are_counted():
    flips = compare(*with_rates(80, 0, 100), metric="accuracy").flips
    assert flips.num_changed == 80
    assert len(flips.examples) == 50


def test_classes_that_share_a_name_are_told_apart():
    both = classified([0, 1, 2], [0, 1, 2])
    assert list(compare(both, both, metric="accuracy", labels=("crane", "crane", "kite")).flips.classes) == [
        "crane (0)",
        "crane (1)",
        "kite",
    ]


def test_agreement_scores_against_the_original_and_ignores_labels():
    original = classified([0, 1, 2, 2], targets=[7, 7, 7, 7])  # labels of another set of classes
    comparison = compare(original, classified([0, 1, 2, 0], targets=[7, 7, 7, 7]), metric="agreement", labels=CLASSES)
    assert comparison.original_score == 1.0
    assert comparison.compressed_score == 0.75
    assert comparison.drop == 0.25
    assert comparison.flips.classes["cat"] == {"num_examples": 2, "changed": 1, "right_to_wrong": 1, "wrong_to_right": 0}


def test_perplexity_drops_by_its_relative_increase():
    losses = np.array([[20.0, 10], [30.0, 10], [25.0, 10]])
    worse = losses + np.array([np.log(1.1) * 10, 0])
    original, compressed = (Predictions("language-model", values, None, np.arange(3)) for values in (losses, worse))
    comparison = compare(original, compressed, metric="perplexity")
    assert comparison.drop == pytest.approx(0.1)
    assert comparison.drop_interval == pytest.approx((0.1, 0.1))
    assert comparison.flips.num_changed is None
    assert comparison.flips.examples[0].lost == pytest.approx(np.log(1.1))
    assert comparison.mean_kl is None


def test_spearman_takes_the_bootstrap_and_names_the_examples_that_moved_most():
    rng = np.random.default_rng(0)
    values, targets = rng.normal(size=60), rng.normal(size=60)
    moved = values.copy()
    moved[17] += 1.5
    original, compressed = (Predictions("sentence-similarity", v, targets, np.arange(60)) for v in (values, moved))
    comparison = compare(original, compressed, metric="spearman", seed=1)
    assert comparison.method == "paired bootstrap, 10000 resamples, seed 1"
    low, high = comparison.drop_interval
    assert low <= comparison.drop <= high
    assert [change.index for change in comparison.flips.examples] == [17]
    assert comparison.flips.examples[0].lost == pytest.approx(1.5)


def test_a_tolerance_holds_breaks_or_stays_undecided():
    comparison = compare(*with_rates(10, 5, 1000), metric="accuracy")
    low, high = comparison.drop_interval
    assert comparison.decides(high) == "holds"
    assert comparison.decides(low) == "undecided"
    assert comparison.decides(low - 1e-9) == "broken"
    assert comparison.needed_examples(high) == 1000


def test_the_needed_examples_decide_and_a_tenth_fewer_do_not():
    comparison = compare(*with_rates(2, 1, 200), metric="accuracy")
    assert comparison.decides(0.01) == "undecided"
    needed = comparison.needed_examples(0.01)
    assert needed > 200
    for num_examples, decision in ((needed, "holds"), (int(0.9 * needed), "undecided")):
        grown = compare(*with_rates(num_examples // 100, num_examples // 200, num_examples), metric="accuracy")
        assert grown.decides(0.011 if decision == "holds" else 0.01) == decision
    assert f"about {needed:,} would be needed" in comparison.explain(0.01)


def test_without_any_disagreement_a_small_set_still_decides_nothing():
    comparison = compare(*with_rates(0, 0, 100), metric="accuracy")
    assert comparison.drop == 0.0
    assert comparison.decides(0.01) == "undecided"
    # Tango's limit is z^2 / (n + z^2), z^2 = 4.709: below 1 % from n = 99 z^2 = 466.2 on.
    assert comparison.needed_examples(0.01) == 467


def test_a_drop_on_the_tolerance_needs_no_number_of_examples():
    comparison = compare(*with_rates(2, 0, 200), metric="accuracy")
    assert comparison.needed_examples(0.01) is None
    assert "on the tolerance itself" in comparison.explain(0.01)


def test_a_comparison_is_json():
    fields = json.loads(json.dumps(compare(*with_rates(3, 1, 50), metric="accuracy").to_dict(), allow_nan=False))
    assert fields["drop_interval"][0] < fields["drop"] < fields["drop_interval"][1]
    assert fields["flips"]["num_changed"] == 4


def test_different_examples_are_refused():
    with pytest.raises(InputError, match="same examples"):
        compare(classified([0, 1], [0, 1]), classified([0], [0]), metric="accuracy")


def test_a_relative_drop_from_zero_is_refused():
    zeros = Predictions("regression", np.zeros((3, 1)), np.zeros(3), np.arange(3))
    ones = Predictions("regression", np.ones((3, 1)), np.zeros(3), np.arange(3))
    with pytest.raises(InputError, match="relative drop"):
        compare(zeros, ones, metric="mse")


def recordings(*rows):
    return Predictions("speech-recognition", np.array(rows, dtype=np.float64), None, np.arange(len(rows)))


def test_a_word_error_rate_drops_by_its_rise():
    """2 of 20 words are wrong before and 5 after: 10 % and 25 %, 15 points worse; without a difference nothing is lost."""
    original = recordings((0, 5), (1, 5), (1, 5), (0, 5))
    compressed = recordings((1, 5), (1, 5), (3, 5), (0, 5))
    comparison = compare(original, compressed, metric="word_error_rate")
    assert (comparison.original_score, comparison.compressed_score) == (0.1, 0.25)
    assert comparison.drop == pytest.approx(0.15)
    low, high = comparison.drop_interval
    assert low <= 0 < comparison.drop < high <= 0.4
    assert compare(compressed, original, metric="word_error_rate").drop == pytest.approx(-0.15)
    assert compare(original, original, metric="word_error_rate").drop_interval == (0, 0)


def test_longer_recordings_weigh_more_in_a_word_error_rate():
    """One word of 1 and none of 99: 1 %, not the mean of 100 % and 0 %."""
    comparison = compare(recordings((0, 1), (0, 99)), recordings((1, 1), (0, 99)), metric="word_error_rate")
    assert comparison.compressed_score == pytest.approx(0.01)


def test_the_recordings_that_lost_most_words_come_first():
    flips = compare(recordings((0, 4), (1, 5), (0, 2)), recordings((1, 4), (1, 5), (1, 2)), metric="word_error_rate").flips
    assert [(change.index, change.original, change.compressed) for change in flips.examples] == [(2, 0, 0.5), (0, 0, 0.25)]
    assert flips.num_changed is None


@pytest.mark.parametrize(
    ("task", "metric", "hint"),
    [
        ("speech-recognition", "accuracy", "It is scored by word_error_rate"),
        ("speech-recognition", "perplexity", "It is scored by word_error_rate"),
        ("language-model", "agreement", "It is scored by perplexity"),
        ("classification", "word_error_rate", "It needs totals"),
        ("regression", "perplexity", "It needs totals"),
    ],
)
def test_a_metric_that_reads_something_else_than_the_task_keeps_is_refused(task, metric, hint):
    seen = Predictions(task, np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([0, 1]), np.arange(2))
    with pytest.raises(InputError, match=f"{metric!r} does not suit the task {task}. {hint}"):
        compare(seen, seen, metric=metric)
