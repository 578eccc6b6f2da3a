"""WAV files by class. A model folder's own feature extractor prepares them where there is one; else samples in [-1, 1],
padded or cut to the model's length, at the file's own rate.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.data import Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.folders import Kind, load_folder
from lighten.data.rows import always_alike
from lighten.data.wav import Samples, read_wav, wav_length

_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")
_SHORTEST_SECONDS = 0.025  # one frame of the usual feature extractors, and of wav2vec 2.0
Prepare = Callable[[list[tuple[Samples, int]]], Tensor]


def load_audio(folder: Path, *, model: Model, seed: int) -> Data:
    """A folder of .wav files by class, or with train/ and test/ below it."""
    extract = extractor_of(model)
    prepare = extract or _plain(model)

    def collate(paths: list[Any]) -> tuple[Tensor, ...]:
        return (prepare([read_wav(path) for path in paths]),)

    # padding would change what a network of raw samples says, so recordings of other lengths do not share a batch
    alike = wav_length if _takes_any_length(model) else always_alike
    check = check_sound if extract else _check_rate(_first_rate(folder))
    kind = Kind("audio-classification", (".wav",), check, collate, _show, alike)
    return load_folder(folder, kind=kind, model=model, seed=seed)


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


def check_sound(path: Path) -> None:
    """Raises ValueError for a file that cannot be read or is shorter than 0.025 s, OSError for one that is not there."""
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
        check_sound(path)
        rate = read_wav(path)[1]
        if rate != wanted:
            raise ValueError(f"{rate} Hz, the first file has {wanted} Hz")

    return check


def _show(path: Path, index: int) -> Example:
    return Example(f"{path.parent.name}/{path.name}")


def _takes_any_length(model: Model) -> bool:
    dynamic = model.origin.dynamic
    return bool(dynamic) and model.example[0].dim() == 2 and 1 in dynamic[0]


def _plain(model: Model) -> Prepare:
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


def extractor_of(model: Model) -> Prepare | None:
    """The model folder's own feature extractor, recordings of one length to B x samples or spectrograms; None without one.

    Raises InputError when it cannot be loaded.
    """
    if model.origin.folder is None or not any(name in model.origin.files for name in _EXTRACTORS):
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
