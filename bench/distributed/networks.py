"""What is trained: the residual CNN of bench/prune/network.py on Fashion-MNIST, and a language model of 10 million parameters.

Dimension key: B windows, T tokens, E width, V vocabulary.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.data import Batch, Data, Example, Split

sys.path.insert(0, str(Path(__file__).parent.parent / "prune"))
from network import ResidualNetwork, load_images

TOKENS, VOCABULARY = 64, 1024


class Layer(nn.Module):
    """Causal attention of six heads and a feed-forward part, both behind a norm."""

    def __init__(self, width: int, heads: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x_BTE)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        x_BTE = x_BTE + self.out(mixed)
        return x_BTE + self.down(functional.gelu(self.up(self.norm2(x_BTE))))


class Transformer(nn.Module):
    """Six layers 360 wide: 10.1 million parameters."""

    def __init__(self, width: int = 360, layers: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.table(ids_BT) + self.places)))


@dataclass(frozen=True)
class Windows:
    """Random tokens: only the time they take matters."""

    count: int

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(VOCABULARY, (self.count, TOKENS), generator=generator)
        end = min(self.count, limit or self.count)
        for start in range(0, end, size):
            stop = min(start + size, end)
            yield Batch((ids_BT[start:stop],), None, tuple(range(start, stop)))

    def describe(self, index: int) -> Example:
        return Example(f"window {index}")


@dataclass(frozen=True)
class First:
    """The first examples of a split."""

    split: Split
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.split))

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        return self.split.batches(size, len(self) if limit is None else min(limit, len(self)))

    def describe(self, index: int) -> Example:
        return self.split.describe(index)


def network(name: str, seed: int = 0) -> nn.Module:
    """ "cnn" or "transformer", untrained."""
    torch.manual_seed(seed)
    return ResidualNetwork() if name == "cnn" else Transformer()


def images(folder: Path) -> Data:
    """Fashion-MNIST."""
    return load_images(folder)
