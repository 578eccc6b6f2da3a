"""The Silero voice activity detector, compressed to int8 and scored frame by frame on spoken digits in quiet noise.

    python examples/silero_vad.py

writes the folder silero-vad-out. The same job from the command line:

    lighten compress examples.silero_vad:build --data examples.silero_vad:data --max-drop 1% --out OUT

The network (Silero Team, github.com/snakers4/silero-vad, MIT) hears 16 kHz audio in frames of 512 samples, each with the 64
samples before it, and says how likely each holds speech. Its published form takes a frame a call and hands its state on; here
64 frames go in at once, the convolutions see them as one batch and a recurrent layer walks over them, with the same answers.
The weights are those of the package's safetensors file; its ONNX files hold another training of the same network.

Dimension key: B clips, L samples of a clip, T frames, C channels, S steps of the spectrum within a frame.
"""

import hashlib
import io
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import lighten
from examples.carriers import SILERO_VAD, fetch, shared
from lighten.core.data import Example
from lighten.data.rows import Rows

FRAME, CONTEXT, NUM_FRAMES = 512, 64, 64  # samples, samples, frames a clip (2.05 s)
NUM_TEST, NUM_CALIBRATION = 150, 64
NOISE = 0.003  # standard deviation on the scale of [-1, 1], about -50 dB
SPEECH_FLOOR = 10 ** (-30 / 20)  # a recording's energetic part: within 30 dB of its loudest moment
WEIGHTS = "silero_vad/data/silero_vad_16k.safetensors"
# names in the carrier's file -> names here
NAMES = {
    "stft_conv.weight": "spectrum.weight",
    **{f"conv{n}.{part}": f"encoder.{2 * n - 2}.{part}" for n in (1, 2, 3, 4) for part in ("weight", "bias")},
    **{f"lstm_cell.{part}": f"memory.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "final_conv.weight": "head.weight",
    "final_conv.bias": "head.bias",
}

Samples = NDArray[np.float32]
Clip = tuple[Samples, NDArray[np.int64]]


class SileroVAD(nn.Module):
    """309,633 parameters. Takes B x (512 T) samples in [-1, 1] at 16 kHz, gives B x T probabilities of speech."""

    def __init__(self) -> None:
        super().__init__()
        # the short-time Fourier transform of 256 samples as a convolution: 129 real parts, then 129 imaginary ones
        self.spectrum = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.encoder = nn.Sequential(
            nn.Conv1d(129, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(128, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(64, 128, 3, padding=1),
            nn.ReLU(),
        )
        self.memory = nn.LSTM(128, 128, batch_first=True)
        self.head = nn.Linear(128, 1)

    def forward(self, x_BL: Tensor) -> Tensor:
        num_frames = x_BL.shape[1] // FRAME
        real_imaginary = self.spectrum(_frames(x_BL, num_frames)).unflatten(1, (2, 129))
        magnitude = real_imaginary.square().sum(1).sqrt()  # (B T) x 129 x 4
        features_BTC = self.encoder(magnitude).unflatten(0, (-1, num_frames)).flatten(2)
        states_BTC, _ = self.memory(features_BTC)
        speech_BT: Tensor = self.head(states_BTC.relu()).sigmoid().squeeze(2)
        return speech_BT


def _frames(x_BL: Tensor, num_frames: int) -> Tensor:
    """Every frame after its context, its end mirrored by 64 samples: (B T) x 1 x 640."""
    frames_BTS = x_BL.reshape(-1, num_frames, FRAME)
    late_BTS = functional.pad(x_BL, (CONTEXT, -CONTEXT)).reshape(-1, num_frames, FRAME)
    whole_BTS = torch.cat([late_BTS[:, :, :CONTEXT], frames_BTS], 2)
    return functional.pad(whole_BTS.flatten(0, 1), (0, CONTEXT), mode="reflect")[:, None]


def build() -> lighten.Model:
    """The network with the carrier's weights. Raises InputError when the carrier is not to be had."""
    state = {NAMES[name]: value for name, value in load_file(fetch(SILERO_VAD) / WEIGHTS).items()}
    state["head.weight"] = state["head.weight"].squeeze(2)  # a convolution of width 1 is a linear layer
    network = SileroVAD()
    network.load_state_dict(state)
    origin = lighten.Origin("callable", "Silero VAD 6.2.3", dynamic=({0: "batch"},))
    return lighten.Model(network.eval(), (torch.zeros(2, NUM_FRAMES * FRAME),), origin, ("audio",), ("speech",))


def data() -> lighten.Data:
    """150 clips of the Free Spoken Digit Dataset's test recordings, 64 of its training recordings for calibration.

    Recordings lie at random places in quiet noise and fill about half of each clip. A frame's label is 1 where it touches the
    energetic part of one. The score is the area under the ROC curve over all frames. Raises InputError when the data set is
    not to be had.
    """
    with zipfile.ZipFile(shared("fsdd.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        test = _split(archive, [name for name in names if _number(name) < 5], NUM_TEST, seed=0)
        train = _split(archive, [name for name in names if _number(name) >= 5], NUM_CALIBRATION, seed=1)
    digest = hashlib.sha256(b"".join(clip.tobytes() for split in (test, train) for clip in split.rows)).hexdigest()
    return lighten.Data("Free Spoken Digit Dataset", "regression", "auc", test, train, digest=digest)


def _number(name: str) -> int:
    """A recording's place in the official split, e.g. 3 of recordings/7_jackson_3.wav; 0 to 4 are for testing."""
    return int(Path(name).stem.rpartition("_")[2])


def _split(archive: zipfile.ZipFile, names: list[str], count: int, *, seed: int) -> Rows:
    generator = np.random.default_rng(seed)

    def recordings() -> Iterator[Samples]:
        while True:
            yield read_recording(archive.read(names[generator.integers(len(names))]))

    clips = [make_clip(recordings(), generator) for _ in range(count)]
    labels_BT = torch.from_numpy(np.stack([labels for _, labels in clips]))
    return Rows([samples for samples, _ in clips], _collate, labels_BT, _show(labels_BT))


def _collate(clips: list[Samples]) -> tuple[Tensor, ...]:
    return (torch.from_numpy(np.stack(clips)),)


def _show(labels_BT: Tensor) -> Callable[[Samples, int], Example]:
    return lambda _, index: Example(f"clip {index}, speech in {int(labels_BT[index].sum())} of {NUM_FRAMES} frames")


def read_recording(wav: bytes) -> Samples:
    """16-bit mono PCM at 8 kHz as samples in [-1, 1] at 16 kHz."""
    from scipy.signal import resample_poly

    with wave.open(io.BytesIO(wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    doubled: Samples = resample_poly(samples, 2, 1).astype(np.float32)
    return doubled


def make_clip(recordings: Iterator[Samples], generator: np.random.Generator) -> Clip:
    """A clip of 64 frames and a label a frame: recordings until half is filled, the rest of the time shared out between them
    at random (uniform over all ways to share it).
    """
    length = NUM_FRAMES * FRAME
    chosen: list[Samples] = []
    while sum(map(len, chosen)) < length / 2:
        recording = next(recordings)
        if sum(map(len, chosen)) + len(recording) < length:
            chosen.append(recording)
    gaps = generator.dirichlet(np.ones(len(chosen) + 1)) * (length - sum(map(len, chosen)))
    samples = (NOISE * generator.standard_normal(length)).astype(np.float32)
    labels = np.zeros(NUM_FRAMES, dtype=np.int64)
    position = 0.0
    for gap, recording in zip(gaps, chosen, strict=False):  # the last gap follows the last recording
        start = int(position + gap)
        samples[start : start + len(recording)] += recording
        first, last = energetic(recording)
        labels[(start + first) // FRAME : (start + last) // FRAME + 1] = 1
        position = start + len(recording)
    return samples.clip(-1, 1), labels


def energetic(recording: Samples) -> tuple[int, int]:
    """The first and the last sample within 30 dB of the recording's loudest 10 ms."""
    window = np.ones(160, dtype=np.float32) / 160
    loudness = np.sqrt(np.convolve(recording**2, window, mode="same").clip(0))
    loud = np.flatnonzero(loudness >= SPEECH_FLOOR * loudness.max())
    return int(loud[0]), int(loud[-1])


def main(out: Path = Path("silero-vad-out")) -> lighten.Result:
    """Compresses within one point of AUC, saves the result to `out`."""
    result = lighten.compress(build(), data(), budget=lighten.Budget(max_drop=0.01), target=lighten.Target(threads=1))
    result.save(out)
    print(result.table())
    return result


if __name__ == "__main__":
    main()
