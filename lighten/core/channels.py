"""Which slices of which tensors must be cut together, as data: the unit of structured pruning.

The unit is that of DepGraph (Fang et al. 2023, arXiv:2301.12900): one decision removes one channel from every tensor that
carries it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROLES = ("out", "in", "along")


@dataclass(frozen=True)
class Slice:
    """The positions along one dimension of a tensor that belong to the channels of a group.

    Channel c owns start + o * period + c * repeat + r, for o in range(outer) and r in range(repeat): a flattened feature map
    repeats each channel height * width times, a fused q/k/v has outer 3, a concatenation gives a start.
    tensor: name of a parameter or buffer. role: "out" where the tensor makes the channel (a weight's output dimension), "in"
    where it consumes it, "along" where it follows it (bias, norm, mask).
    """

    tensor: str
    dim: int
    role: str
    start: int = 0
    repeat: int = 1
    outer: int = 1
    period: int = 0

    def positions(self, size: int) -> Tensor:
        """int64 of shape (size, outer * repeat): row c holds the positions of channel c of a group of `size` channels."""
        outer_O = torch.arange(self.outer) * self.period
        repeat_R = torch.arange(self.repeat)
        channel_C = torch.arange(size) * self.repeat
        return (self.start + channel_C[:, None, None] + outer_O[None, :, None] + repeat_R).reshape(size, -1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or cut together.

    name: of the first tensor that makes the channels, without `.weight`; unique in a graph. size: number of channels.
    kind: "channel", "head" (attention heads, or key/value heads with the query heads that share them), "neuron" (between
    the two linear layers of a feed-forward block), or "expert" (of those that a router picks from: its row of the router and
    its weights). slices: each tensor and dimension that carries the channels.
    exact: cutting a channel gives what setting its "out" and "along" parameters to zero gives; False where a norm, a softmax
    or a mean over the channels, or a value f(0) != 0 that is read, makes the two differ. Experts are never exact: one whose
    weights are 0 is still picked, with the share that a score of 0 gives it.
    least: how many must stay, because the network picks so many of them at a time.
    """

    name: str
    size: int
    kind: str
    slices: tuple[Slice, ...]
    exact: bool = False
    least: int = 1


@dataclass(frozen=True)
class Fixed:
    """A weight dimension that cannot be cut. tensor, dim: which. reason: why, in words for the user."""

    tensor: str
    dim: int
    reason: str
