"""Masks without training: scores, how many zeros each layer gets, and the masks.

Dimension key: O outputs, K input columns of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.score import Evidence
from lighten.methods.sparsify.layers import Layer
from lighten.methods.sparsify.score import FROM_INPUTS, Scores, without_inputs
from lighten.methods.sparsify.sensitivity import Curve, best_ratios, curve
from lighten.methods.sparsify.watch import Seen, watch
from lighten.ops import densities
from lighten.ops.gradual import removals_in_rounds
from lighten.ops.masks import Pattern, mask, masks_together
from lighten.ops.obs import removals
from lighten.ops.sparse_gpt import sparse_gpt
from lighten.ops.sparse_scores import wanda

ALLOCATIONS = ("global", "uniform", "erk", "owl", "sensitivity")
_NEED_INPUTS = ("owl", "sensitivity")
_PROBE_EXAMPLES = 256
_MOST_EXACT = 2**34  # multiply-accumulates of the exact order of a layer: some ten seconds
Masks = dict[str, Tensor]
"""mask_OK by the name of the weight."""


@dataclass(frozen=True)
class Terms:
    """What is asked for. threshold: in place of ratio where it is not None. allocation: of ALLOCATIONS."""

    score: str
    pattern: Pattern
    ratio: float
    allocation: str
    threshold: float | None = None


def choose(graph: fx.GraphModule, layers: Sequence[Layer], terms: Terms, *, evidence: Evidence) -> Masks:
    """The masks; the network is not changed."""
    if terms.threshold is not None:
        return {layer.name: layer.rows(tensor_of(graph, layer.name)).abs() > terms.threshold for layer in layers}
    choice = _Choice(graph, layers, terms, evidence)
    if terms.score not in FROM_INPUTS:
        choice.scores = without_inputs(
            graph, layers, score=terms.score, evidence=evidence, pattern=terms.pattern, ratio=terms.ratio
        )
    if terms.score in FROM_INPUTS or terms.allocation in _NEED_INPUTS:
        inputs = one_batch(evidence.data, evidence.samples).inputs
        watch(graph, layers, choice.see, inputs=inputs, seed=evidence.run.seed)
    return choice.masks()


@torch.no_grad()
def apply(graph: fx.GraphModule, layers: Sequence[Layer], masks: Mapping[str, Tensor]) -> None:
    """Sets to zero, in place, what the masks leave out."""
    for layer in layers:
        weight = tensor_of(graph, layer.name)
        weight.data.masked_fill_(layer.weight(masks[layer.name], weight) == 0, 0.0)


@dataclass
class _Choice:
    """scores, shares of outliers and curves of layers, as they become known."""

    graph: fx.GraphModule
    layers: Sequence[Layer]
    terms: Terms
    evidence: Evidence
    scores: Scores = field(default_factory=dict)
    outliers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    def see(self, layer: Layer, seen: Seen) -> None:
        """For `watch`."""
        w_OK, terms, loss_OK = layer.rows(tensor_of(self.graph, layer.name)), self.terms, None
        if terms.score == "obs":
            rank = removals_in_rounds if _is_large(layer, terms.pattern) else removals
            loss_OK, self.scores[layer.name] = rank(w_OK * seen.weight_O[:, None].sqrt(), seen.gram_GKK, terms.pattern)
        elif terms.score == "sparsegpt":
            self.scores[layer.name] = sparse_gpt(w_OK, seen.gram_GKK, terms.pattern, ratio=terms.ratio).double()
        elif terms.score == "wanda":
            self.scores[layer.name] = wanda(w_OK, seen.gram_GKK.diagonal(dim1=1, dim2=2))
        if terms.allocation == "owl":
            self.outliers[layer.name] = densities.outlier_share(wanda(w_OK, seen.gram_GKK.diagonal(dim1=1, dim2=2)))
        if terms.allocation == "sensitivity":
            masked = lambda ratio: self._mask(layer, ratio)  # noqa: E731
            self.curves[layer.name] = curve(w_OK, seen, masked, ratio=terms.ratio, loss_OK=loss_OK)

    def masks(self) -> Masks:
        """Once all is known."""
        terms = self.terms
        if terms.allocation == "global":
            found = masks_together([self.scores[layer.name] for layer in self.layers], terms.pattern, terms.ratio)
            return {layer.name: mask_OK for layer, mask_OK in zip(self.layers, found, strict=True)}
        return {layer.name: self._mask(layer, ratio) for layer, ratio in zip(self.layers, self._ratios(), strict=True)}

    def _mask(self, layer: Layer, ratio: float) -> Tensor:
        """Wanda compares the weights of a row."""
        return mask(self.scores[layer.name], self.terms.pattern, ratio, by_row=self.terms.score == "wanda")

    def _ratios(self) -> list[float]:
        sizes, ratio = [layer.size for layer in self.layers], self.terms.ratio
        if self.terms.allocation == "erk":
            return densities.erk([layer.shape for layer in self.layers], ratio)
        if self.terms.allocation == "owl":
            return densities.outliers([self.outliers[layer.name] for layer in self.layers], sizes, ratio)
        if self.terms.allocation == "sensitivity":
            inputs = one_batch(self.evidence.data, min(self.evidence.samples, _PROBE_EXAMPLES)).inputs
            task = self.evidence.data.task
            return best_ratios(self.graph, self.layers, self.curves, ratio=ratio, inputs=inputs, task=task)
        return [ratio] * len(sizes)


def _is_large(layer: Layer, pattern: Pattern) -> bool:
    return layer.size * layer.num_columns**2 // pattern.size > _MOST_EXACT
