"""What the command line reads in the tests of distributed runs: `small:model` and `small:data`."""

import torch
from networks import Tensors
from torch import Tensor, nn

from lighten.core.data import Data


class Small(nn.Module):
    """Convolution, batch norm and a head, for 8 x 8 images of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.conv(x)))
        return self.head(nn.functional.relu(self.deep(x)).mean((2, 3)))


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Small(), (torch.randn(2, 1, 8, 8),)


def split(count: int, seed: int) -> Tensors:
    """The class is which of three rows is bright."""
    generator = torch.Generator().manual_seed(seed)
    target_B = torch.randint(3, (count,), generator=generator)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    x[torch.arange(count), 0, 2 * target_B + 1] += 1 + target_B[:, None]
    return Tensors((x,), target_B)


def data() -> Data:
    return Data("small", "image-classification", "accuracy", split(64, 2), split(203, 1), digest="small")
