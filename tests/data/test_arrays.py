"""NumPy archives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import encoder, residual
from torch import nn

import lighten
from lighten.core.errors import InputError

X = np.arange(40 * 4, dtype=np.float32).reshape(40, 4)
Y = np.arange(40) % 4


def network():
    return lighten.load(nn.Linear(4, 4), example=torch.zeros(2, 4))


def load(tmp_path, model=None, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return lighten.load_data(tmp_path / "data.npz", model=model or network())


def inputs(split):
    return torch.cat([batch.inputs[0] for batch in split.batches(8)])


def test_integer_y_are_classes_scored_by_accuracy(tmp_path) -> None:
    data = load(tmp_path, x=X, y=Y)
    assert (data.task, data.metric, len(data.train), len(data.test)) == ("classification", "accuracy", 12, 28)
    batch = next(data.test.batches(3))
    assert torch.equal(batch.inputs[0], torch.from_numpy(X[[int(row[0]) // 4 for row in batch.inputs[0]]]))
    assert batch.target.dtype == torch.int64
    assert batch.index == (0, 1, 2)


def test_real_y_are_regression_targets(tmp_path) -> None:
    data = load(tmp_path, x=X, y=Y / 7)
    assert (data.task, data.metric) == ("regression", "mse")
    assert next(data.test.batches(3)).target.dtype == torch.float64


def test_without_y_the_networks_are_compared_with_each_other(tmp_path) -> None:
    data = load(tmp_path, x=X)
    assert (data.task, data.metric) == ("classification", "agreement")
    assert next(data.test.batches(3)).target is None


def test_given_splits_stay_as_they_are(tmp_path) -> None:
    data = load(tmp_path, x_train=X[:5], y_train=Y[:5], x_test=X[5:], y_test=Y[5:])
    assert torch.equal(inputs(data.train), torch.from_numpy(X[:5]))
    assert torch.equal(inputs(data.test), torch.from_numpy(X[5:]))


def test_a_test_split_alone_is_divided(tmp_path) -> None:
    data = load(tmp_path, x_test=X, y_test=Y)
    assert (len(data.train), len(data.test)) == (12, 28)


def test_a_column_of_classes_is_taken_as_a_row_each(tmp_path) -> None:
    assert next(load(tmp_path, x=X, y=Y[:, None]).test.batches(3)).target.shape == (3,)


def test_booleans_are_two_classes(tmp_path) -> None:
    data = load(tmp_path, x=X, y=Y > 1)
    assert set(next(data.test.batches(40)).target.tolist()) == {0, 1}


def test_bytes_become_the_networks_numbers_unchanged(tmp_path) -> None:
    data = load(tmp_path, x=(X % 256).astype(np.uint8), y=Y)
    assert inputs(data.test).dtype == torch.float32
    assert inputs(data.test).max() > 1


def test_rows_with_nan_or_infinity_are_left_out_and_named(tmp_path) -> None:
    x, y = X.copy(), Y / 7
    x[3, 1], x[7, 0], y[9] = np.nan, np.inf, np.nan
    data = load(tmp_path, x=x, y=y)
    assert [(row.where, row.why) for row in data.bad_rows] == [(f"x[{row}]", "NaN or infinity") for row in (3, 7, 9)]
    assert len(data.train) + len(data.test) == 37


def test_mostly_nan_is_refused(tmp_path) -> None:
    x = X.copy()
    x[:21, 0] = np.nan
    with pytest.raises(InputError, match="21 of 40 rows of x hold NaN or infinity"):
        load(tmp_path, x=x, y=Y)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X[:, :3], "y": Y}, r"an example of x has shape \(3,\), the model takes \(4,\)"),
        ({"x": X[0], "y": Y}, r"has shape \(\), the model takes \(4,\)"),
        ({"x": X, "y": Y[:30]}, "x has 40 rows, y has 30"),
        ({"x": X, "y": np.array(1)}, "x has 40 rows, y has none"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"x": X, "y": np.eye(40, dtype=int)}, r"y has the shape \(40, 40\)"),
        ({"x": X, "y": np.array(["cat"] * 40)}, "y has type <U3"),
        ({"x": X.astype(str), "y": Y}, "x has type <U"),
        ({"x": X * 1j, "y": Y}, "x has type complex64"),
        ({"features": X, "labels": Y}, "holds features, labels. It needs x and y"),
        ({"x": np.array([None, "a"], dtype=object)}, "not a readable .npz of plain arrays"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y}, r"x_test has shape \(2,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, **arrays)


def two_inputs(task=None):
    model = encoder()
    return replace(model, input_names=("ids", "mask"), origin=replace(model.origin, task=task))


def test_a_network_of_two_inputs_needs_both_under_their_names(tmp_path) -> None:
    with pytest.raises(InputError, match="holds x. It needs ids, mask and y, or ids_test, mask_test and y_test"):
        load(tmp_path, two_inputs(), x=X)


@pytest.mark.parametrize("part", ["", "_test"])
def test_arrays_named_as_the_networks_inputs_are_given_in_its_order(part, tmp_path) -> None:
    mask, ids = np.ones((12, 7), np.int32), np.arange(84).reshape(12, 7) % 30
    data = load(tmp_path, two_inputs("text-classification"), **{f"mask{part}": mask, f"y{part}": Y[:12], f"ids{part}": ids})
    assert (data.task, data.metric, len(data.train), len(data.test)) == ("text-classification", "accuracy", 4, 8)
    for split in (data.train, data.test):
        batch = next(split.batches(12))
        rows = [int(split.describe(index).title.removeprefix("row ")) for index in range(len(split))]
        assert torch.equal(batch.inputs[0], torch.from_numpy(ids[rows]))
        assert torch.equal(batch.inputs[1], torch.ones(len(rows), 7, dtype=torch.int64))
        assert batch.target.tolist() == Y[rows].tolist()


def test_token_arrays_of_a_language_model_are_their_own_targets(tmp_path) -> None:
    ids = np.ones((4, 7), np.int64)
    assert load(tmp_path, two_inputs("language-model"), ids=ids, mask=ids).metric == "perplexity"


def test_inputs_of_other_lengths_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="ids has 4 rows, mask has 3"):
        load(tmp_path, two_inputs(), ids=np.ones((4, 7), int), mask=np.ones((3, 7), int))


def test_one_input_may_go_by_its_own_name(tmp_path) -> None:
    assert len(load(tmp_path, input=X[:5], y=Y[:5]).test) == 5


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_a_corrupt_archive_is_refused(content, tmp_path) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable .npz"):
        lighten.load_data(tmp_path / "data.npz", model=network())


def test_damage_inside_an_array_is_found(tmp_path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(40, 4)), y=Y)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[300:400] = bytes(100)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable .npz"):
        lighten.load_data(tmp_path / "data.npz", model=network())


def test_a_single_array_under_the_wrong_name_is_refused(tmp_path) -> None:
    np.save(tmp_path / "data.npy", X)
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    with pytest.raises(InputError, match="not a readable .npz"):
        lighten.load_data(tmp_path / "data.npz", model=network())


def test_arrays_that_look_like_images_are_shown_as_such(tmp_path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 16, 16))
    data = load(tmp_path, residual(), x=x, y=Y[:4])
    assert data.test.describe(2).image_png.startswith(b"\x89PNG")
    assert load(tmp_path, x=X, y=Y).test.describe(2).image_png == b""
