"""Folders of images by class."""

import io
import json
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from networks import residual
from PIL import Image

import lighten
from lighten.core.errors import InputError


def draw(path: Path, value: int | tuple[int, ...] = 128, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def two_classes(folder: Path, count: int = 10) -> Path:
    for number in range(count):
        draw(folder / "cat" / f"{number}.png", number * 20, "L")
        draw(folder / "dog" / f"{number}.jpg", (255 - number, number, 0))
    return folder


def targets(split) -> list[int]:
    return [int(value) for batch in split.batches(4) for value in batch.target]


def titles(split) -> list[str]:
    return [split.describe(index).title for index in range(len(split))]


def named(*labels: str):
    model = residual()
    return replace(model, origin=replace(model.origin, labels=labels))


def test_one_folder_a_class_is_split_class_by_class(tmp_path) -> None:
    data = lighten.load_data(two_classes(tmp_path), model=residual())
    assert (data.task, data.metric, data.labels) == ("image-classification", "accuracy", ("cat", "dog"))
    assert sorted(targets(data.train)) == [0] * 3 + [1] * 3
    assert sorted(targets(data.test)) == [0] * 7 + [1] * 7
    assert not set(titles(data.train)) & set(titles(data.test))


def test_images_are_resized_and_scaled_to_one(tmp_path) -> None:
    draw(tmp_path / "red" / "a.png", (255, 0, 51))
    data = lighten.load_data(tmp_path, model=residual())
    (batch,) = data.test.batches(8)
    assert batch.inputs[0].shape == (1, 3, 16, 16)
    torch.testing.assert_close(batch.inputs[0][0, :, 5, 5], torch.tensor([1, 0, 0.2]))


def test_a_network_of_one_channel_gets_gray_values(tmp_path) -> None:
    draw(tmp_path / "gray" / "a.png", 51, "L")
    model = replace(residual(), example=(torch.zeros(2, 1, 8, 8),))
    (batch,) = lighten.load_data(tmp_path, model=model).test.batches(8)
    torch.testing.assert_close(batch.inputs[0], torch.full((1, 1, 8, 8), 0.2))


def test_sixteen_bit_images_keep_their_gray_values(tmp_path) -> None:
    (tmp_path / "gray").mkdir()
    Image.fromarray(np.full((16, 16), 51 * 257, dtype=np.uint16)).save(tmp_path / "gray" / "a.png")
    (batch,) = lighten.load_data(tmp_path, model=residual()).test.batches(8)
    torch.testing.assert_close(batch.inputs[0], torch.full((1, 3, 16, 16), 0.2))


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "validation"), ("train", "val")])
def test_train_and_test_folders_are_the_splits(train, test, tmp_path) -> None:
    two_classes(tmp_path / train, 3)
    two_classes(tmp_path / test, 5)
    data = lighten.load_data(tmp_path, model=residual())
    assert (len(data.train), len(data.test), data.labels) == (6, 10, ("cat", "dog"))


@pytest.mark.parametrize("name", ["train", "test"])
def test_one_of_the_two_folders_alone_holds_all_there_is(name, tmp_path) -> None:
    two_classes(tmp_path / name, 10)
    data = lighten.load_data(tmp_path, model=residual())
    assert (len(data.train), len(data.test), data.labels) == (6, 14, ("cat", "dog"))


def test_the_models_own_processor_prepares_the_images(tmp_path) -> None:
    model = lighten.load(checkpoints.resnet(tmp_path / "model"))
    draw(tmp_path / "data" / "dog" / "a.png", (255, 0, 51))
    data = lighten.load_data(tmp_path / "data", model=model)
    (batch,) = data.test.batches(8)
    assert batch.inputs[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(batch.inputs[0][0, :, 9, 9], torch.tensor([1, -1, -0.6]))  # mean 0.5, deviation 0.5
    assert data.labels == ("cat", "dog", "eel")
    assert batch.target.tolist() == [1]


def test_a_processor_that_keeps_proportions_needs_images_of_one_shape(tmp_path) -> None:
    path = checkpoints.resnet(tmp_path / "model") / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
    path.write_text(json.dumps(settings | {"do_center_crop": False}))
    draw(tmp_path / "data" / "dog" / "wide.png", size=(40, 20))
    data = lighten.load_data(tmp_path / "data", model=lighten.load(tmp_path / "model"))
    with pytest.raises(InputError, match=r"wide\.png: .*gives \(3, 32, 64\), the model takes \(3, 32, 32\)"):
        list(data.test.batches(8))


def test_a_corrupt_processor_is_refused(tmp_path) -> None:
    model = lighten.load(checkpoints.resnet(tmp_path / "model"))
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    with pytest.raises(InputError, match="The image processor in .* cannot be loaded"):
        lighten.load_data(two_classes(tmp_path / "data"), model=model)


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path) -> None:
    two_classes(tmp_path, 3)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no image")
    cut = (tmp_path / "dog" / "0.jpg").read_bytes()[:-200]
    (tmp_path / "dog" / "cut.jpg").write_bytes(cut)
    draw(tmp_path / "alone.png")
    data = lighten.load_data(tmp_path, model=residual())
    bad = {Path(row.where).name: row.why for row in data.bad_rows}
    assert bad.keys() == {"broken.png", "cut.jpg", "alone.png"}
    assert "cannot identify image file" in bad["broken.png"]
    assert bad["alone.png"] == "lies in no class folder"
    assert len(data.test) == 6


def test_images_without_class_folders_are_compared_with_the_original_network(tmp_path) -> None:
    for number in range(4):
        draw(tmp_path / f"{number}.png", number)
    data = lighten.load_data(tmp_path, model=residual())
    assert (data.metric, data.labels, len(data.test)) == ("agreement", (), 4)
    assert all(batch.target is None for batch in data.test.batches(4))


def test_class_folders_take_the_models_order_whatever_their_case(tmp_path) -> None:
    data = lighten.load_data(two_classes(tmp_path, 2), model=named("Dog", "Cat", "Eel"))
    assert data.labels == ("Dog", "Cat", "Eel")
    assert targets(data.test) == [1, 1, 0, 0]


def test_numbered_folders_are_positions_not_names_in_alphabetical_order(tmp_path) -> None:
    for number in range(12):
        draw(tmp_path / str(number) / "a.png", number)
    data = lighten.load_data(tmp_path, model=residual())
    assert data.labels == tuple(str(number) for number in range(12))
    both = [*targets(data.test), *(targets(data.train) if data.train else [])]
    assert sorted(both) == list(range(12))
    assert [f"{target}/a.png" for target in targets(data.test)] == titles(data.test)


def test_numbered_folders_stand_for_the_models_names(tmp_path) -> None:
    for number in (0, 2):
        draw(tmp_path / str(number) / "a.png", number)
    data = lighten.load_data(tmp_path, model=named("cat", "dog", "eel"))
    assert data.labels == ("cat", "dog", "eel")
    assert targets(data.test) == [0, 2]


def test_a_class_that_the_model_does_not_have_names_the_nearest(tmp_path) -> None:
    with pytest.raises(InputError, match="no class 'dog'. Did you mean 'dogs'"):
        lighten.load_data(two_classes(tmp_path, 2), model=named("cat", "dogs", "eel"))


def test_the_folders_of_imagenet_are_in_the_order_of_its_outputs(tmp_path) -> None:
    for number in (1440764, 1443537):
        draw(tmp_path / f"n0{number}" / "a.png", 1)
    data = lighten.load_data(tmp_path, model=named("tench", "goldfish"))
    assert data.labels == ("tench", "goldfish")
    assert targets(data.test) == [0, 1]
    with pytest.raises(InputError, match="no class 'n01440764'"):
        lighten.load_data(tmp_path, model=named("tench", "goldfish", "shark"))


def test_a_network_without_images_is_refused(tmp_path) -> None:
    model = replace(residual(), example=(torch.zeros(2, 40),))
    with pytest.raises(InputError, match=r"\(2, 40\), which is no batch of images"):
        lighten.load_data(two_classes(tmp_path, 1), model=model)


def test_a_folder_without_a_usable_file_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"holds no image and no \.wav file"):
        lighten.load_data(tmp_path, model=residual())
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"holds no usable .*; 1 could not be read, the first: .*a\.png"):
        lighten.load_data(tmp_path, model=residual())


def test_the_report_gets_a_small_picture(tmp_path) -> None:
    draw(tmp_path / "cat" / "a.png", size=(640, 480))
    example = lighten.load_data(tmp_path, model=residual()).test.describe(0)
    assert example.title == "cat/a.png"
    assert Image.open(io.BytesIO(example.image_png)).size == (64, 48)
