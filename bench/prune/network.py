"""The network and the data that pruning is measured on: a residual CNN of 77,562 parameters on Fashion-MNIST.

The images come from the Debian package dataset-fashion-mnist (apt install dataset-fashion-mnist).
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lighten
from lighten.analyze.cost import total
from lighten.analyze.trace import traced
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.engine.train import train

EXAMPLE = (torch.zeros(2, 1, 28, 28),)
FOLDER = Path("/usr/share/datasets/fashion-mnist")


class Block(nn.Module):
    """Two 3x3 convolutions and what they are added to."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = (
            nn.Identity() if stride == 1 and num_in == num_out else nn.Conv2d(num_in, num_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Stem, one block a stage, pooled, classified."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def write_data(path: Path) -> None:
    """Fashion-MNIST as x_train, y_train, x_test, y_test in one .npz; pixels in [-1, 1], float32."""
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _bytes(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
        parts[f"x_{part}"] = pixels.astype(np.float32) / 127.5 - 1
        parts[f"y_{part}"] = _bytes(f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int64)
    np.savez(path, **parts)


def _bytes(name: str, header: int) -> np.ndarray:
    with gzip.open(FOLDER / name) as file:
        return np.frombuffer(file.read()[header:], np.uint8)


def load_images(folder: Path) -> Data:
    """Fashion-MNIST; written to `folder` once."""
    if not (folder / "fashion.npz").is_file():
        write_data(folder / "fashion.npz")
    return lighten.load_data(folder / "fashion.npz", model=as_model(ResidualNetwork()))


def trained(folder: Path, data: Data, *, seed: int, threads: int, epochs: int = 6) -> Model:
    """The network trained from `seed`; kept in `folder`."""
    torch.manual_seed(seed)
    module, weights = ResidualNetwork(), folder / f"trained-{seed}.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        assert data.train is not None
        training = Training(epochs=epochs, batch_size=128, lr=0.1, weight_decay=5e-4)
        train(module, data.train, loss=loss_for(data.task), training=training, run=Run(seed=seed, threads=threads))
        save_file(module.state_dict(), weights)
    return as_model(module)


def as_model(module: nn.Module) -> Model:
    """With a batch of any size."""
    return Model(module.eval(), EXAMPLE, Origin("module", "residual", "image-classification", dynamic=({0: "batch"},)))


def macs(module: nn.Module) -> int:
    """Multiply-accumulates of one image."""
    return total(traced(as_model(module)), EXAMPLE).macs


def build() -> tuple[nn.Module, Tensor]:
    """For `lighten`: the untrained network and an example."""
    torch.manual_seed(0)
    return ResidualNetwork(), torch.zeros(2, 1, 28, 28)
