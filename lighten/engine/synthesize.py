"""Inputs made from the network alone: by gradient descent, until what reaches its batch norms has their running statistics.

For when no example may leave its owner. The network stays as it is; the inputs are what is trained (ZeroQ, arXiv:2001.00281;
DeepInversion, arXiv:1912.08795). They are no pictures of anything: they excite each layer as the training data did, which is
what ranges of activations and the solvers of codes need.

Dimension key: B inputs, C classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run
from lighten.engine.batch_norms import AtBatchNorms, Statistics
from lighten.ops.statistics import mismatch, moments, roughness

_BATCH = 64
_BATCH_VALUES = 2_500_000  # input values of a batch, at most: with all activations kept for the gradient, one or two gigabytes
_SCALES = tuple(4.0**power for power in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5))  # of the noise, the first where all are alike
_FEWEST = 8  # statistics of fewer inputs are too noisy to be matched


@dataclass(frozen=True)
class Synthesis:
    """steps: of Adam, at least 1. lr: in units of the noise that the inputs begin as, whose scale is the power of 4 that suits
    the network best; it falls to zero as a cosine. smoothness: weight of the roughness (ops.statistics), 0 or more. labels:
    weight of the cross-entropy to classes that are dealt out evenly, 0 or more; only where the first output is (inputs,
    classes).
    """

    steps: int = 200
    lr: float = 0.1
    smoothness: float = 0.05
    labels: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise InputError(f"synthesis: steps must be an integer >= 1. Got {self.steps!r}.")
        for name in ("lr", "smoothness", "labels"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InputError(f"synthesis: {name} must be a number >= 0. Got {value!r}.")


@dataclass(frozen=True)
class Synthesized:
    """inputs: on the CPU, `count` rows each, as the module takes them. mismatch: what is left of it, the mean over batch norms
    and batches (ops.statistics.mismatch); beginning: what it was for noise. num_norms: how many batch norms there are.
    """

    inputs: tuple[Tensor, ...]
    mismatch: float
    beginning: float
    num_norms: int


def synthesize(
    module: nn.Module, example: tuple[Tensor, ...], count: int, *, run: Run, synthesis: Synthesis | None = None
) -> Synthesized:
    """`count` inputs of the shapes of `example`'s rows, the same for the same run.seed.

    module: a module or traced graph in evaluation mode, not changed. Memory: the activations of one batch, of 64 inputs at
    most. Time: some three forward passes a step, for every batch.
    Raises InputError when count is below 8 or an input is not real-valued, UnfitError when no batch norm with running
    statistics is reached, or what reaches them stops being finite.
    """
    if count < _FEWEST:
        raise InputError(f"At least {_FEWEST} inputs are synthesized: fewer have no statistics to match. Got {count}.")
    if not all(value.is_floating_point() for value in example):
        raise InputError("Only real-valued inputs are synthesized from batch norms; one of this network's holds integers.")
    synthesis = synthesis or Synthesis()
    generator = torch.Generator().manual_seed(run.seed)
    work = [_Inputs(module, example, size, generator=generator, synthesis=synthesis) for size in _sizes(example, count)]
    steps = (one for inputs in work for one in inputs.steps())
    news = _News()
    for mismatched in run.progress.track(steps, what=news.line, total=len(work) * synthesis.steps):
        news.mismatch = mismatched
    joined = tuple(torch.cat(parts) for parts in zip(*(inputs.values for inputs in work), strict=True))
    ended, began = (sum(getattr(inputs, name) for inputs in work) / len(work) for name in ("mismatch", "beginning"))
    return Synthesized(joined, ended, began, work[0].num_norms)


@dataclass
class _News:
    mismatch: float = math.nan

    def line(self) -> str:
        return f"synthesizing inputs, mismatch {self.mismatch:.3g}"


@dataclass
class _Distance:
    """Adds up the mismatch at the batch norms that a forward pass reaches."""

    terms: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, mean_C: Tensor, var_C: Tensor) -> Statistics:
        self.terms.append(mismatch(moments(x), mean_C, var_C))
        return mean_C, var_C


class _Inputs:
    """A batch of inputs under way."""

    def __init__(
        self, module: nn.Module, example: tuple[Tensor, ...], size: int, *, generator: torch.Generator, synthesis: Synthesis
    ) -> None:
        self.module, self.synthesis, self.order = module, synthesis, torch.randperm(size, generator=generator)
        self.shapes = [torch.randn(size, *value.shape[1:], generator=generator).to(value.dtype) for value in example]
        self.scale = 1.0
        self.values: list[Tensor] = []
        self.mismatch = self.beginning = math.nan
        self.num_norms = 0

    def steps(self) -> Iterator[float]:
        """Makes one step each time it is asked, and gives the mismatch before it."""
        self._choose_scale()
        optimizer = torch.optim.Adam([value.requires_grad_(True) for value in self.shapes], lr=self.synthesis.lr)
        for step in range(self.synthesis.steps):
            loss = self._loss()
            self.beginning = self.mismatch if step == 0 else self.beginning
            gradients = torch.autograd.grad(loss, self.shapes, allow_unused=True)  # the network's own weights get none
            for value, gradient in zip(self.shapes, gradients, strict=True):
                value.grad = gradient
            optimizer.param_groups[0]["lr"] = self._lr(step)
            optimizer.step()
            yield self.mismatch
        with torch.no_grad():
            self._loss()
            self.values = self._values()

    def _values(self) -> list[Tensor]:
        return [shape * self.scale for shape in self.shapes]

    @torch.no_grad()
    def _choose_scale(self) -> None:
        """Networks of pixels from 0 to 255 and of quiet sound are reached too. The mismatch is compared alone."""
        found = {}
        for self.scale in _SCALES:
            self._loss()
            found[self.scale] = self.mismatch
        self.scale = min(found, key=found.__getitem__)

    def _lr(self, step: int) -> float:
        """At the middle of the step."""
        return self.synthesis.lr * (1 + math.cos(math.pi * (step + 0.5) / self.synthesis.steps)) / 2

    def _loss(self) -> Tensor:
        distance, values = _Distance(), self._values()
        with AtBatchNorms(distance):
            output = self.module(*(value.clone() for value in values))  # a module may write into what it is given
        if not distance.terms:
            raise UnfitError("The network has no batch norm with running statistics.")
        matched = torch.stack(distance.terms).mean()
        self.mismatch, self.num_norms = float(matched.detach()), len(distance.terms)
        if not math.isfinite(self.mismatch):
            raise UnfitError("What reaches the batch norms is not finite (NaN or infinity) for synthesized inputs.")
        loss = matched + self.synthesis.labels * self._cross_entropy(output)
        return loss + self.synthesis.smoothness * sum((roughness(value) for value in values), matched.new_zeros(()))

    def _cross_entropy(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        logits_BC = output if isinstance(output, Tensor) else output[0]
        if not self.synthesis.labels or logits_BC.dim() != 2 or logits_BC.shape[1] < 2:
            return logits_BC.new_zeros(())
        return functional.cross_entropy(logits_BC, self.order % logits_BC.shape[1])


def _sizes(example: tuple[Tensor, ...], count: int) -> list[int]:
    """Batches as equal as can be, so that none is too small for statistics of its own."""
    each = sum(value[0].numel() for value in example)
    most = max(_FEWEST, min(_BATCH, _BATCH_VALUES // max(each, 1)))
    num_batches = max(1, min(math.ceil(count / most), count // _FEWEST))
    return [count // num_batches + (place < count % num_batches) for place in range(num_batches)]
