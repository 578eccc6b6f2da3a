"""Batches made in Python, or by a callable named on the command line."""

from dataclasses import replace

import pytest
import torch
from networks import encoder, residual
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lighten
from lighten.core.data import Data
from lighten.core.errors import InputError

X = torch.arange(48.0).reshape(12, 4)
Y = torch.arange(12) % 3


@pytest.fixture
def model():
    return lighten.load(nn.Linear(4, 3), example=torch.zeros(2, 4))


def everything(data):
    splits = [data.test] if data.train is None else [data.train, data.test]
    return torch.cat([batch.inputs[0] for split in splits for batch in split.batches(5)])


@pytest.mark.parametrize(
    "batches",
    [
        [(X[:7], Y[:7]), (X[7:], Y[7:])],
        [[X[:7], Y[:7]], [X[7:], Y[7:]]],
        [((X[:7],), Y[:7]), ((X[7:],), Y[7:])],
        ({"input": X[start : start + 6], "target": Y[start : start + 6]} for start in (0, 6)),
        [{"input": X, "labels": Y}],
        DataLoader(TensorDataset(X, Y), batch_size=5),
        ((X, Y),),
        ((X[:7], Y[:7]), (X[7:], Y[7:])),
    ],
    ids=["tuples", "lists", "nested", "mappings", "labels", "loader", "one tuple", "two tuples"],
)
def test_every_form_of_batches_gives_the_same_examples(batches, model) -> None:
    data = lighten.load_data(batches, model=model)
    assert (data.task, data.metric) == ("classification", "accuracy")
    assert data.train is None
    assert torch.equal(everything(data), X)
    for batch in data.test.batches(4):
        assert torch.equal(batch.inputs[0][:, 0] / 4 % 3, batch.target.float())


def test_a_pair_of_iterables_is_train_and_test(model) -> None:
    data = lighten.load_data(([(X[:4], Y[:4])], iter([(X[4:], Y[4:])])), model=model)
    assert torch.equal(everything(data), X)
    assert (len(data.train), len(data.test)) == (4, 8)


@pytest.mark.parametrize("batches", [[X], [(X,)], [[X]], [{"input": X}]])
def test_inputs_alone_compare_the_networks_with_each_other(batches, model) -> None:
    data = lighten.load_data(batches, model=model)
    assert data.metric == "agreement"
    assert next(data.test.batches(3)).target is None


def test_real_targets_are_a_regression(model) -> None:
    data = lighten.load_data([(X, Y.float())], model=model)
    assert (data.task, data.metric) == ("regression", "mse")


def test_two_inputs_in_a_row_and_a_target() -> None:
    ids = torch.ones(4, 7, dtype=torch.int64)
    model = encoder()
    data = lighten.load_data([(ids, ids, torch.arange(4))], model=model)
    assert (data.task, data.metric) == ("text-classification", "probe")
    batch = next(data.test.batches(4))
    assert len(batch.inputs) == 2
    assert batch.target.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="need class numbers as targets"):
        lighten.load_data([(ids, ids)], model=model)


def test_tokens_of_a_language_model_are_their_own_targets() -> None:
    ids = torch.ones(4, 7, dtype=torch.int64)
    model = encoder()
    model = replace(model, origin=replace(model.origin, task="language-model"))
    assert lighten.load_data([(ids, ids)], model=model).metric == "perplexity"


def test_other_lengths_do_not_share_a_batch() -> None:
    ids = [torch.ones(2, length, dtype=torch.int64) for length in (7, 7, 9)]
    model = encoder()
    model = replace(model, origin=replace(model.origin, task="language-model"))
    data = lighten.load_data([(one, one) for one in ids], model=model)
    assert [tuple(batch.inputs[0].shape) for batch in data.test.batches(16)] == [(4, 7), (2, 9)]
    assert [batch.index for batch in data.test.batches(3)] == [(0, 1, 2), (3,), (4, 5)]
    assert [batch.index for batch in data.test.batches(16, limit=3)] == [(0, 1, 2)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "The data has no batch"),
        ([(X[:0], Y[:0])], "The data has no batch"),
        (3, "The data is a int, which is no iterable"),
        ([3], "Batch 0 is a int"),
        ([()], "Batch 0 is a tuple"),
        (["text"], "Batch 0 is a str"),
        ([(X[:, :3], Y)], r"Batch 0 has shape \(12, 3\), the model takes \(2, 4\)"),
        ([(X, Y), (X.numpy(), Y)], "Batch 1 has 1 inputs, the model takes 1 tensors"),
        ([{"image": X, "target": Y}], "Batch 0 has no input. Needed: input"),
        ([(X, Y), (X / 0, Y)], "12 of 24 examples hold NaN or infinity"),
        ([(X, Y), X], "12 targets for 24 examples. Give every batch a target, or none"),
        ([(X, Y[:5])], r"The target of batch 0 has the shape \(5,\)"),
        ([(X, torch.tensor(1))], r"The target of batch 0 has the shape \(\)"),
        ([(X, [0] * 12)], "The target of batch 0 has type list"),
        ([(X, X / 0)], "12 of 12 examples hold NaN or infinity"),
        ([(X, Y), (X, torch.zeros(12, 2))], "The targets differ in shape"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batches, message, model) -> None:
    with pytest.raises(InputError, match=message):
        lighten.load_data(batches, model=model)


def test_examples_with_nan_or_infinity_are_left_out_and_counted(model) -> None:
    x, real = X.clone(), torch.arange(12.0)
    x[2, 1], x[9, 3], real[4] = float("nan"), float("inf"), float("-inf")
    data = lighten.load_data([(x[:7], real[:7]), (x[7:], real[7:])], model=model)
    assert [(row.where, row.why) for row in data.bad_rows] == [
        (f"batch {batch}, row {row}", "NaN or infinity") for batch, row in ((0, 2), (0, 4), (1, 2))
    ]
    kept = [0, 1, 3, 5, 6, 7, 8, 10, 11]
    assert torch.equal(everything(data), X[kept])
    assert next(data.test.batches(12)).target.tolist() == kept
    assert data.test.describe(2).title == "example 3"  # its place among all that were given


def test_an_example_left_out_of_the_training_batches_is_named_as_such(model) -> None:
    x = X.clone()
    x[1] = float("nan")
    data = lighten.load_data(([(x, Y)], [(X, Y)]), model=model)
    assert ([row.where for row in data.bad_rows], len(data.train), len(data.test)) == (["training batch 0, row 1"], 11, 12)


def test_a_number_too_large_for_the_networks_type_is_infinity(model) -> None:
    x = X.double()
    x[5, 0] = 1e300
    assert [row.where for row in lighten.load_data([(x, Y)], model=model).bad_rows] == ["batch 0, row 5"]


def test_inputs_of_one_batch_have_as_many_rows_each() -> None:
    with pytest.raises(InputError, match="The inputs of batch 0 have 4, 3 rows"):
        lighten.load_data([(torch.ones(4, 7).long(), torch.ones(3, 7).long(), Y[:4])], model=encoder())


CALLABLES = """
import torch
from lighten.core.data import Data

def batches(): return [(torch.zeros(12, 4), torch.arange(12) % 3)]
def pair(): return batches(), batches()
def data(): return Data("mine", "classification", "accuracy", None)
def fails(): raise OSError("no such table")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = f"data_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CALLABLES)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_callable_gives_batches_a_pair_or_data(package, model) -> None:
    data = lighten.load_data(f"{package}:batches", model=model)
    assert (data.source, data.train, len(data.test)) == (f"{package}:batches", None, 12)
    assert len(lighten.load_data(f"{package}:pair", model=model).train) == 12
    assert lighten.load_data(f"{package}:data", model=model).source == "mine"


def test_a_callable_that_fails_is_named_with_its_error(package, model) -> None:
    with pytest.raises(InputError, match=f"{package}:fails failed: OSError: no such table"):
        lighten.load_data(f"{package}:fails", model=model)


def test_data_passes_through() -> None:
    data = Data("mine", "classification", "accuracy", None)
    assert lighten.load_data(data, model=residual()) is data
