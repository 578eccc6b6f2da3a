"""Trains a small residual network on scikit-learn's 8 x 8 digits, then compresses it: what `make demo` runs.

    python examples/digits.py

writes demo-data/digits.npz (the images), demo-data/digits.safetensors (the trained weights) and the folder demo-out (the
result). The same job from the command line, once the first two exist:

    lighten compress examples.digits:build --weights demo-data/digits.safetensors --data demo-data/digits.npz \
        --max-drop 1% --out demo-out

Dimension key: N examples, C channels, H height, W width.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

import lighten

EPOCHS = 12
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.1


class Block(nn.Module):
    """Two 3 x 3 convolutions and the way around them, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else _shortcut(channels_in, channels_out, stride=stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = functional.relu(self.norm1(self.conv1(x_NCHW)))
        y_NCHW = self.norm2(self.conv2(y_NCHW))
        return functional.relu(y_NCHW + self.shortcut(x_NCHW))


def _shortcut(channels_in: int, channels_out: int, *, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out))


class Digits(nn.Module):
    """A residual network for 1 x 8 x 8 images and 10 classes, about 77,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(Block(32, 32), Block(32, 64, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One batch of valid inputs, which lighten traces the network with."""
        return (torch.zeros(2, 1, 8, 8),)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NCHW = self.blocks(self.stem(x_NCHW))
        return self.head(self.pool(features_NCHW).flatten(1))


def build() -> nn.Module:
    """The network with fresh weights."""
    return Digits()


def write_digits(path: Path) -> None:
    """Writes x_train, y_train, x_test, y_test: 1,437 and 360 images with values in [0, 1], every class in both."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    split = train_test_split(images, digits.target.astype(np.int64), test_size=360, random_state=0, stratify=digits.target)
    x_train, x_test, y_train, y_test = split
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def train(network: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> nn.Module:
    """A few seconds of stochastic gradient descent with a one-cycle learning rate (Smith 2018, arXiv:1708.07120)."""
    steps_an_epoch = -(-len(x_NCHW) // BATCH_SIZE)
    optimizer = torch.optim.SGD(network.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps_an_epoch)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x_NCHW)).split(BATCH_SIZE):
            loss = functional.cross_entropy(network(x_NCHW[rows]), y_N[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main(folder: Path = Path("demo-data"), out: Path = Path("demo-out")) -> lighten.Result:
    """Trains, compresses within one point of accuracy, saves the result to `out`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    write_digits(folder / "digits.npz")
    images = np.load(folder / "digits.npz")
    print("Training a small residual network on 1,437 images of digits ...")
    network = train(build(), torch.from_numpy(images["x_train"]), torch.from_numpy(images["y_train"]))
    save_file(network.state_dict(), folder / "digits.safetensors")

    budget, target = lighten.Budget(max_drop=0.01), lighten.Target(threads=1)
    result = lighten.compress(network, folder / "digits.npz", budget=budget, target=target)
    result.save(out)
    print(result.table())
    print(f"The report is {(out / 'report.html').resolve()}")
    return result


if __name__ == "__main__":
    main()
