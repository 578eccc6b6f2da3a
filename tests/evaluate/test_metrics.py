"""Scores against scikit-learn, SciPy and answers worked out by hand."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lighten.core.errors import InputError
from lighten.evaluate.metrics import METRICS, log_softmax, score, word_errors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def softmax(logits_NC):
    return np.exp(log_softmax(logits_NC))


def test_accuracy_counts_the_largest_logit():
    assert score("accuracy", np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 9.0]]), np.array([0, 1, 1, 1])) == 0.75


def test_top_5_equals_scikit_learn(rng):
    logits, labels = rng.normal(size=(200, 12)), rng.integers(12, size=200)
    expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(12))
    assert score("top_5", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_top_5_never_hits_on_constant_logits():
    assert score("top_5", np.zeros((4, 10)), np.array([0, 1, 2, 9])) == 0.0


def test_macro_f1_equals_scikit_learn_where_a_class_is_absent(rng):
    logits, labels = rng.normal(size=(60, 5)), rng.integers(4, size=60)
    expected = sklearn.metrics.f1_score(labels, logits.argmax(1), average="macro")
    assert score("f1", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_binary_f1_equals_scikit_learn(rng):
    logits, labels = rng.normal(size=(60, 2)), rng.integers(2, size=60)
    assert score("f1_binary", logits, labels) == pytest.approx(sklearn.metrics.f1_score(labels, logits.argmax(1)), abs=1e-12)


def test_spearman_equals_scipy_with_ties(rng):
    values, targets = rng.integers(9, size=80).astype(float), rng.integers(5, size=80).astype(float)
    assert score("spearman", values, targets) == pytest.approx(scipy.stats.spearmanr(values, targets)[0], abs=1e-12)


def test_spearman_of_constant_values_is_zero_and_of_constant_targets_is_refused():
    assert score("spearman", np.ones(5), np.arange(5.0)) == 0.0
    with pytest.raises(InputError, match="undefined"):
        score("spearman", np.arange(5.0), np.ones(5))


def test_binary_auc_equals_scikit_learn_with_ties(rng):
    values, labels = rng.integers(6, size=90).astype(float), rng.integers(2, size=90)
    expected = sklearn.metrics.roc_auc_score(labels, values)
    assert score("auc", values, labels) == pytest.approx(expected, abs=1e-12)
    two_columns = np.stack([np.zeros(90), values], axis=1)
    assert score("auc", two_columns, labels) == pytest.approx(expected, abs=1e-12)


def test_one_against_rest_auc_equals_scikit_learn(rng):
    logits, labels = rng.normal(size=(90, 4)), rng.integers(4, size=90)
    expected = sklearn.metrics.roc_auc_score(labels, softmax(logits), multi_class="ovr")
    assert score("auc", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_over_labelled_frames_equals_scikit_learn_over_all_of_them(rng):
    frames, labels = rng.integers(9, size=(30, 7)).astype(float), rng.integers(2, size=(30, 7))
    expected = sklearn.metrics.roc_auc_score(labels.ravel(), frames.ravel())
    assert score("auc", frames, labels) == pytest.approx(expected, abs=1e-12)


def test_resampled_auc_over_frames_draws_whole_examples(rng):
    frames, labels = rng.normal(size=(300, 50)), rng.integers(2, size=(300, 50))
    drawn_RN = rng.integers(300, size=(200, 300))  # 200 x 300 x 50 cells: more than one block
    counts_RN = np.stack([np.bincount(drawn, minlength=300) for drawn in drawn_RN]).astype(float)
    areas_R = METRICS["auc"].score(frames, labels, counts_RN)
    expected = [score("auc", frames[drawn], labels[drawn]) for drawn in drawn_RN[[0, 100, 199]]]
    assert areas_R[[0, 100, 199]] == pytest.approx(expected, abs=1e-12)


def test_frame_labels_must_have_the_shape_of_the_outputs(rng):
    with pytest.raises(InputError, match=r"\(30, 6\) do not fit outputs of shape \(30, 7\)"):
        score("auc", rng.normal(size=(30, 7)), rng.integers(2, size=(30, 6)))


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", (0, 3)),
        ("the hat sat down", "the cat sat", (2, 3)),
        ("sat", "the cat sat", (2, 3)),
        ("", "one two", (2, 2)),
        ("one two", "", (2, 0)),
    ],
)
def test_word_errors_count_substitutions_deletions_and_insertions(hypothesis, reference, expected):
    assert word_errors(hypothesis, reference) == expected


def test_word_error_rate_pools_errors_over_all_words():
    rows = np.array([word_errors("a b x", "a b c"), word_errors("d", "d")])
    assert score("word_error_rate", rows) == pytest.approx(1 / 4)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_size():
    losses = np.array([[10 * np.log(50), 10], [3 * np.log(50), 3]])
    assert score("perplexity", losses) == pytest.approx(50)


def test_mse_equals_scikit_learn(rng):
    values, targets = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    assert score("mse", values, targets) == pytest.approx(sklearn.metrics.mean_squared_error(targets, values))


def test_mean_kl_equals_the_sum_over_classes_and_is_zero_for_equal_logits(rng):
    original, values = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    expected = scipy.stats.entropy(softmax(original), softmax(values), axis=1).mean()
    assert score("mean_kl", values, original) == pytest.approx(expected)
    assert score("mean_kl", original, original) == 0.0


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc", "top_5", "spearman", "mse", "mean_kl", "perplexity"])
def test_counting_an_example_twice_equals_repeating_it(name, rng):
    """The bootstrap rests on this: scores over counts equal scores over the drawn examples."""
    drawn = rng.integers(40, size=40)
    counts = np.bincount(drawn, minlength=40)[None].astype(float)
    values, targets = {
        "spearman": (rng.integers(9, size=40).astype(float), rng.normal(size=40)),
        "mse": (rng.normal(size=(40, 2)), rng.normal(size=(40, 2))),
        "mean_kl": (rng.normal(size=(40, 8)), rng.normal(size=(40, 8))),
        "perplexity": (np.stack([rng.uniform(1, 9, 40), rng.integers(1, 9, 40)], axis=1), np.zeros(40)),
    }.get(name, (rng.normal(size=(40, 8)), rng.integers(8, size=40)))
    assert METRICS[name].score(values, targets, counts)[0] == pytest.approx(score(name, values[drawn], targets[drawn]))


def test_drop_is_positive_when_the_compressed_network_is_worse():
    assert METRICS["accuracy"].drop(0.9, 0.8) == pytest.approx(0.1)
    assert METRICS["word_error_rate"].drop(0.1, 0.3) == pytest.approx(0.2)
    assert METRICS["perplexity"].drop(20.0, 22.0) == pytest.approx(0.1)


def test_a_label_outside_the_classes_is_refused_with_its_row():
    with pytest.raises(InputError, match=r"Label 3 of row 1 .* 0 to 2"):
        score("accuracy", np.zeros((2, 3)), np.array([0, 3]))


def test_missing_labels_point_to_agreement():
    with pytest.raises(InputError, match="agreement"):
        score("accuracy", np.zeros((2, 3)))


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(InputError, match="'accuracy'"):
        score("acuracy", np.zeros((2, 3)), np.zeros(2, dtype=int))
