"""Small networks and data for tests, each with the patterns of a real one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighten.core.data import Batch, Data, Example
from lighten.core.model import Model, Origin


class Residual(nn.Module):
    """Padding, depthwise and strided convolution, ReLU6, residual add, pooling, a linear head: a mobile network in small."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, width, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = nn.Conv2d(width, width, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.stem(self.pad(x))))
        x = x + self.project(nn.functional.relu6(self.depthwise(x)))
        return self.head(self.drop(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


class Encoder(nn.Module):
    """Tokens, an embedding, linear layers on sequences, masked mean pooling: a text encoder in small."""

    def __init__(self, vocabulary: int = 50, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.table(input_ids)
        hidden = self.norm(hidden + self.down(nn.functional.gelu(self.up(hidden))))
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


class Recurrent(nn.Module):
    """An LSTM over frames and a transposed convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 8, 2, stride=2)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.up(x).transpose(1, 2))
        return self.head(hidden[:, -1])


@dataclass(frozen=True)
class Tensors:
    """A split over tensors in memory; `inputs` and `target` share dimension 0."""

    inputs: tuple[Tensor, ...]
    target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        end = len(self) if limit is None else min(limit, len(self))
        for start in range(0, end, size):
            stop = min(start + size, end)
            target = None if self.target is None else self.target[start:stop]
            yield Batch(tuple(value[start:stop] for value in self.inputs), target, tuple(range(start, stop)))

    def describe(self, index: int) -> Example:
        return Example(f"row {index}")


def residual(seed: int = 0) -> Model:
    """With batch statistics that are not the trivial ones."""
    torch.manual_seed(seed)
    module = Residual()
    with torch.no_grad():
        module.norm.running_mean.uniform_(-0.5, 0.5)
        module.norm.running_var.uniform_(0.5, 2)
        module.norm.weight.uniform_(0.5, 2)
        module.norm.bias.uniform_(-0.5, 0.5)
    return Model(module.eval(), (torch.randn(2, 3, 16, 16),), Origin("module", "residual", dynamic=({0: "batch"},)))


def encoder(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    dims = {0: "batch", 1: "tokens"}
    example = (torch.randint(50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    origin = Origin("module", "encoder", task="sentence-similarity", dynamic=(dims, dims))
    return Model(Encoder().eval(), example, origin, ("input_ids", "attention_mask"), ("embedding",))


def recurrent(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(Recurrent().eval(), (torch.randn(2, 4, 10),), Origin("module", "recurrent", dynamic=({0: "batch"},)))


def images(count: int = 64, classes: int = 5, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    split = Tensors(
        (torch.randn(count, 3, 16, 16, generator=generator),), torch.randint(classes, (count,), generator=generator)
    )
    return Data("images", "image-classification", "agreement", split, split, digest="images")


def sentences(count: int = 32, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (count, 7), generator=generator)
    split = Tensors((ids, torch.ones_like(ids)))
    return Data("sentences", "regression", "mse", split, split, digest="sentences")


def frames(count: int = 32, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    split = Tensors((torch.randn(count, 4, 10, generator=generator),))
    return Data("frames", "classification", "agreement", split, split, digest="frames")
