"""Weights behind gates that train with them: movement pruning, hard-concrete L0, variational dropout.

The gate is a parametrization of the weight, on for the time of the training. In its last quarter the gates are fixed: those of
the least worth are shut, the others as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from lighten.methods.sparsify.layers import Layer
from lighten.methods.sparsify.schedule import END, UPDATES, Wanted
from lighten.ops import relaxed
from lighten.ops.densities import cubic
from lighten.ops.sparse_scores import movement

_OPEN = 2.0  # log alpha of a gate at first: open with a chance of 0.97
_QUIET = -8.0  # log alpha of a weight's noise at first


class Gate(nn.Module, ABC):
    """mask: of weights that are in; ones at first. is_fixed: whether the gate still moves."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight))
        self.is_fixed = False

    @abstractmethod
    def worth(self, weight: Tensor) -> Tensor:
        """Larger for weights that matter more; of any sign."""

    def penalty(self, weight: Tensor) -> Tensor:
        """What is to be small, summed over the weights."""
        return torch.zeros(())


class Movement(Gate):
    """w m, and the sum over steps of -w dL/d(w m) as the worth (Sanh et al. 2020, arXiv:2005.07683): the straight-through
    gradient, so that weights which are out can come back.
    """

    moved: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("moved", torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        gated = weight * self.mask
        if gated.requires_grad and not self.is_fixed:
            gated.register_hook(partial(self._note, weight.detach()))  # type: ignore[no-untyped-call]
        return gated

    def _note(self, weight: Tensor, gradient: Tensor) -> None:
        """A hook that gives nothing leaves the gradient as it is."""
        self.moved += movement(weight, gradient)

    def worth(self, weight: Tensor) -> Tensor:
        """Accumulated movement."""
        return self.moved


class HardConcrete(Gate):
    """w z with a random z that is often exactly 0 or 1 (Louizos et al. 2018, arXiv:1712.01312)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.log_alpha = nn.Parameter(torch.full_like(weight, _OPEN))

    def forward(self, weight: Tensor) -> Tensor:
        noise = torch.rand_like(weight) if self.training and not self.is_fixed else None
        return weight * relaxed.hard_concrete(self.log_alpha, noise) * self.mask

    def worth(self, weight: Tensor) -> Tensor:
        """How open the gate is; of equally open ones the size of the weight."""
        return self.log_alpha.detach().sigmoid() * weight.detach().abs()

    def penalty(self, weight: Tensor) -> Tensor:
        """Expected number of weights."""
        return relaxed.open_probability(self.log_alpha).sum()


class Variational(Gate):
    """w + sigma noise (Molchanov et al. 2017, arXiv:1701.05369, with the noise on the weights)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.log_variance = nn.Parameter((weight.detach().square() + 1e-8).log() + _QUIET)

    def forward(self, weight: Tensor) -> Tensor:
        noisy = weight
        if self.training and not self.is_fixed:
            noisy = weight + (0.5 * self.log_variance).exp() * torch.randn_like(weight)
        return noisy * self.mask

    def worth(self, weight: Tensor) -> Tensor:
        """How little noise it bears."""
        return -relaxed.log_noise_ratio(weight.detach(), self.log_variance.detach())

    def penalty(self, weight: Tensor) -> Tensor:
        """Divergence from the prior."""
        return relaxed.variational_penalty(relaxed.log_noise_ratio(weight, self.log_variance)).sum()


GATES: dict[str, type[Gate]] = {"movement": Movement, "l0": HardConcrete, "variational": Variational}


@dataclass
class Gated:
    """A schedule. kind: of GATES. strength: of the penalty, a factor of its mean over the weights."""

    graph: fx.GraphModule
    layers: Sequence[Layer]
    kind: str
    wanted: Wanted
    strength: float = 1.0
    turn: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self.owners: dict[str, tuple[nn.Module, str]] = {}
        for layer in self.layers:
            path, _, leaf = layer.name.rpartition(".")
            owner = self.graph.get_submodule(path)
            parametrize.register_parametrization(owner, leaf, GATES[self.kind](getattr(owner, leaf)))
            self.owners[layer.name] = owner, leaf

    def penalty(self, module: nn.Module, progress: float) -> Tensor:
        """While the gates move; none for movement."""
        del module
        if progress >= END or self.kind == "movement":
            return torch.zeros(())
        total = torch.stack([self._gate(layer).penalty(self._original(layer)) for layer in self.layers]).sum()
        return self.strength * total / sum(layer.size for layer in self.layers)

    @torch.no_grad()
    def after_step(self, step: int, progress: float) -> None:
        """Movement shuts gates as the cubic schedule says, the others all at once."""
        turn = int(progress * UPDATES)
        if self.kind == "movement" and turn != self.turn and progress < END:
            self.turn = turn
            self._shut(progress / END)
        if progress >= END and not self._gate(self.layers[0]).is_fixed:
            self._shut(1.0)
            for layer in self.layers:
                self._gate(layer).is_fixed = True

    @torch.no_grad()
    def finish(self) -> None:
        """The gates go, the weights are what they let through."""
        self.after_step(0, 1.0)
        for owner, leaf in self.owners.values():
            owner.eval()
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=True)

    def _shut(self, progress: float) -> None:
        scores = {}
        for layer in self.layers:
            gate = self._gate(layer)
            worth = gate.worth(self._original(layer))
            # only movement opens a gate again
            shut = torch.zeros_like(gate.mask) if self.kind == "movement" else 1 - gate.mask
            scores[layer.name] = layer.rows(worth.masked_fill(shut > 0, -torch.inf))
        masks = self.wanted.masks(self.layers, scores, lambda end: cubic(progress, start=0.0, end=end))
        for layer in self.layers:
            gate = self._gate(layer)
            gate.mask.copy_(layer.weight(masks[layer.name], gate.mask))

    def _gate(self, layer: Layer) -> Any:
        owner, leaf = self.owners[layer.name]
        return owner.parametrizations[leaf][0]  # type: ignore[index]

    def _original(self, layer: Layer) -> Tensor:
        owner, leaf = self.owners[layer.name]
        return owner.parametrizations[leaf].original  # type: ignore[union-attr,index,no-any-return]
