"""WAV files by class. A model folder's own feature extractor prepares them where there is one; else samples in [-1, 1],
padded or cut to the model's length, at the file's own rate.
"""

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lighten.core.data import Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.folders import Kind, load_folder
from lighten.data.rows import always_alike

_SHORTEST_SECONDS = 0.025  # one frame of the usual feature extractors, and of wav2vec 2.0
Samples = NDArray[np.float32]


def load_audio(folder: Path, *, model: Model, seed: int) -> Data:
    """A folder of .wav files by class, or with train/ and test/ below it."""
    extract = _extractor(model)
    prepare = extract or _plain(model)

    def collate(paths: list[Any]) -> tuple[Tensor, ...]:
        return (prepare([read_wav(path) for path in paths]),)

    # padding would change what a network of raw samples says, so recordings of other lengths do not share a batch
    alike = _length if _takes_any_length(model) else always_alike
    check = _check if extract else _check_rate(_first_rate(folder))
    kind = Kind("audio-classification", (".wav",), check, collate, _show, alike)
    return load_folder(folder, kind=kind, model=model, seed=seed)


def read_wav(path: Path) -> tuple[Samples, int]:
    """Mono samples in [-1, 1] and the rate in Hz. PCM of 8, 16, 24 or 32 bits. Raises ValueError for anything else."""
    try:
        with wave.open(str(path), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that reaches past the file
        raise ValueError(f"not a PCM wav file: {str(error) or 'it ends too early'}") from error
    if width not in (1, 2, 3, 4):
        raise ValueError(f"samples of {8 * width} bits")
    raw = raw[: len(raw) // (width * channels) * width * channels]  # a file that was cut off may end inside a sample
    if width == 1:
        samples = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        bytes_N3 = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        unsigned = bytes_N3[:, 0] | bytes_N3[:, 1] << 8 | bytes_N3[:, 2] << 16
        samples = (unsigned - ((unsigned & 0x800000) << 1)).astype(np.float32) / 2**23
    else:
        samples = np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width]).astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(1).astype(np.float32), rate


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """The same sound at another rate (polyphase filter)."""
    if rate == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise InputError("Resampling audio needs scipy.", hint="pip install lighten[audio]") from error
    divisor = int(np.gcd(rate, wanted))
    return np.asarray(resample_poly(samples, wanted // divisor, rate // divisor), dtype=np.float32)


def _check(path: Path) -> None:
    samples, rate = read_wav(path)
    if len(samples) < _SHORTEST_SECONDS * rate:
        raise ValueError(f"too short: {len(samples)} samples at {rate} Hz")


def _first_rate(folder: Path) -> int | None:
    """The rate of the first file that can be read, None when there is none."""
    for path in sorted(folder.rglob("*.wav")):
        try:
            return read_wav(path)[1]
        except (OSError, ValueError):
            continue
    return None


def _check_rate(wanted: int | None) -> Callable[[Path], None]:
    """A network without a feature extractor does not say which rate it takes; all files must at least have the same."""

    def check(path: Path) -> None:
        _check(path)
        rate = read_wav(path)[1]
        if rate != wanted:
            raise ValueError(f"{rate} Hz, the first file has {wanted} Hz")

    return check


def _show(path: Path, index: int) -> Example:
    return Example(f"{path.parent.name}/{path.name}")


def _length(path: Path) -> tuple[int, int]:
    with wave.open(str(path), "rb") as file:
        return file.getnframes(), file.getframerate()


def _takes_any_length(model: Model) -> bool:
    dynamic = model.origin.dynamic
    return bool(dynamic) and model.example[0].dim() == 2 and 1 in dynamic[0]


def _plain(model: Model) -> Callable[[list[tuple[Samples, int]]], Tensor]:
    shape = model.example[0].shape
    length = shape[-1]
    if len(shape) < 2 or shape[1:].numel() != length:
        raise InputError(
            f"The model takes {tuple(shape)}, which is no batch of recordings.",
            hint="Give batches from package.module:callable.",
        )

    def prepare(clips: list[tuple[Samples, int]]) -> Tensor:
        if _takes_any_length(model):
            return torch.from_numpy(np.stack([samples for samples, _ in clips]))
        fitted = [np.pad(samples[:length], (0, max(0, length - len(samples)))) for samples, _ in clips]
        return torch.from_numpy(np.stack(fitted)).reshape(len(clips), *shape[1:])

    return prepare


def _extractor(model: Model) -> Callable[[list[tuple[Samples, int]]], Tensor] | None:
    if model.origin.folder is None or "preprocessor_config.json" not in model.origin.files:
        return None
    try:
        from transformers import AutoFeatureExtractor
    except ImportError as error:
        raise InputError(
            "The model's feature extractor needs transformers.", hint="pip install lighten[huggingface]"
        ) from error
    loader: Any = AutoFeatureExtractor
    try:
        extractor = loader.from_pretrained(model.origin.folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its classes make of the file
        raise InputError(f"The feature extractor in {model.origin.folder} cannot be loaded: {error}.") from error
    rate, name = int(extractor.sampling_rate), model.input_names[0]

    def prepare(clips: list[tuple[Samples, int]]) -> Tensor:
        sounds = [resample(samples, own, rate) for samples, own in clips]
        # its own default pads spectrograms to the model's length
        value: Tensor = extractor(sounds, sampling_rate=rate, return_tensors="pt")[name]
        return value

    return prepare
