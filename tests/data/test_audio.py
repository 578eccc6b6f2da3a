"""Folders of recordings by class."""

import wave
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from torch import nn

import lighten
from lighten.core.errors import InputError
from lighten.data.audio import read_wav, resample


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
    float_format = bytearray((tmp_path / "beep" / "good.wav").read_bytes())
    float_format[20] = 3  # WAVE_FORMAT_IEEE_FLOAT
    (tmp_path / "beep" / "float.wav").write_bytes(float_format)
    data = lighten.load_data(tmp_path, model=waveforms(1000))
    bad = {Path(row.where).stem: row.why for row in data.bad_rows}
    assert bad["short"] == "too short: 300 samples at 16000 Hz"
    assert bad["float"] == "not a PCM wav file: unknown format: 3"
    assert bad["empty"] == "not a PCM wav file: it ends too early"
    assert bad["text"].startswith("not a PCM wav file: file does not start with RIFF id")
    assert len(data.test) == 1
