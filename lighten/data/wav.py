"""WAV files: whole numbers (PCM) of 8 to 32 bits and real numbers of 32 or 64, also under the extensible header.

Written out because the standard library's `wave` refuses real numbers, and before Python 3.12 the extensible header.
Layout: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (1991), and mmreg.h.
Dimension key: N samples, those of the channels in turn.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}  # bytes a sample
_FORMAT_BYTES = 26  # up to the first two bytes of the extensible header's GUID, which are the format that it extends


@dataclass(frozen=True)
class _Layout:
    """kind: _PCM or _FLOAT. width: bytes a sample. rate: in Hz."""

    kind: int
    channels: int
    rate: int
    width: int


def read_wav(path: Path) -> tuple[Samples, int]:
    """Mono samples and the rate in Hz: channels averaged, whole numbers brought to [-1, 1], real ones as they are.

    A file that was cut off gives the samples it has. Raises ValueError for anything else than PCM of 8, 16, 24 or 32 bits and
    finite real numbers of 32 or 64; OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        layout, num_frames = _seek_samples(file)
        raw = file.read(num_frames * layout.channels * layout.width)
    samples = _decode(raw, layout).reshape(-1, layout.channels).mean(1)
    if not np.isfinite(samples).all():
        raise ValueError("it holds NaN or infinity")
    return samples.astype(np.float32), layout.rate


def wav_length(path: Path) -> tuple[int, int]:
    """Samples a channel and the rate in Hz, from the header. Raises as `read_wav` does."""
    with path.open("rb") as file:
        layout, num_frames = _seek_samples(file)
    return num_frames, layout.rate


def _seek_samples(file: IO[bytes]) -> tuple[_Layout, int]:
    """Leaves the file at its first sample: the layout, and how many whole frames there really are."""
    if (start := file.read(12))[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise ValueError("not a wav file: it does not begin with RIFF and WAVE" if start else "not a wav file: it is empty")
    end = os.fstat(file.fileno()).st_size
    layout = None
    while len(header := file.read(8)) == 8:
        name, size = header[:4], int.from_bytes(header[4:], "little")
        start_of_next = file.tell() + size + size % 2  # chunks begin at even places
        if name == b"data" and layout is not None:
            return layout, min(size, end - file.tell()) // (layout.channels * layout.width)
        if name == b"fmt ":
            layout = _layout(file.read(min(size, _FORMAT_BYTES)))
        file.seek(start_of_next)
    raise ValueError(f"not a wav file: it ends before its {'samples' if layout else 'format'}")


def _layout(chunk: bytes) -> _Layout:
    if len(chunk) < 16:
        raise ValueError("not a wav file: its format is cut off")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if kind == _EXTENSIBLE and len(chunk) == _FORMAT_BYTES:
        kind = int.from_bytes(chunk[24:], "little")
    if kind not in _WIDTHS:
        raise ValueError(f"the wav format {kind} is compressed or unknown")
    if bits % 8 or bits // 8 not in _WIDTHS[kind]:
        raise ValueError(f"{'real' if kind == _FLOAT else 'whole'} numbers of {bits} bits")
    if not channels or not rate:
        raise ValueError(f"{channels} channels at {rate} Hz")
    return _Layout(kind, channels, rate, bits // 8)


def _decode(raw: bytes, layout: _Layout) -> Samples:
    width = layout.width
    if layout.kind == _FLOAT:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinity, which is refused
            return np.frombuffer(raw, f"<f{width}").astype(np.float32, copy=False)
    return np.asarray(_codes(raw, width).astype(np.float32) / 2 ** (8 * width - 1), dtype=np.float32)


def _codes(raw: bytes, width: int) -> NDArray[Any]:
    """Whole numbers around 0."""
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.int16) - 128
    if width == 3:
        bytes_N3 = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        unsigned = bytes_N3[:, 0] | bytes_N3[:, 1] << 8 | bytes_N3[:, 2] << 16
        return unsigned - ((unsigned & 0x800000) << 1)
    return np.frombuffer(raw, f"<i{width}")
