"""The networks of run.py: two real ones, and three shapes with random weights, whose speed does not depend on the weights.

Dimension key: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lighten

_NUM_NOISE = 48


def efficientnet_lite0(folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """With the carrier's weights, 224 x 224."""
    from examples.efficientnet_lite0 import build, data

    return build(), data()


def minilm(folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """On texts of the news corpus: single words, the test set of examples.minilm, would hardly move it."""
    from examples.minilm import build, similarity

    data = similarity()
    return build(), replace(data, test=data.calibration)


def mobilenet_v2(folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """The shape of MobileNetV2 1.0 at 224 x 224 (arXiv:1801.04381, table 2)."""
    settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers, channels = [_conv(3, 32, 3, stride=2)], 32
    for expansion, outputs, repeats, stride in settings:
        for number in range(repeats):
            layers.append(_Inverted(channels, outputs, expansion=expansion, stride=stride if number == 0 else 1))
            channels = outputs
    layers += [_conv(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return _noise(nn.Sequential(*layers), (3, 224, 224), folder)


def resnet50(folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """The shape of ResNet-50 at 224 x 224 (arXiv:1512.03385, table 1; the stride in the 3 x 3 convolution)."""
    layers: list[nn.Module] = [_conv(3, 64, 7, stride=2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(repeats):
            layers.append(_Bottleneck(channels, width, stride if number == 0 else 1))
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return _noise(nn.Sequential(*layers), (3, 224, 224), folder)


def keywords(folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """The shape of the small depthwise keyword network DS-CNN-S, 49 x 10 coefficients (arXiv:1711.07128, table 9)."""
    layers: list[nn.Module] = [_conv(1, 64, (10, 4), stride=2, act=nn.ReLU)]
    for _ in range(4):
        layers += [_conv(64, 64, 3, groups=64, act=nn.ReLU), _conv(64, 64, 1, act=nn.ReLU)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12)]
    return _noise(nn.Sequential(*layers), (1, 49, 10), folder)


NETWORKS: dict[str, Callable[[Path], tuple[lighten.Model, lighten.Data]]] = {
    "keywords": keywords,
    "efficientnet_lite0": efficientnet_lite0,
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
    "minilm": minilm,
}


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        widen = [_conv(inputs, width, 1)] if expansion > 1 else []
        narrow = [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*widen, _conv(width, width, 3, stride=stride, groups=width), *narrow)
        self.is_added = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.is_added else y_BCHW


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        first, middle = _conv(inputs, width, 1, act=nn.ReLU), _conv(width, width, 3, stride=stride, act=nn.ReLU)
        self.layers = nn.Sequential(first, middle, _conv(width, outputs, 1, act=nn.Identity))
        is_same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if is_same else _conv(inputs, outputs, 1, stride=stride, act=nn.Identity)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(self.layers(x_BCHW) + self.shortcut(x_BCHW))


def _conv(
    inputs: int,
    outputs: int,
    size: int | tuple[int, int],
    *,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] = nn.ReLU6,
) -> nn.Sequential:
    padding = size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def _noise(network: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[lighten.Model, lighten.Data]:
    """Batch norms see the noise first, so that activations keep their size down to the last layer."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    x = torch.randn(_NUM_NOISE, *shape)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        network.train()(x[:16])
    path = folder / "noise.npz"
    np.savez(path, x=x.numpy(), y=np.zeros(_NUM_NOISE, np.int64))
    model = lighten.load(network.eval(), example=x[:2])
    return model, replace(lighten.load_data(path, model=model), metric="agreement")
