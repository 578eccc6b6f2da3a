"""Data that would load, and be wrong, or fail far from its cause."""

import wave

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import lighten
from lighten.core.errors import InputError
from lighten.data.wav import read_wav

X = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
Y = np.arange(20) % 3
WORDS = {"vocab_size": len(checkpoints.WORDS), "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture
def model():
    return lighten.load(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), example=torch.zeros(2, 1, 8, 8))


@pytest.fixture
def sounds():
    return lighten.load(nn.Linear(4_000, 2), example=torch.zeros(2, 4_000))


def images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), color=number).save(folder / name)
    return folder


def archive(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def sound(path, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(4_000) / 20) * 16_000).astype("<i2").tobytes())
    return path


def table(folder, text, name="data.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_be_called_train_or_test(name, model, tmp_path) -> None:
    data = lighten.load_data(images(tmp_path, [f"{label}/{n}.png" for label in (name, "bus") for n in range(5)]), model=model)
    assert data.labels == ("bus", name)
    assert (len(data.train), len(data.test)) == (4, 6)  # 30 % of five, rounded, of each class


def test_hidden_files_and_folders_are_no_data(model, tmp_path) -> None:
    names = [".cache/0.png", "a/0.png", "b/0.png", "b/.1.png"]
    data = lighten.load_data(images(tmp_path, names), model=model)
    assert (data.labels, len(data.test), data.bad_rows) == (("a", "b"), 2, ())


def test_a_row_of_an_archive_keeps_its_number_when_others_are_left_out(model, tmp_path) -> None:
    x = X.copy()
    x[3] = np.nan
    data = lighten.load_data(archive(tmp_path, x=x, y=Y), model=model)
    titles = {split.describe(index).title for split in (data.train, data.test) for index in range(len(split))}
    assert titles == {f"row {number}" for number in range(20) if number != 3}


def test_half_an_archive_of_nan_is_refused(model, tmp_path) -> None:
    x = X.copy()
    x[:10] = np.nan
    with pytest.raises(InputError, match="10 of 20 rows"):
        lighten.load_data(archive(tmp_path, x=x, y=Y), model=model)


def test_labels_of_one_split_alone_are_refused(model, tmp_path) -> None:
    with pytest.raises(InputError, match="both y_train and y_test"):
        lighten.load_data(archive(tmp_path, x_train=X, y_train=Y, x_test=X), model=model)


def test_a_damaged_archive_is_refused_wherever_the_damage_lies(model, tmp_path) -> None:
    random = np.random.default_rng(0)
    path = archive(tmp_path, x=X, y=Y)
    original, refused = path.read_bytes(), 0
    for _ in range(200):
        content = bytearray(original)
        for place in random.integers(len(content), size=4):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            lighten.load_data(path, model=model)
        except InputError:
            refused += 1
    assert refused > 100  # the checksums of the zip format find most


def test_a_damaged_wav_header_is_refused_wherever_the_damage_lies(tmp_path) -> None:
    random = np.random.default_rng(0)
    path = sound(tmp_path / "a.wav")
    original, refused = path.read_bytes(), 0
    for _ in range(400):
        content = bytearray(original)
        for place in random.integers(44, size=3):  # the header's length in bytes
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            read_wav(path)
        except ValueError:
            refused += 1
    assert refused > 100  # changes of the rate and of unused fields stay readable


def test_recordings_of_another_rate_are_left_out_where_no_extractor_resamples_them(sounds, tmp_path) -> None:
    for label in "ab":
        sound(tmp_path / label / "0.wav")
    sound(tmp_path / "b" / "1.wav", rate=8_000)
    data = lighten.load_data(tmp_path, model=sounds)
    assert [(row.where.rpartition("b/")[2], row.why) for row in data.bad_rows] == [
        ("1.wav", "8000 Hz, the first file has 16000 Hz")
    ]


def test_a_text_of_one_token_is_two_wide_under_the_mask(tmp_path) -> None:
    folder = checkpoints.bert_classifier(tmp_path / "model")
    data = lighten.load_data(table(tmp_path, "text,label\ngood,cat\nbad,dog\n"), model=lighten.load(folder))
    (batch,) = data.test.batches(2)
    width = batch.inputs[0].shape[1]
    assert width >= 2
    assert batch.inputs[1].sum(1).tolist() == [width, width] or batch.inputs[1][:, 1:].sum() == 0


def test_a_text_is_named_by_its_line_in_the_file(tmp_path) -> None:
    folder = checkpoints.bert_classifier(tmp_path / "model")
    data = lighten.load_data(table(tmp_path, "text,label\n,cat\ngood film,cat\n"), model=lighten.load(folder))
    assert data.test.describe(0).title == "line 3"


def test_lists_and_objects_are_no_texts_and_no_labels(tmp_path) -> None:
    folder = checkpoints.bert_classifier(tmp_path / "model")
    lines = '{"text": ["x"], "label": "cat"}\n{"text": "x", "label": {"a": 1}}\n{"text": "good", "label": "cat"}\n'
    data = lighten.load_data(table(tmp_path, lines, "data.jsonl"), model=lighten.load(folder))
    assert [row.why for row in data.bad_rows] == ["the text is a list", "the label is a dict"]


def test_a_folder_without_a_tokenizer_is_refused_rather_than_given_an_empty_one(tmp_path) -> None:
    folder = checkpoints.bert_classifier(tmp_path / "model")
    for path in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        path.unlink()
    with pytest.raises(InputError, match="has no tokenizer file"):
        lighten.load_data(table(tmp_path, "text,label\ngood,cat\n"), model=lighten.load(folder))


def test_texts_fit_the_positions_that_roberta_really_uses(tmp_path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(**small, **WORDS, max_position_embeddings=26, pad_token_id=1)
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "model")
    model = lighten.load(checkpoints._tokenizer(tmp_path / "model"))
    data = lighten.load_data(table(tmp_path, f"text,label\n{'good ' * 99},0\nbad,1\n"), model=model)
    (batch,) = data.test.batches(2)
    assert batch.inputs[0].shape == (2, 24)  # positions 0 and 1 are the padding's
    assert model.module(*batch.inputs).shape == (2, 2)


def test_windows_fit_the_positions_of_gpt2(tmp_path) -> None:
    config = transformers.GPT2Config(**WORDS, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    model = lighten.load(checkpoints._tokenizer(tmp_path / "model"))
    data = lighten.load_data(table(tmp_path, "good film " * 50, "data.txt"), model=model)
    assert next(data.test.batches(1)).inputs[0].shape == (1, 20)


def test_batches_in_double_precision_are_given_in_the_networks_own(model) -> None:
    batches = [(torch.zeros(4, 1, 8, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))]
    assert next(lighten.load_data(batches, model=model).test.batches(4)).inputs[0].dtype == torch.float32


def test_a_column_of_classes_in_batches_is_taken_as_a_row_each(model) -> None:
    batches = [(torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, dtype=torch.int64))]
    assert next(lighten.load_data(batches, model=model).test.batches(4)).target.shape == (4,)


def test_parts_of_a_batch_that_nothing_takes_are_refused(model) -> None:
    with pytest.raises(InputError, match="has 3 parts; the model takes 1 inputs"):
        lighten.load_data([(torch.zeros(4, 1, 8, 8), torch.zeros(4), torch.zeros(4))], model=model)


def test_the_nearest_file_is_named_for_one_that_is_missing(model, tmp_path) -> None:
    archive(tmp_path, x=X, y=Y)
    with pytest.raises(InputError, match=r"Did you mean .*data\.npz"):
        lighten.load_data(tmp_path / "dat.npz", model=model)
