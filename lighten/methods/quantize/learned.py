"""What quantization-aware training learns: weights on grids whose steps are learned, activations and biases likewise.

Steps are learned as logarithms (Jain et al. 2019, arXiv:1903.08066, section 3.3): they stay positive, and an optimizer that
normalizes gradients moves a small step no faster than a large one.

Dimension key: O output channels; `x` has any shape.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lighten.methods.quantize.annotate import Rows
from lighten.ops.grids import Affine, affine
from lighten.ops.steps import clipped_step, learned_step, round_through, to_codes

_MARGIN = 1e-6  # of a step: float32 must not round it beyond the end


@dataclass(frozen=True)
class Knobs:
    """learns_steps: False keeps them as they start. clipping: "lsq", or "pact" for activations. freezes: codes are watched."""

    learns_steps: bool = True
    clipping: str = "lsq"
    freezes: bool = False


@dataclass(frozen=True)
class Learned:
    """What a training found. rows: by weight, its codes and their bits. grids: by tensor and bits."""

    rows: Mapping[str, tuple[Rows, int]] = field(default_factory=dict)
    grids: Mapping[tuple[str, int], Affine] = field(default_factory=dict)

    def codes(self, weight: str, bits: int) -> Rows | None:
        """Those that were trained, where they fit into `bits`: the network has seen no other values of this weight."""
        rows, known = self.rows.get(weight, (None, 0))
        return rows if known <= bits else None

    def grid(self, tensor: str, bits: int) -> Affine | None:
        """The one that was trained; at other bits, one over the same range, which the network has learned to live in."""
        near = sorted((abs(known - bits), known) for name, known in self.grids if name == tensor)
        if not near:
            return None
        found = self.grids[tensor, near[0][1]]
        if near[0][1] == bits:
            return found
        low, high = ((end - found.zero) * found.scale for end in (found.low, found.high))
        return affine(low, high, bits)


class LearnedWeight(nn.Module):
    """A weight that computes as codes times steps. weight: what the optimizer moves, the codes are its nearest. low, high: of
    the codes. dim: that of the output channels. What follows them is for freezing alone (methods.quantize.freezing).
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    is_frozen: Tensor

    def __init__(self, weight: Tensor, scale_O: Tensor, *, bits: int, dim: int, knobs: Knobs) -> None:
        super().__init__()
        self.low, self.high, self.bits, self.dim = -127 if bits == 8 else -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, bits, dim
        self.weight = nn.Parameter(weight)
        _add_step(self, scale_O, learns=knobs.learns_steps)
        if knobs.freezes:
            codes = self.to_codes()
            self.register_buffer("codes", codes)
            self.register_buffer("direction", torch.zeros_like(codes))
            self.register_buffer("frequency", torch.zeros_like(weight))
            self.register_buffer("mean", codes.to(weight.dtype))
            self.register_buffer("is_frozen", torch.zeros_like(weight, dtype=torch.bool))

    def step(self) -> Tensor:
        """One a channel, in a shape that multiplies the weight."""
        shape = [1] * self.weight.dim()
        shape[self.dim] = -1
        return _step(self).reshape(shape)

    @torch.no_grad()
    def to_codes(self) -> Tensor:
        """int8, in the weight's shape."""
        return to_codes(self.weight, self.step(), low=self.low, high=self.high).to(torch.int8)

    def rows(self) -> Rows:
        """As the file will have it."""
        return Rows(self.to_codes(), _step(self).detach().clone(), self.dim)

    def forward(self) -> Tensor:
        """The weight as it will be read."""
        return learned_step(self.weight, self.step(), low=self.low, high=self.high, is_paced=False)


class LearnedTensor(nn.Module):
    """An activation that is rounded to a grid whose step is learned. The zero point stays, so that zero stays exact.

    ends: those of the clipping activation that makes it. A grid that reached beyond them would gain nothing, and runtimes drop
    the clipping, and compute in integers before it, only where the grid does it too.
    """

    growth: Tensor

    def __init__(self, grid: Affine, *, knobs: Knobs, ends: tuple[float, float] = (-math.inf, math.inf)) -> None:
        super().__init__()
        self.zero, self.low, self.high = grid.zero, grid.low, grid.high
        self.round = clipped_step if knobs.clipping == "pact" else learned_step
        counts = (self.low - self.zero, self.high - self.zero)
        most = min((end / count for end, count in zip(ends, counts, strict=True) if count), default=math.inf)
        self.most_growth = math.log(most / grid.scale) - _MARGIN if most > 0 else math.inf
        _add_step(self, torch.tensor([grid.scale], dtype=torch.float32), learns=knobs.learns_steps)

    def grid(self) -> Affine:
        """As the file will have it."""
        return Affine(float(_step(self).detach()), self.zero, self.low, self.high)

    @torch.no_grad()
    def limit(self) -> None:
        """Keeps the grid within the ends; called when the optimizer has moved the step."""
        if self.growth.requires_grad:
            self.growth.clamp_(max=self.most_growth)

    def range(self) -> Tensor:
        """Its width, a scalar that gradients go through: what PACT's penalty makes smaller."""
        return _step(self).sum() * (self.high - self.low)

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, float32: bf16 has too few digits for 8 bits."""
        return self.round(
            x.float(), _step(self).reshape(()), low=self.low - self.zero, high=self.high - self.zero, is_paced=False
        )


class LearnedBias(nn.Module):
    """A bias as integer kernels add it: on the scale of the accumulator, input step times weight step. With few bits this is no
    small thing. Its gradient goes straight through.
    """

    def __init__(self, weight: LearnedWeight, tensor: LearnedTensor) -> None:
        super().__init__()
        self.steps = (weight, tensor)  # in a tuple, since they have their places in the network

    def forward(self, bias_O: Tensor) -> Tensor:
        """Whole numbers of accumulator units."""
        unit_O = (_step(self.steps[0]) * _step(self.steps[1])).detach()
        return round_through(bias_O / unit_O) * unit_O


def _add_step(module: nn.Module, scale: Tensor, *, learns: bool) -> None:
    module.register_buffer("first_step", scale.detach().float().clone())
    growth = torch.zeros_like(module.get_buffer("first_step"))
    if learns:
        module.register_parameter("growth", nn.Parameter(growth))
    else:
        module.register_buffer("growth", growth)


def _step(module: Any) -> Tensor:
    step: Tensor = module.first_step * module.growth.exp()
    return step
