"""Networks that tests of several ranks share, each the same on every rank."""

from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.model import Model, Origin


class Block(nn.Module):
    """Attention and an MLP, each on a residual stream; the number of heads is an attribute, as in hand-written code."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        normed = self.norm(x_BTE)
        batch, tokens, _ = normed.shape
        query, key, value = (
            part(normed).view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTE = x_BTE + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return x_BTE + self.down(nn.functional.gelu(self.up(self.second_norm(x_BTE))))


class Language(nn.Module):
    """A decoder whose head and embedding are one tensor, with a mask that every block reads."""

    def __init__(self, vocabulary: int = 24, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTE = self.table(ids_BT)
        for block in self.blocks:
            x_BTE = block(x_BTE)
        return self.head(self.norm(x_BTE))


class Inverted(nn.Module):
    """A convolution pair with a depthwise convolution and batch norms between, beside a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.expand, self.norm = nn.Conv2d(8, 64, 1), nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
        self.second_norm = nn.BatchNorm2d(64)
        self.project = nn.Conv2d(64, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = self.second_norm(self.depthwise(torch.relu(self.norm(self.expand(x)))))
        return self.head((x + self.project(torch.relu(hidden))).mean((2, 3)))


def built(kind: type[nn.Module], **sizes: Any) -> nn.Module:
    """With weights from a fixed seed."""
    torch.manual_seed(0)
    return kind(**sizes)


def perceptron() -> nn.Module:
    """Two linear layers alike between two that are not; a bias of one entry and sizes that no number of ranks divides."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), *(nn.Linear(7, 7) for _ in range(2)), nn.Linear(7, 1))


def model_of(module: nn.Module, *example: Tensor) -> Model:
    """In evaluation mode, for batches of any size."""
    return Model(module.eval(), example, Origin("module", "test", dynamic=tuple({0: "batch"} for _ in example)))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
