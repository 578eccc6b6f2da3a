"""Bytes of parameters, gradients and optimizer state that a rank holds, with full sharding and without, on two gloo ranks.

    python bench/distributed/memory.py        writes memory.json and memory.md beside itself

Counted on the live tensors of one step of Adam: the memory behind each rank's own part of each tensor, padding included.
"""

import json
import multiprocessing
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lighten.core.distributed import Distributed
from lighten.engine.mesh import mesh_of
from lighten.engine.shard import Options, shard

HERE = Path(__file__).parent
WORLD = 2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and what they are added to."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(num_out) for _ in range(2))
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(inner + self.shortcut(x))


class Decoder(nn.Module):
    """Causal transformer blocks between an embedding and a head of its own."""

    def __init__(self, width: int = 320, depth: int = 8, vocabulary: int = 512) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = self.table(ids_BT)
        mask = nn.Transformer.generate_square_subsequent_mask(ids_BT.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


def cnn() -> tuple[nn.Module, Tensor]:
    """That of bench/prune in its sizes, and 8 images of Fashion-MNIST's."""
    stages = (ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
    parts = (nn.Conv2d(1, 16, 3, 1, 1, bias=False), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*parts), torch.randn(8, 1, 28, 28)


def decoder() -> tuple[nn.Module, Tensor]:
    """About 10 million parameters, and 2 sequences of 32 tokens."""
    return Decoder(), torch.randint(0, 512, (2, 32))


NETWORKS = {"CNN": cnn, "decoder": decoder}


def held(values: list[Any]) -> int:
    """Bytes behind this rank's parts; gradients of a block share one piece of memory, which counts once."""
    parts = [value.to_local() if hasattr(value, "to_local") else value for value in values]
    pieces = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return sum(pieces.values())


def measure(rank: int, meeting: str, answers: Any) -> None:
    """One step of each network, whole and sharded."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    mesh, rows = mesh_of(Distributed(data=WORLD)), []
    for name, make in NETWORKS.items():
        for mode in ("none", "full"):
            torch.manual_seed(0)
            module, inputs = make()
            params = sum(value.numel() for value in module.parameters())
            if mode == "full":
                shard(module, mesh, Options())
            optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
            module(inputs).square().mean().backward()
            optimizer.step()
            memory = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
            gradients = [value.grad for value in module.parameters() if value.grad is not None]
            row = {"network": name, "params": params, "shard": mode, "rank": rank}
            row |= {"parameter_bytes": held(list(module.parameters())), "gradient_bytes": held(gradients)}
            rows.append(row | {"optimizer_bytes": held(memory)})
    answers.put(rows)
    dist.destroy_process_group()


def main() -> None:
    """Both ranks, then the table."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=measure, args=(rank, f"{folder}/meeting", answers)) for rank in range(WORLD)]
        for rank in ranks:
            rank.start()
        rows = [row for _ in ranks for row in answers.get(timeout=300)]
        for rank in ranks:
            rank.join()
    rows.sort(key=lambda row: (row["network"], row["shard"], row["rank"]))
    facts = {"machine": platform.platform(), "torch": torch.__version__, "ranks": WORLD, "seed": 0, "rows": rows}
    (HERE / "memory.json").write_text(json.dumps(facts, indent=1) + "\n")
    (HERE / "memory.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The fuller of the two ranks."""
    lines = ["| network | parameters | bytes a rank, whole | bytes a rank, sharded | times less |", "|---|---|---|---|---|"]
    for name in NETWORKS:
        most = {
            mode: max(
                row["parameter_bytes"] + row["gradient_bytes"] + row["optimizer_bytes"]
                for row in rows
                if (row["network"], row["shard"]) == (name, mode)
            )
            for mode in ("none", "full")
        }
        params = next(row["params"] for row in rows if row["network"] == name)
        lines.append(f"| {name} | {params:,} | {most['none']:,} | {most['full']:,} | {most['none'] / most['full']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
