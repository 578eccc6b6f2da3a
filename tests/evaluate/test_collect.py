"""What is kept of each task's outputs, and which example an error names."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from lighten.core.data import Batch, Example
from lighten.core.errors import InputError, ParityError, UnfitError
from lighten.data.rows import Alphabet
from lighten.evaluate.collect import best_path, collect, collect_pair
from lighten.evaluate.parity import parity
from lighten.evaluate.predictions import Pass
from lighten.evaluate.probe import collect_probe, probe_logits


class Rows:
    """A split over tensors with one row an example."""

    def __init__(self, *inputs, target=None):
        self.inputs, self.target = inputs, target

    def __len__(self):
        return len(self.inputs[0])

    def batches(self, size, limit=None):
        for start in range(0, min(limit or len(self), len(self)), size):
            rows = slice(start, min(start + size, limit or len(self), len(self)))
            target = None if self.target is None else self.target[rows]
            inputs = tuple(tensor[rows] for tensor in self.inputs)
            yield Batch(inputs, target, tuple(range(rows.start, rows.start + len(inputs[0]))))

    def describe(self, index):
        return Example(title=f"row{index}.png")


class Recordings(Rows):
    """Token 0 is CTC's blank, 1 a space, then the letters a, b, c."""

    alphabet = Alphabet(0, lambda ids: "".join("? abc"[token] for token in ids))


class Pairs(Rows):
    """Two texts an example, already embedded; a batch holds first texts, then second ones."""

    def batches(self, size, limit=None):
        for batch in super().batches(size, limit):
            yield Batch((torch.cat(batch.inputs),), batch.target, batch.index)


def test_classification_keeps_every_logit_and_label_in_order():
    x, y = torch.randn(10, 4), torch.arange(10) % 3
    layer = nn.Linear(4, 3)
    seen = collect(layer, Rows(x, target=y), how=Pass("classification", batch_size=4), what="scoring")
    np.testing.assert_allclose(seen.values, layer(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert seen.targets.tolist() == y.tolist()
    assert seen.index.tolist() == list(range(10))
    assert seen.are_classes


def test_the_limit_takes_the_first_examples_and_the_first_output_is_scored():
    x = torch.randn(10, 4)
    seen = collect(lambda t: (t, t * 0), Rows(x), how=Pass("regression", batch_size=4, limit=6), what="scoring")
    assert seen.targets is None
    np.testing.assert_array_equal(seen.values, x[:6].numpy())


def test_sentence_pairs_give_one_cosine_each():
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = torch.tensor([[0.0, 3.0], [2.0, 2.0], [-1.0, 0.0]])
    split = Pairs(first, second, target=torch.tensor([0.0, 5.0, 1.0]))
    seen = collect(lambda t: t, split, how=Pass("sentence-similarity", batch_size=2), what="scoring")
    np.testing.assert_allclose(seen.values, [0.0, 1.0, -1.0], atol=1e-6)


def test_language_models_keep_the_loss_of_real_tokens_only():
    """Uniform logits cost log(V) a token; of 5 tokens 4 are predicted, and the mask leaves out those that touch padding."""
    ids = torch.randint(7, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    seen = collect(
        lambda i, m: torch.zeros(*i.shape, 7), Rows(ids, mask), how=Pass("language-model", batch_size=2), what="scoring"
    )
    assert seen.values[:, 1].tolist() == [4, 2, 2]
    np.testing.assert_allclose(seen.values[:, 0], np.array([4, 2, 2]) * math.log(7), rtol=1e-6)


def heard(*tokens):
    """Logits of a network that is sure of one token a frame."""
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(tokens), 5)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([2, 2, 2], [2]),
        ([2, 0, 2], [2, 2]),
        ([0, 0, 0], []),
        ([0, 2, 2, 0, 0, 3, 1, 1, 0, 3, 3], [2, 3, 1, 3]),
        ([4], [4]),
    ],
)
def test_the_best_path_merges_repeats_before_it_drops_blanks(frames, expected):
    assert best_path(heard(*frames), blank=0) == expected


def test_another_blank_is_dropped_instead():
    assert best_path(heard(0, 4, 0, 0, 1), blank=4) == [0, 0, 1]


def test_a_recognizer_keeps_wrong_words_and_spoken_words_of_each_recording():
    """Said: "a b", "ab", "c a b". Heard: the same, "a b" (one word wrong, one too many), and "a" (two words missing)."""
    said = torch.tensor([[2, 1, 3, -1, -1], [2, 3, -1, -1, -1], [4, 1, 2, 1, 3]])
    logits = torch.stack([heard(2, 1, 3, 3), heard(2, 2, 1, 3), heard(0, 2, 0, 0)])
    seen = collect(lambda x: x, Recordings(logits, target=said), how=Pass("speech-recognition", batch_size=2), what="scoring")
    assert seen.values.tolist() == [[0, 2], [2, 1], [2, 3]]
    assert seen.targets is None
    assert not seen.are_classes


def test_a_frame_that_is_not_finite_names_its_recording():
    logits = torch.stack([heard(2, 1), heard(2, 1)])
    logits[1, 0, 3] = math.nan
    split = Recordings(logits, target=torch.tensor([[2], [2]]))
    with pytest.raises(ParityError, match=r"not finite .* example 1 \(row1.png\)"):
        collect(lambda x: x, split, how=Pass("speech-recognition"), what="scoring")


@pytest.mark.parametrize(
    "split", [Rows(torch.zeros(2, 3, 5), target=torch.ones(2, 1).long()), Recordings(torch.zeros(2, 3, 5))]
)
def test_recordings_without_an_alphabet_or_without_transcripts_are_refused(split):
    with pytest.raises(InputError, match="does not say what its recordings say"):
        collect(lambda x: x, split, how=Pass("speech-recognition"), what="scoring")


def test_a_pair_gives_the_mean_kl_per_real_token():
    """The compressed network is uniform over 4, the original is sure of one in two: KL = log 4 - log 2."""
    half = torch.tensor([0.0, 0.0, -1e4, -1e4])
    ids = torch.zeros(3, 6, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    how = Pass("language-model", batch_size=2)
    pair = collect_pair(
        lambda i, m: half.expand(*i.shape, 4),
        lambda i, m: torch.zeros(*i.shape, 4),
        split=Rows(ids, mask),
        how=how,
        what="scoring",
    )
    assert pair.mean_kl == pytest.approx(math.log(2), rel=1e-6)
    assert pair.original.values[:, 1].tolist() == [5, 1, 5]
    np.testing.assert_allclose(pair.original.values[:, 0], np.array([5, 1, 5]) * math.log(2), rtol=1e-6)


def test_a_pair_of_classifiers_gives_the_mean_kl_per_example():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    pair = collect_pair(lambda t: t, lambda t: 0 * t, split=Rows(x), how=Pass("classification", batch_size=2), what="scoring")
    p = 1 / (1 + math.exp(-1))
    assert pair.mean_kl == pytest.approx((p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) / 3, rel=1e-5)


def test_an_output_that_is_not_finite_names_its_example():
    x = torch.ones(7, 2)
    x[5, 1] = math.nan
    with pytest.raises(ParityError, match=r"scoring the file: .*example 5 \(row5.png\)"):
        collect(lambda t: t, Rows(x), how=Pass("classification", batch_size=3), what="scoring the file")


def test_a_target_that_is_not_finite_is_the_callers_error():
    with pytest.raises(InputError, match="example 1"):
        collect(
            lambda t: t, Rows(torch.ones(2, 1), target=torch.tensor([0.0, math.inf])), how=Pass("regression"), what="scoring"
        )


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("classification", (2, 3, 4)),
        ("sentence-similarity", (3, 4)),
        ("language-model", (2, 4)),
        ("classification", (5, 3)),
        ("speech-recognition", (2, 4)),
    ],
)
def test_an_output_of_the_wrong_shape_is_refused(task, shape):
    with pytest.raises(UnfitError):
        collect(lambda *_: torch.zeros(shape), Rows(torch.zeros(2, 4, dtype=torch.long)), how=Pass(task), what="scoring")


def test_an_empty_split_and_an_unknown_task_are_refused():
    with pytest.raises(InputError, match="no examples"):
        collect(lambda t: t, Rows(torch.ones(0, 2)), how=Pass("regression"), what="scoring")
    with pytest.raises(InputError, match="regression"):
        collect(lambda t: t, Rows(torch.ones(1, 2)), how=Pass("regresion"), what="scoring")


def test_the_probe_reads_labels_that_are_linear_in_the_embedding():
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    how = Pass("text-classification", batch_size=64)
    # Any invertible linear map, scale included, leaves the labels as readable as they were.
    mixed = nn.Linear(6, 6)
    nn.init.orthogonal_(mixed.weight, gain=100.0)
    seen = collect_probe(mixed, train=Rows(x[:200], target=y[:200]), test=Rows(x[200:], target=y[200:]), how=how, what="probe")
    assert (seen.values.argmax(1) == seen.targets).mean() > 0.85


def test_the_probe_equals_scikit_learns_ridge():
    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(50, 4)), rng.normal(size=(9, 4)), np.arange(50) % 3
    mean, deviation = train.mean(0), train.std(0)
    ridge = Ridge(alpha=0.05 * 50).fit((train - mean) / deviation, np.eye(3)[labels])
    np.testing.assert_allclose(probe_logits(train, labels, test), ridge.predict((test - mean) / deviation), atol=1e-10)


def test_parity_measures_every_output():
    x = torch.tensor([[3.0, 4.0], [0.0, 5.0], [1.0, 7.0]])
    moved = parity(lambda t: (t, t[:, 0]), lambda t: (t + 0.5, t[:, 0]), Rows(x), how=Pass("regression", batch_size=2))
    assert moved.max_abs == 0.5
    assert moved.mean_abs == pytest.approx(6 * 0.5 / 9)
    assert moved.sqnr_db == pytest.approx(10 * math.log10((100 + 10) / (6 * 0.25)))
    assert (moved.num_examples, moved.argmax_agreement) == (3, 1.0)
    equal = parity(lambda t: t, lambda t: t, Rows(x), how=Pass("regression"))
    assert (equal.max_abs, equal.sqnr_db) == (0.0, math.inf)
    assert equal.to_dict()["sqnr_db"] is None


def test_parity_counts_rows_whose_largest_entry_moved():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    signs = torch.tensor([[-1.0], [1.0], [1.0], [1.0]])
    found = parity(lambda t, s: t, lambda t, s: t * s, Rows(x, signs), how=Pass("regression"))
    assert found.argmax_agreement == 0.75


def test_parity_refuses_other_shapes_and_names_an_example_that_is_not_finite():
    x = torch.ones(5, 2)
    with pytest.raises(ParityError, match="shape"):
        parity(lambda t: t, lambda t: t[:, :1], Rows(x), how=Pass("regression"))
    bad = x.clone()
    bad[3, 0] = math.inf
    with pytest.raises(ParityError, match=r"example 3 \(row3.png\)"):
        parity(lambda t, _: t, lambda _, b: b, Rows(x, bad), how=Pass("regression", batch_size=2))
