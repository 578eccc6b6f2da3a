"""A folder as a user has it: a module with networks, weights and data; the command line and `compress` run in it."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

# a file of its own, not an import: fresh processes find it in their working folder, and nothing else of the tests
MODULE = """
import torch
from torch import nn


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # a branch on a value
            return x
        return -x


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def build():
    return network(), torch.zeros(2, 3, 16, 16)


def with_nan():
    module = network()
    with torch.no_grad():
        module[2].weight[0, 0, 0, 0] = float("nan")
    return module, torch.zeros(2, 3, 16, 16)


def branching():
    return nn.Sequential(network(), Gate()), torch.zeros(2, 3, 16, 16)


def without_example():
    return network()


def failing():
    raise RuntimeError("the checkpoint is elsewhere")


def no_batches():
    return []
"""


def make_workplace(folder: Path, *, num_examples: int = 60) -> Path:
    """`nets.py`, `data.npz` (labelled by the network itself, one in ten wrongly) and `weights.safetensors` in `folder`."""
    (folder / "nets.py").write_text(MODULE, encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(MODULE, "nets.py", "exec"), names)
    network = names["network"]()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_examples, 3, 16, 16, generator=generator)
    with torch.no_grad():
        y = (network(x) - network(x).mean(0)).argmax(1)
        network[-1].bias -= network(x).mean(0)  # so that every class is predicted
    y[::10] = (y[::10] + 1) % 4
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder
