"""Recordings with transcripts: what a CTC model is scored on."""

import json
import shutil
import wave
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch

import lighten
from lighten.core.errors import InputError

SAID = ("hello", "the dog", "go on", "all good")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.wav2vec2_ctc(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder) -> lighten.Model:
    return lighten.load(folder)


def record(path: Path, num_samples: int = 800, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(scale=3_000, size=num_samples).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    return path


def table(folder: Path, rows, *, suffix: str = ".csv") -> Path:
    for name, _ in rows:
        record(folder / name)
    lines = [f"{name},{text}" for name, text in rows]
    if suffix == ".jsonl":
        lines = [json.dumps({"audio": name, "text": text}) for name, text in rows]
    path = folder / f"data{suffix}"
    path.write_text("\n".join(lines if suffix == ".jsonl" else ["audio,text", *lines]) + "\n", encoding="utf-8")
    return path


def said(split) -> list[str]:
    """The transcripts, spelled back from the targets."""
    rows = (row for batch in split.batches(8) for row in batch.target.tolist())
    return [split.alphabet.spell([token for token in row if token >= 0]) for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_gives_recordings_and_their_tokens(suffix, model, tmp_path) -> None:
    path = table(tmp_path, [(f"clips/{number}.wav", text) for number, text in enumerate(SAID)], suffix=suffix)
    data = lighten.load_data(path, model=model)
    assert (data.task, data.metric, data.train, len(data.test)) == ("speech-recognition", "word_error_rate", None, 4)
    assert said(data.test) == ["HELLO", "THE DOG", "GO ON", "ALL GOOD"]
    (batch,) = data.test.batches(8)
    assert batch.inputs[0].shape == (4, 800)
    assert batch.target.shape == (4, len("ALL GOOD"))
    assert data.test.describe(1).text == "the dog"


def test_a_folder_pairs_each_recording_with_the_text_of_its_name(model, tmp_path) -> None:
    for number, text in enumerate(SAID):
        record(tmp_path / "a" / f"{number}.wav").with_suffix(".txt").write_text(f"{text}\n")
    data = lighten.load_data(tmp_path, model=model)
    assert said(data.test) == [text.upper() for text in SAID]
    assert data.test.describe(0).title == "a/0.wav"


def test_train_and_test_folders_are_the_splits(model, tmp_path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            record(tmp_path / part / f"{number}.wav").with_suffix(".txt").write_text(part[:2])
    data = lighten.load_data(tmp_path, model=model)
    assert (len(data.train), len(data.test)) == (3, 2)


def test_thirty_percent_of_a_table_calibrate(model, tmp_path) -> None:
    data = lighten.load_data(table(tmp_path, [(f"{number}.wav", SAID[number % 4]) for number in range(10)]), model=model)
    assert (len(data.train), len(data.test)) == (3, 7)
    assert sorted(said(data.train) + said(data.test)) == sorted(SAID[number % 4].upper() for number in range(10))


def test_recordings_of_other_lengths_do_not_share_a_batch(model, tmp_path) -> None:
    path = table(tmp_path, [(f"{number}.wav", "hello") for number in range(4)])
    record(tmp_path / "2.wav", 1200)
    shapes = [tuple(batch.inputs[0].shape) for batch in lighten.load_data(path, model=model).test.batches(8)]
    assert shapes == [(2, 800), (1, 1200), (1, 800)]


def test_rows_that_cannot_be_used_are_counted_with_their_reason(model, tmp_path) -> None:
    path = table(tmp_path, [("a.wav", "hello"), ("b.wav", ""), ("c.wav", "the dog"), ("d.wav", "go on"), ("e.wav", "|")])
    (tmp_path / "c.wav").unlink()
    record(tmp_path / "d.wav", 300)
    path.write_text(path.read_text() + ",no one\n")
    data = lighten.load_data(path, model=model)
    assert {row.where.partition(",")[0]: row.why for row in data.bad_rows} == {
        "line 3": "no transcript",
        "line 4": f"{tmp_path / 'c.wav'} does not exist",
        "line 5": "too short: 300 samples at 16000 Hz",
        "line 6": "the tokenizer has no token for what is said",
        "line 7": "no audio",
    }
    assert said(data.test) == ["HELLO"]


def test_a_recording_without_a_text_beside_it_is_a_bad_row(model, tmp_path) -> None:
    record(tmp_path / "a.wav").with_suffix(".txt").write_text("hello")
    record(tmp_path / "b.wav")
    (bad,) = lighten.load_data(tmp_path, model=model).bad_rows
    assert (Path(bad.where).name, bad.why) == ("b.wav", "no transcript: b.txt is missing")


def test_recordings_without_any_transcript_are_refused(model, tmp_path) -> None:
    record(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"no usable recording; 1 are bad, the first: .*a.wav \(no transcript.* Give a .csv"):
        lighten.load_data(tmp_path, model=model)


@pytest.mark.parametrize("header", ["path,text", "audio,sentence"])
def test_a_table_without_one_of_the_columns_is_refused(header, model, tmp_path) -> None:
    (tmp_path / "data.csv").write_text(f"{header}\na.wav,hello\n")
    with pytest.raises(InputError, match=r"has the columns .*\. Speech needs audio and text"):
        lighten.load_data(tmp_path / "data.csv", model=model)


def test_sources_that_hold_no_transcripts_are_refused(model, tmp_path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 800), np.float32))
    with pytest.raises(InputError, match="holds no transcripts, and .* is for speech recognition"):
        lighten.load_data(tmp_path / "data.npz", model=model)
    with pytest.raises(InputError, match="do not say how a recognizer's tokens become words"):
        lighten.load_data([torch.zeros(2, 16_000)], model=model)


def test_the_digest_is_of_sound_and_text_and_not_of_their_place(model, tmp_path) -> None:
    rows = [("a.wav", "hello"), ("b.wav", "go on")]
    first, moved = (lighten.load_data(table(tmp_path / name, rows), model=model).digest for name in ("first", "moved"))
    other_text = lighten.load_data(table(tmp_path / "text", [rows[0], ("b.wav", "go")]), model=model).digest
    path = table(tmp_path / "sound", rows)
    record(tmp_path / "sound" / "b.wav", seed=1)
    assert first == moved
    assert len({first, other_text, lighten.load_data(path, model=model).digest}) == 3


def changed(folder: Path, copy: Path, *, without: str = "", vocabulary=None) -> lighten.Model:
    shutil.copytree(folder, copy)
    if without:
        (copy / without).unlink()
    if vocabulary is not None:
        (copy / "vocab.json").write_text(json.dumps(vocabulary))
    return lighten.load(copy)


@pytest.mark.parametrize(
    ("change", "expected"), [(str.lower, "the dog"), (str.upper, "THE DOG"), (lambda letter: letter, "The <unk>og")]
)
def test_transcripts_take_the_case_of_the_letters_there_are(change, expected, folder, tmp_path) -> None:
    """The last vocabulary has both cases, with a small h and e and without a small d: nothing is changed then."""
    letters = {letter if letter.startswith("<") else change(letter): index for index, letter in enumerate(checkpoints.LETTERS)}
    if expected.startswith("The"):
        letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{letter: 5 + n for n, letter in enumerate("TheogD")}}
    model = changed(folder, tmp_path / "model", vocabulary=letters)
    data = lighten.load_data(table(tmp_path / "data", [("a.wav", "The dog"), ("b.wav", "The dog")]), model=model)
    assert said(data.test) == [expected] * 2


@pytest.mark.parametrize(
    ("without", "message"),
    [("preprocessor_config.json", "has no feature extractor"), ("vocab.json", "has no tokenizer file")],
)
def test_a_folder_without_its_preprocessing_is_refused(without, message, folder, tmp_path) -> None:
    model = changed(folder, tmp_path / "model", without=without)
    if without == "vocab.json":
        (tmp_path / "model" / "tokenizer_config.json").unlink()
        model = lighten.load(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        lighten.load_data(table(tmp_path / "data", [("a.wav", "hello")]), model=model)


def test_two_recognizers_are_compared_by_word_error_rate(folder, model, tmp_path) -> None:
    """A network with itself drops nothing; one that says nothing (only blanks) misses every word."""
    path = table(tmp_path, [(f"{number}.wav", text) for number, text in enumerate(SAID)])
    same = lighten.compare(model, folder, path, target=lighten.Target(batch=4))
    assert (same["metric"], same["drop"], same["flips"]["examples"]) == ("word_error_rate", 0, [])
    mute = lighten.load(folder)
    with torch.no_grad():
        mute.module.network.lm_head.bias[0] = 1e4
    found = lighten.compare(mute, model, path)
    assert found["first_score"] == 1
    assert found["drop"] == pytest.approx(found["second_score"] - 1)
    assert found["drop_interval"][0] <= found["drop"] <= found["drop_interval"][1]
    assert found["drop_method"].startswith("paired bootstrap")


@pytest.mark.slow
def test_a_recognizer_is_compressed_saved_and_verified(model, tmp_path) -> None:
    path = table(tmp_path / "data", [(f"{number}.wav", SAID[number % 4]) for number in range(12)])
    result = lighten.compress(model, path, budget=lighten.Budget(max_drop=0.5))
    report = result.report
    assert (report["metric"], report["model"]["task"]) == ("word_error_rate", "speech-recognition")
    assert report["drop"] == pytest.approx(report["compressed"]["score"] - report["baseline"]["score"])
    assert "quant" in {spec["kind"] for spec in report["plan"].values()}  # whether it computes in int8 is for the clock to say
    result.save(tmp_path / "out")
    assert lighten.load(tmp_path / "out").origin.task == "speech-recognition"
    assert lighten.verify(tmp_path / "out", data=path)["ok"]  # with the tokenizer and the extractor that were saved along
