"""How many zeros each layer gets: the choice for which the network's output is predicted to move least, exactly.

The error at a layer's own outputs is known at every share of zeros. How far the network's output moves for it is measured
once a layer, with this layer alone made sparse, and taken to be in proportion; the effects of layers are taken to add up.

Dimension key: O outputs, K input columns of a layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from lighten.analyze.trace import tensor_of
from lighten.methods.sparsify.layers import Layer
from lighten.methods.sparsify.watch import Seen
from lighten.ops.allocate import allocate
from lighten.ops.densities import scaled
from lighten.ops.obs import refit_masked
from lighten.ops.rounding import output_loss

LEVELS = tuple(1 - 2 ** (-step / 8) for step in range(57))
"""Shares of zeros to choose from, 0 to 0.992: from one to the next a layer loses a twelfth of its weights."""
_CATEGORIES = ("classification", "language-model", "speech-recognition")
_FAINTEST = 1e-30


@dataclass(frozen=True)
class Curve:
    """Of one layer. kept: weights that stay at each of LEVELS. losses: the error at the outputs there. probe_OK: the weights at
    one share of zeros. probe_loss: the error of these.
    """

    kept: tuple[int, ...]
    losses: tuple[float, ...]
    probe_OK: Tensor
    probe_loss: float


def curve(w_OK: Tensor, seen: Seen, masked: Callable[[float], Tensor], *, ratio: float, loss_OK: Tensor | None) -> Curve:
    """masked: from a share of zeros to a mask. loss_OK: what the removal of each weight adds behind the batch norm when the
    others make up for it; None where they do not.
    """
    gram_GKK = seen.gram_GKK

    def error(mask_OK: Tensor) -> float:
        if loss_OK is not None:
            return float((loss_OK * ~mask_OK).sum())
        return float((output_loss(w_OK, w_OK * mask_OK, gram_GKK) * seen.weight_O).sum())

    masks, probe_OK = [masked(level) for level in LEVELS], masked(ratio)
    refit_OK = w_OK * probe_OK if loss_OK is None else refit_masked(w_OK, product(w_OK, gram_GKK), gram_GKK, mask_OK=probe_OK)
    kept, losses = [int(mask_OK.sum()) for mask_OK in masks], [error(mask_OK) for mask_OK in masks]
    return Curve(tuple(kept), tuple(losses), refit_OK, error(probe_OK))


def product(w_OK: Tensor, gram_GKK: Tensor) -> Tensor:
    """W gram, shape O x K, float64."""
    w_GTK = w_OK.double().reshape(len(gram_GKK), -1, w_OK.shape[1])
    return (w_GTK @ gram_GKK.double()).reshape(w_OK.shape)


@torch.no_grad()
def best_ratios(
    graph: fx.GraphModule,
    layers: Sequence[Layer],
    curves: Mapping[str, Curve],
    *,
    ratio: float,
    inputs: tuple[Tensor, ...],
    task: str,
) -> list[float]:
    """Each layer's share of zeros; of all weights together it is `ratio`. inputs: a few examples."""
    before = _output(graph, inputs)
    losses, kept = [], []
    for layer in layers:
        found = curves[layer.name]
        moved = divergence(before, _with(graph, layer, found.probe_OK, inputs), task=task)
        losses.append([moved / max(found.probe_loss, _FAINTEST) * loss for loss in found.losses])
        kept.append(found.kept)
    sizes = [layer.size for layer in layers]
    chosen = allocate(losses, kept, int((1 - ratio) * sum(sizes)))
    # the budget may leave some over
    share = [options[option] / size for options, option, size in zip(kept, chosen.choice, sizes, strict=True)]
    return scaled(share, sizes, ratio)


def divergence(before: Tensor, after: Tensor, *, task: str) -> float:
    """How far outputs moved: the Kullback-Leibler divergence in nats for tasks of classes, else the squared error as a
    fraction of the squared outputs.
    """
    if task.endswith(_CATEGORIES):
        return float((before.softmax(-1) * (before.log_softmax(-1) - after.log_softmax(-1))).sum(-1).mean())
    return float(functional.mse_loss(after, before) / before.square().mean().clamp_min(_FAINTEST))


def _with(graph: fx.GraphModule, layer: Layer, w_OK: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """The output with this layer's weight, for the time of one run."""
    weight = tensor_of(graph, layer.name)
    kept = weight.detach().clone()
    weight.data.copy_(layer.weight(w_OK, weight))
    try:
        return _output(graph, inputs)
    finally:
        weight.data.copy_(kept)


def _output(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Tensor:
    result = graph(*inputs)
    return (result if isinstance(result, Tensor) else result[0]).double()
