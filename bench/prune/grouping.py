"""How long it takes to find and cut the channel groups of deep networks: `python bench/prune/grouping.py` writes grouping.json.

A residual CNN of 302 convolutions, and a transformer of 100 blocks (600 linear layers). Times are processor seconds of
one run on one thread, after a small network that loads what torch.export needs.
"""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.trace import traced
from lighten.core.model import Model, Origin


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm_first, self.norm_second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = torch.relu(self.norm_first(self.first(x)))
        return torch.relu(x + self.norm_second(self.second(y)))


class AttentionBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        batch, length, width = x.shape
        y = self.norms[0](x)
        query, key, value = (
            part(y).view(batch, length, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


def residual() -> tuple[nn.Module, Tensor]:
    """302 convolutions."""
    blocks = (ResidualBlock(16) for _ in range(150))
    head = (nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *head), torch.randn(2, 3, 16, 16)


def transformer() -> tuple[nn.Module, Tensor]:
    """100 blocks."""
    return nn.Sequential(*(AttentionBlock(32, 4) for _ in range(100)), nn.Linear(32, 10)), torch.randn(2, 8, 32)


def measure(network: nn.Module, example: Tensor) -> dict[str, float | int]:
    """Seconds to trace, to find the groups and to cut half of each: of the processor, which other work does not lengthen."""
    model = Model(network.eval(), (example,), Origin("module", "bench", dynamic=({0: "batch"},)))
    start = time.process_time()
    graph = traced(model)
    after_trace = time.process_time()
    coupling = couple(graph)
    after_couple = time.process_time()
    smaller = cut(graph, coupling, {group.name: torch.arange(max(group.least, group.size // 2)) for group in coupling.groups})
    after_cut = time.process_time()
    with torch.no_grad():
        smaller(example)
    return {
        "nodes": len(graph.graph.nodes),
        "groups": len(coupling.groups),
        "parameters": sum(value.numel() for value in graph.parameters()),
        "parameters_cut": sum(value.numel() for value in smaller.parameters()),
        "trace_s": round(after_trace - start, 2),
        "couple_s": round(after_couple - after_trace, 2),
        "cut_s": round(after_cut - after_couple, 2),
    }


def main() -> None:
    """Writes the figures beside this file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure(nn.Sequential(ResidualBlock(4), nn.Conv2d(4, 2, 1)), torch.randn(2, 4, 8, 8))
    figures = {
        "device": f"{platform.processor() or platform.machine()}, 1 thread",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "runs": 1,
        "residual, 302 convolutions": measure(*residual()),
        "transformer, 100 blocks": measure(*transformer()),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
