"""Folders of recordings by class."""

import struct
import wave
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from torch import nn

import lighten
from lighten.core.errors import InputError
from lighten.data.audio import resample
from lighten.data.wav import read_wav, wav_length


def record(path: Path, samples: np.ndarray, *, rate: int = 16_000, width: int = 2) -> Path:
    """samples: N, or N x channels, in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64) + (128 if width == 1 else 0)
    raw = codes.reshape(-1, 1).astype("<i8").view(np.uint8)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(raw).tobytes())
    return path


def tone(num_samples: int = 1600, *, rate: int = 16_000, frequency_hz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / rate)


def waveforms(*shape: int) -> lighten.Model:
    return lighten.load(nn.Flatten(), example=torch.zeros(2, *shape))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_reads_as_the_same_sound(width, tmp_path) -> None:
    samples, rate = read_wav(record(tmp_path / "a.wav", tone(), width=width))
    assert rate == 16_000
    assert samples.dtype == np.float32
    # a step of the codes, and the rounding of float32 below that of 32 bits
    np.testing.assert_allclose(samples, tone(), atol=1.6 / 2 ** (8 * width - 1) + 1e-7)


def container(path: Path, samples: np.ndarray, *, extensible: bool = False) -> Path:
    """samples: N x channels, written as they are at 16 kHz, behind a chunk of odd length as editors write them."""
    kind, width, channels = (3 if samples.dtype.kind == "f" else 1), samples.dtype.itemsize, samples.shape[1]
    frame = width * channels
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, 16_000, 16_000 * frame, frame, 8 * width)
    if extensible:
        guid = bytes.fromhex("0000 0000 1000 8000 00aa 0038 9b71")
        layout += struct.pack("<HHIH", 22, 8 * width, 0, kind) + guid
    chunks = [(b"fmt ", layout), (b"LIST", b"odd\0"[:3]), (b"data", samples.tobytes())]
    body = b"".join(name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2"])
def test_real_numbers_and_the_extensible_header_read_as_the_same_sound(dtype, extensible, tmp_path) -> None:
    scale = 2**15 - 1 if dtype == "<i2" else 1
    stereo = np.stack([tone(), 0.5 * tone()], axis=1)
    path = container(tmp_path / "a.wav", (stereo * scale).astype(dtype), extensible=extensible)
    samples, rate = read_wav(path)
    assert wav_length(path) == (1600, rate) == (1600, 16_000)
    # a step of 16 bits is 1 / 2^15; real numbers are rounded to float32
    np.testing.assert_allclose(samples, 0.75 * tone(), atol=2 / 2**15 if dtype == "<i2" else 1e-7)


def test_real_samples_beyond_one_stay_as_they_are(tmp_path) -> None:
    samples, _ = read_wav(container(tmp_path / "a.wav", np.full((9, 1), -1.5, "<f4")))
    assert samples.tolist() == [-1.5] * 9


def test_both_channels_are_averaged(tmp_path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    samples, _ = read_wav(record(tmp_path / "a.wav", stereo))
    np.testing.assert_allclose(samples, 0.125, atol=1e-4)


def test_resampling_keeps_the_tone() -> None:
    low = resample(tone(8000, rate=48_000).astype(np.float32), 48_000, 16_000)
    expected = tone(len(low))
    assert len(low) == 2667
    # the filter needs some samples to settle at both ends
    np.testing.assert_allclose(low[100:-100], expected[100:-100], atol=5e-3)


def test_the_same_rate_changes_nothing() -> None:
    samples = tone().astype(np.float32)
    assert resample(samples, 16_000, 16_000) is samples


def test_a_file_cut_off_inside_a_sample_gives_what_there_is(tmp_path) -> None:
    path = record(tmp_path / "a.wav", tone(), width=3)
    path.write_bytes(path.read_bytes()[:-100])
    samples, _ = read_wav(path)
    assert len(samples) == 1600 - 34


@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (2000,)])
def test_without_an_extractor_recordings_are_cut_or_padded(shape, tmp_path) -> None:
    record(tmp_path / "beep" / "a.wav", tone(1600))
    data = lighten.load_data(tmp_path, model=waveforms(*shape))
    (batch,) = data.test.batches(8)
    length = min(shape[-1], 1600)
    assert (data.task, batch.inputs[0].shape) == ("audio-classification", (1, *shape))
    np.testing.assert_allclose(batch.inputs[0].flatten()[:length], tone(length), atol=1e-4)
    assert not batch.inputs[0].flatten()[length:].any()


def test_a_network_of_something_else_is_refused(tmp_path) -> None:
    record(tmp_path / "beep" / "a.wav", tone())
    with pytest.raises(InputError, match=r"\(2, 3, 16, 16\), which is no batch of recordings"):
        lighten.load_data(tmp_path, model=waveforms(3, 16, 16))


def test_the_models_own_extractor_resamples_and_normalizes(tmp_path) -> None:
    model = lighten.load(checkpoints.wav2vec2(tmp_path / "model"))
    record(tmp_path / "data" / "dog" / "a.wav", tone(4800, rate=48_000), rate=48_000)
    data = lighten.load_data(tmp_path / "data", model=model)
    (batch,) = data.test.batches(8)
    assert batch.inputs[0].shape == (1, 1600)
    assert abs(batch.inputs[0].mean()) < 1e-3
    assert abs(batch.inputs[0].std() - 1) < 1e-2
    assert (data.labels, batch.target.tolist()) == (("cat", "dog", "eel"), [1])
    assert model.module(*batch.inputs).shape == (1, 3)


def test_recordings_of_other_lengths_do_not_share_a_batch_of_waveforms(tmp_path) -> None:
    model = lighten.load(checkpoints.wav2vec2(tmp_path / "model"))
    for number, length in enumerate([1600, 1600, 2400, 1600]):
        record(tmp_path / "data" / "cat" / f"{number}.wav", tone(length))
    data = lighten.load_data(tmp_path / "data", model=model)
    assert [tuple(batch.inputs[0].shape) for batch in data.test.batches(8)] == [(2, 1600), (1, 2400), (1, 1600)]
    assert [batch.index for batch in data.test.batches(8)] == [(0, 1), (2,), (3,)]


def test_spectrograms_have_the_models_length_whatever_the_recordings(tmp_path) -> None:
    model = lighten.load(checkpoints.spectrogram_transformer(tmp_path / "model"))
    for length in (1600, 16_000):
        record(tmp_path / "data" / "eel" / f"{length}.wav", tone(length))
    (batch,) = lighten.load_data(tmp_path / "data", model=model).test.batches(8)
    assert batch.inputs[0].shape == (2, 64, 32)
    assert model.module(*batch.inputs).shape == (2, 3)


def test_a_corrupt_extractor_is_refused(tmp_path) -> None:
    model = lighten.load(checkpoints.wav2vec2(tmp_path / "model"))
    (tmp_path / "model" / "preprocessor_config.json").write_text("{")
    record(tmp_path / "data" / "cat" / "a.wav", tone())
    with pytest.raises(InputError, match="The feature extractor in .* cannot be loaded"):
        lighten.load_data(tmp_path / "data", model=model)


def test_train_and_test_folders_are_the_splits(tmp_path) -> None:
    for part, count in (("train", 2), ("test", 3)):
        for number in range(count):
            record(tmp_path / part / "beep" / f"{number}.wav", tone())
    data = lighten.load_data(tmp_path, model=waveforms(1000))
    assert (len(data.train), len(data.test)) == (2, 3)


def test_recordings_that_cannot_be_used_are_named(tmp_path) -> None:
    record(tmp_path / "beep" / "good.wav", tone())
    record(tmp_path / "beep" / "short.wav", tone(300))
    (tmp_path / "beep" / "empty.wav").write_bytes(b"")
    (tmp_path / "beep" / "text.wav").write_text("no sound at all, only text")
    compressed = bytearray((tmp_path / "beep" / "good.wav").read_bytes())
    compressed[20] = 0x11  # WAVE_FORMAT_IMA_ADPCM
    (tmp_path / "beep" / "compressed.wav").write_bytes(compressed)
    container(tmp_path / "beep" / "nan.wav", np.array([[0.1], [np.nan]] * 800, "<f4"))
    data = lighten.load_data(tmp_path, model=waveforms(1000))
    bad = {Path(row.where).stem: row.why for row in data.bad_rows}
    assert bad["short"] == "too short: 300 samples at 16000 Hz"
    assert bad["compressed"] == "the wav format 17 is compressed or unknown"
    assert bad["nan"] == "it holds NaN or infinity"
    assert bad["empty"] == "not a wav file: it is empty"
    assert bad["text"] == "not a wav file: it does not begin with RIFF and WAVE"
    assert len(data.test) == 1
