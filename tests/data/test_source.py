"""What holds for every source: splits, digests, labels in range."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Tensors
from torch import nn

import lighten
from lighten.core.data import Data, Example
from lighten.core.errors import InputError
from lighten.data.labels import classes
from lighten.data.rows import Rows, divide
from lighten.data.source import check_labels, require_labels

X = torch.arange(400.0).reshape(100, 4)
Y = torch.arange(100) % 3


@pytest.fixture
def model():
    return lighten.load(nn.Linear(4, 3), example=torch.zeros(2, 4))


def rows(targets: torch.Tensor | None, count: int = 100) -> Rows:
    return Rows(list(range(count)), lambda chosen: (torch.tensor(chosen),), targets, lambda row, _: Example(f"row {row}"))


def test_a_missing_file_is_named(model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"none\.npz does not exist. Data is a folder of images"):
        lighten.load_data(tmp_path / "none.npz", model=model)


def test_a_file_of_another_kind_is_refused(model, tmp_path) -> None:
    (tmp_path / "data.xml").write_text("<data/>")
    with pytest.raises(InputError, match=r"\.xml file is not read"):
        lighten.load_data(tmp_path / "data.xml", model=model)


def test_thirty_percent_of_each_class_go_to_training() -> None:
    targets = torch.cat([torch.zeros(10), torch.ones(30), torch.full((60,), 2)]).long()
    train, test = divide(rows(targets), seed=0)
    assert [int((train.targets == label).sum()) for label in range(3)] == [3, 9, 18]
    assert sorted([*train.rows, *test.rows]) == list(range(100))
    assert list(train.rows) == sorted(train.rows)
    assert all(int(targets[row]) == int(target) for row, target in zip(test.rows, test.targets, strict=True))


@pytest.mark.parametrize("targets", [None, torch.linspace(0, 1, 100), torch.zeros(100, 2).long()])
def test_without_classes_thirty_percent_of_all_go_to_training(targets) -> None:
    train, test = divide(rows(targets), seed=0)
    assert (len(train), len(test)) == (30, 70)


def test_the_seed_alone_decides_the_split() -> None:
    first, again, other = (list(divide(rows(Y), seed)[0].rows) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_below_ten_examples_there_is_no_training_split() -> None:
    train, test = divide(rows(None, 9), seed=0)
    assert train is None
    assert len(test) == 9


def test_the_seed_reaches_files(model, tmp_path) -> None:
    np.savez(tmp_path / "data.npz", x=X.numpy(), y=Y.numpy())
    splits = [lighten.load_data(tmp_path / "data.npz", model=model, seed=seed).train for seed in (0, 0, 1)]
    first, again, other = (torch.cat([batch.inputs[0] for batch in split.batches(8)]) for split in splits)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def write_arrays(folder: Path, value: float) -> Path:
    np.savez(folder / "data.npz", x=np.full((3, 4), value, dtype=np.float32), y=np.arange(3))
    return folder / "data.npz"


def test_the_digest_of_a_file_changes_with_its_content_only(model, tmp_path) -> None:
    first, again, other = (lighten.load_data(write_arrays(tmp_path, value), model=model).digest for value in (1, 1, 2))
    assert first == again != other
    assert len(first) == 64


def test_the_digest_of_batches_changes_with_inputs_targets_and_training_split(model) -> None:
    sources = [
        [(X, Y)],
        [(X + 1, Y)],
        [(X, Y + 1)],
        ([(X, Y)], [(X, Y)]),
        ([(X + 1, Y)], [(X, Y)]),
    ]
    digests = [lighten.load_data(source, model=model).digest for source in sources]
    assert len(set(digests)) == len(sources)
    assert lighten.load_data([(X[:50], Y[:50]), (X[50:], Y[50:])], model=model).digest == digests[0]


def test_the_digest_of_a_folder_changes_when_a_file_moves_to_another_class(tmp_path) -> None:
    from PIL import Image

    model = lighten.load(nn.Conv2d(3, 2, 4), example=torch.zeros(2, 3, 4, 4))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), 9).save(tmp_path / name / f"{name}.png")
    before = lighten.load_data(tmp_path, model=model).digest
    assert lighten.load_data(tmp_path, model=model).digest == before
    (tmp_path / "cat" / "cat.png").rename(tmp_path / "dog" / "cat.png")
    assert lighten.load_data(tmp_path, model=model).digest != before


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named_with_its_example(label, model) -> None:
    targets = Y.clone()
    targets[41] = label
    data = lighten.load_data(([(X, Y)], [(X, targets)]), model=model)
    with pytest.raises(InputError, match=rf"Label {label} of example 41 is out of range: the model has 3 outputs. .*0 to 2"):
        check_labels(data, num_outputs=3)


def test_labels_of_splits_made_by_others_are_checked_batch_by_batch() -> None:
    data = Data("mine", "classification", "accuracy", Tensors((X,), Y))
    check_labels(data, num_outputs=3)
    with pytest.raises(InputError, match="Label 2 of row 2 is out of range"):
        check_labels(data, num_outputs=2)


def test_labels_are_checked_without_preparing_an_input() -> None:
    def never(chosen):
        raise AssertionError("an input was prepared")

    data = Data("mine", "classification", "accuracy", Rows(list(range(100)), never, Y, lambda row, _: Example("")))
    check_labels(data, num_outputs=3)


def test_what_has_no_classes_is_not_checked(model) -> None:
    check_labels(lighten.load_data([(X, Y.float())], model=model), num_outputs=1)
    check_labels(lighten.load_data([X], model=model), num_outputs=1)
    check_labels(lighten.load_data([(X, Y)], model=model), num_outputs=None)


@pytest.mark.parametrize(
    ("found", "own", "expected"),
    [
        (["b", "a"], (), ("a", "b")),
        (["B"], ("b", "a"), ("b", "a")),
        (["0", "2"], (), ("0", "1", "2")),
        (["0", "2"], ("x", "y", "z"), ("x", "y", "z")),
        (["7"], ("x", "y"), tuple("01234567")),
        (["10", "2"], ("2", "10"), ("2", "10")),
        (["b", "a"], ("LABEL_0", "LABEL_1", "LABEL_2"), ("a", "b")),
        (["label_1"], ("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1")),
    ],
)
def test_classes_stand_in_the_order_of_the_outputs(found, own, expected) -> None:
    labels, places = classes(found, own)
    assert labels == expected
    assert all(labels[places[name]].lower() == name.lower() or places[name] == int(name) for name in found)


def test_files_without_labels_are_refused_and_batches_are_not(tmp_path) -> None:
    path = tmp_path / "x.npz"
    path.touch()
    split = Tensors((torch.zeros(3, 2),))
    data = Data("x", "classification", "agreement", split)
    with pytest.raises(InputError, match=r"has no labels\. --metric agreement"):
        require_labels(data, str(path))
    assert require_labels(data, [torch.zeros(3, 2)]) is data
    assert require_labels(data, "package.module:callable") is data
