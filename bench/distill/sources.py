"""Networks and data: Fashion-MNIST, a sentence encoder with texts, spoken digits.

Dimension key: N recordings, S samples, F frequencies, T frames.
"""

import io
import os
import re
import sys
import time
import wave
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from network import ResidualNetwork, as_model, load_images, trained

import lighten
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.engine.train import train

SHARED = Path(os.environ.get("LIGHTEN_SHARED", "/work/shared/data"))
_STUDENT_WIDTH = 9  # 24,859 parameters, the teacher's 16 channels make 77,562
_RATE, _FRAME, _HOP, _FRAMES = 8_000, 256, 128, 48
_FREQUENCIES = 40
_NUM_TEXTS = 4_000
_NUM_WORDS = 4_000


def images(folder: Path) -> Data:
    """Fashion-MNIST."""
    return load_images(folder)


def teacher_of(folder: Path, data: Data, *, seed: int, threads: int) -> Model:
    """77,562 parameters."""
    return trained(folder, data, seed=seed, threads=threads)


def fresh(seed: int) -> Model:
    """The teacher's shape with a third of its parameters, untrained."""
    torch.manual_seed(1_000 + seed)
    return as_model(ResidualNetwork(width=_STUDENT_WIDTH))


def slower(student: Model, *, times: float) -> tuple[Model, float]:
    """An untrained network of the student's shape, as wide as it must be to take `times` its time for a batch of 128, and how
    many times that is.
    """
    for width in range(2 * _STUDENT_WIDTH, 12 * _STUDENT_WIDTH, 4):
        teacher = as_model(ResidualNetwork(width=width))
        ratio = _seconds(teacher) / _seconds(student)
        if ratio >= times:
            break
    return teacher, round(ratio, 2)


@torch.no_grad()
def _seconds(model: Model) -> float:
    """The least of ten runs."""
    x = torch.zeros(128, 1, 28, 28)
    found = []
    for _ in range(10):
        began = time.perf_counter()
        model.module(x)
        found.append(time.perf_counter() - began)
    return min(found)


def encoder_texts() -> tuple[Model, Data]:
    """MiniLM and WordSim353, with texts of WikiText-2's validation part and frequent words of it to learn from. What is a pair
    says nothing: neighbours in a list.
    """
    from examples import minilm

    data = minilm.similarity()
    lines = (SHARED / "wikitext-2/valid.txt").read_text(encoding="utf-8").splitlines()
    texts = [one.strip() for line in lines for one in line.split(" . ") if 20 < len(one.strip()) < 300][:_NUM_TEXTS]
    words = Counter(re.findall(r"[a-z]{3,}", " ".join(lines).lower()))
    texts += [word for word, _ in words.most_common(_NUM_WORDS)]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    return minilm.build(), replace(data, train=minilm._rows(pairs, [0.0] * len(pairs)))


def keywords(folder: Path) -> Data:
    """Ten spoken digits of six speakers as logarithmic spectra, 1 x 40 x 48; the official 300 recordings are for testing."""
    path = folder / "fsdd.npz"
    if not path.is_file():
        parts: dict[str, list] = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
        with zipfile.ZipFile(SHARED / "fsdd.zip") as archive:
            for name in sorted(one for one in archive.namelist() if one.endswith(".wav")):
                digit, _, number = Path(name).stem.split("_")
                part = "test" if int(number) < 5 else "train"
                parts[f"x_{part}"].append(_spectrum(archive.read(name)))
                parts[f"y_{part}"].append(int(digit))
        np.savez(path, **{name: np.array(values) for name, values in parts.items()})
    return lighten.load_data(path, model=_listening(ResidualNetwork()))


def digits(folder: Path, data: Data, *, seed: int, threads: int) -> Model:
    """The teacher of the keyword network, trained from `seed`; kept in `folder`."""
    torch.manual_seed(seed)
    module, weights = ResidualNetwork(), folder / f"keywords-{seed}.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        assert data.train is not None
        training = Training(epochs=20, batch_size=32, lr=0.1, weight_decay=5e-4)
        train(module, data.train, loss=loss_for("classification"), training=training, run=Run(seed=seed, threads=threads))
        save_file(module.state_dict(), weights)
    return _listening(module)


def _listening(module: torch.nn.Module) -> Model:
    origin = Origin("module", "keywords", "image-classification", dynamic=({0: "batch"},))  # a spectrum is an image of sound
    return Model(module.eval(), (torch.zeros(2, 1, _FREQUENCIES, _FRAMES),), origin)


def _spectrum(content: bytes) -> np.ndarray:
    """Logarithm of the power in 40 bands, standardized for each recording, cut or padded to 48 frames (0.8 s)."""
    with wave.open(io.BytesIO(content)) as file:
        x_S = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16).float() / 32_768
    x_S = torch.nn.functional.pad(x_S, (0, max(0, _HOP * _FRAMES - len(x_S))))[: _HOP * _FRAMES]
    spectra = torch.stft(x_S, _FRAME, _HOP, window=torch.hann_window(_FRAME), return_complex=True).abs().square()
    bands_FT = torch.nn.functional.adaptive_avg_pool1d(spectra.T, _FREQUENCIES).T[:, :_FRAMES].clamp_min(1e-8).log()
    return ((bands_FT - bands_FT.mean()) / bands_FT.std().clamp_min(1e-5))[None].numpy().astype(np.float32)
