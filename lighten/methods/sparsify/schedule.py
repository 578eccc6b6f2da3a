"""Masks while a network trains: held, growing, or moving.

Each schedule is a pair of hooks of the training loop and a finish. The masks are those of the weights: what is zero when a
training begins or goes on after an interruption is out.

Dimension key: O outputs, K input columns of a layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from lighten.engine.schedule import Training
from lighten.methods.sparsify.layers import Layer
from lighten.ops import relaxed
from lighten.ops.densities import cosine, cubic
from lighten.ops.masks import Pattern, block_sums, mask, masks_together, regrown
from lighten.ops.masks import spread as spread_blocks

END = 0.75
"""Share of a training after which masks stay what they are: what is left recovers."""
UPDATES = 100
"""Masks change so many times in a training, at most once a step."""
_MOVED = 0.3  # share of the weights that RigL moves at first, arXiv:1911.11134, section 4
Masks = Mapping[str, Tensor]


class Schedule(Protocol):
    """What a training with masks asks for. Hooks as in `engine.train.Extras`."""

    def penalty(self, module: nn.Module, progress: float) -> Tensor:
        """Added to the loss."""

    def after_step(self, step: int, progress: float) -> None:
        """The weights have moved."""

    def finish(self) -> None:
        """Leaves the network with plain weights and exact zeros."""


@dataclass(frozen=True)
class Wanted:
    """Where masks shall end. ratio: share of zeros over all layers. ratios: of each layer by name; None where scores are
    compared between layers.
    """

    pattern: Pattern
    ratio: float
    ratios: Mapping[str, float] | None = None

    def masks(self, layers: Sequence[Layer], scores: Masks, now: Callable[[float], float] = float) -> dict[str, Tensor]:
        """Of the largest scores. now: from the share of zeros at the end to that at this moment."""
        if self.ratios is None:
            found = masks_together([scores[layer.name] for layer in layers], self.pattern, now(self.ratio))
            return {layer.name: mask_OK for layer, mask_OK in zip(layers, found, strict=True)}
        ratios = self.ratios
        return {layer.name: mask(scores[layer.name], self.pattern, now(ratios[layer.name])) for layer in layers}


@dataclass
class Held:
    """Masks that stay what they are. sparse: names of weights whose zeros are a mask from the start; those of the others are
    only where they grow.
    """

    graph: fx.GraphModule
    layers: Sequence[Layer]
    sparse: Sequence[str]
    turn: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        parameters = dict(self.graph.named_parameters(remove_duplicate=False))
        self.weights = {layer.name: parameters[layer.name] for layer in self.layers}
        self.masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def penalty(self, module: nn.Module, progress: float) -> Tensor:
        """None; but here the weights of a training that goes on are known for the first time."""
        del module
        if not self.masks:
            # a weight may begin at zero: that makes no mask until the first one is made
            known = self.sparse if progress == 0 else self.weights
            self.masks = {name: (weight != 0) | (name not in known) for name, weight in self.weights.items()}
        return torch.zeros(())

    @torch.no_grad()
    def after_step(self, step: int, progress: float) -> None:
        """Masks are renewed when their turn has come, and put on."""
        self.put_on()  # what is out has moved too
        turn = int(progress * UPDATES)
        if turn != self.turn and progress <= END:
            self.turn = turn
            self.renew(step, progress / END)
        self.put_on()

    def renew(self, step: int, progress: float) -> None:
        """progress: in [0, 1] of the time in which masks change."""

    def put_on(self) -> None:
        """Zeros where the masks say so."""
        for name, weight in self.weights.items():
            weight.data.masked_fill_(~self.masks[name], 0.0)

    def finish(self) -> None:
        """Averaged weights may have missed the last change."""
        if self.masks:
            self.put_on()

    def rows(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors with the weights' shapes."""
        return {layer.name: layer.rows(values[layer.name]) for layer in self.layers}

    def change(self, masks: Masks) -> None:
        """New masks, outputs by columns."""
        for layer in self.layers:
            self.masks[layer.name] = layer.weight(masks[layer.name], self.weights[layer.name]) != 0


@dataclass
class Cubic(Held):
    """Gradual magnitude pruning: the share of zeros rises with the cubic schedule of Zhu and Gupta 2017, arXiv:1710.01878. What
    is zero has the least magnitude, so it stays out.
    """

    wanted: Wanted = field(default_factory=lambda: Wanted(Pattern(), 0.5))

    def renew(self, step: int, progress: float) -> None:
        """By the magnitudes as they are."""
        scores = {name: w_OK.abs() for name, w_OK in self.rows(self.weights).items()}
        now = self.wanted.masks(self.layers, scores, lambda end: cubic(progress, start=0.0, end=end))
        self.change({name: mask_OK & (scores[name] > 0) for name, mask_OK in now.items()})


@dataclass
class Moving(Held):
    """Dynamic sparse training: in each layer some of the smallest weights make room for others, which begin at zero.

    by_gradient: those of the largest gradients (RigL, arXiv:1911.11134), else random ones (SET, arXiv:1707.04780).

    differs from the paper: a weight that comes back may still have some momentum.
    """

    pattern: Pattern = field(default_factory=Pattern)
    by_gradient: bool = True
    seed: int = 0

    def renew(self, step: int, progress: float) -> None:
        """The number of weights of each layer stays; fewer move from time to time."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        share = cosine(progress, share=_MOVED)
        weights, masks, new = self.rows(self.weights), self.rows(self.masks), {}
        for layer in self.layers:
            gradient = self.weights[layer.name].grad
            growth_OK = torch.rand(weights[layer.name].shape, generator=generator)
            if self.by_gradient and gradient is not None:
                growth_OK = layer.rows(gradient).abs()
            given = (masks[layer.name], weights[layer.name].abs(), growth_OK)
            new[layer.name] = regrown(*given, pattern=self.pattern, share=share)
        self.change(new)


@dataclass
class Proximal(Held):
    """L1 by proximal steps after each step of the optimizer, of every weight or of the norms of blocks; at the end of its time
    the masks are those of the largest that are left.
    """

    wanted: Wanted = field(default_factory=lambda: Wanted(Pattern(), 0.5))
    training: Training = field(default_factory=Training)
    strength: float = 1e-3
    is_cut: bool = field(default=False, init=False)

    @torch.no_grad()
    def after_step(self, step: int, progress: float) -> None:
        """The threshold is the learning rate times the strength."""
        if progress < END:
            threshold = self.training.lr_at(progress) * self.strength
            for layer in self.layers:
                weight = self.weights[layer.name]
                weight.data.copy_(layer.weight(_shrunk(layer.rows(weight), self.wanted.pattern, threshold), weight))
            return
        if not self.is_cut:
            self.is_cut = True
            scores = {name: w_OK.abs() for name, w_OK in self.rows(self.weights).items()}
            self.change(self.wanted.masks(self.layers, scores))
        self.put_on()

    def finish(self) -> None:
        """A training that was stopped before its cut is cut now."""
        self.after_step(0, 1.0)


def _shrunk(w_OK: Tensor, pattern: Pattern, threshold: float) -> Tensor:
    if pattern.size == 1:
        return relaxed.soft_threshold(w_OK, threshold)
    norm_BC = block_sums(w_OK.square(), pattern).sqrt().clamp_min(1e-12)
    return w_OK * spread_blocks((1 - threshold / norm_BC).clamp_min(0), pattern)
