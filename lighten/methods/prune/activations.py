"""Scores from what flows into the layers that read a group's channels: one pass over calibration examples.

A layer is scored when the pass reaches it and its inputs are forgotten at once, so that memory holds one Gram matrix and the
activations of one batch, whatever the depth. Each score is a fraction of the energy of the layer's outputs, E||W x||^2, so
that layers compare. Convolutions are linear layers on patches, at random positions. A weight that is used again is scored where
it is used first; recurrent layers are not read.

Dimension key: C channels of a channel group, N sampled rows, R columns of a channel; G groups of a convolution, T outputs and J
inputs of each.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.rows import View, view_of
from lighten.core.channels import ChannelGroup, Slice
from lighten.core.data import Batch, Data
from lighten.ops import scores
from lighten.ops.reconstruct import channel_columns

_FAINTEST = 1e-30  # energy of outputs that are all zero
_VALUES = 500_000_000  # values of a widest activation of the one batch, at most: 2 GB
_WIDENING = 64  # an activation holds at most about as many times the input's values


def _energy(w_TJ: Tensor, gram_JJ: Tensor, columns_CR: Tensor) -> Tensor:
    """A channel's energy is that of its columns together."""
    return scores.activation_energy(gram_JJ.diagonal(), w_TJ.T)[columns_CR].sum(1)


FROM_ACTIVATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "activation_energy": _energy,
    "reconstruction": scores.reconstruction,
    "successive_reconstruction": scores.successive_reconstruction,
}


def one_batch(data: Data, samples: int) -> Batch:
    """Calibration examples in one batch, as many as memory allows."""
    first = next(iter(data.calibration.batches(1, 1)))
    each = max(sum(value.numel() for value in first.inputs), 1)
    size = max(1, min(samples, _VALUES // (_WIDENING * each), len(data.calibration)))
    return next(iter(data.calibration.batches(size, size)))


@torch.no_grad()
def score_consumers(
    module: fx.GraphModule, groups: Sequence[ChannelGroup], score: str, *, inputs: tuple[Tensor, ...], seed: int
) -> dict[str, list[Tensor]]:
    """By group, score_C of every layer that reads its channels; groups that no layer reads are missing."""
    readers: dict[str, list[tuple[ChannelGroup, Slice]]] = defaultdict(list)
    for group in groups:
        for part in group.slices:
            if part.role == "in":
                readers[part.tensor].append((group, part))
    consumers = _Consumers(module, FROM_ACTIVATIONS[score], readers, seed)
    consumers.run(*inputs)
    return dict(consumers.found)


class _Consumers(fx.Interpreter):
    """found: by group, the scores so far."""

    def __init__(
        self,
        module: fx.GraphModule,
        score: Callable[[Tensor, Tensor, Tensor], Tensor],
        readers: Mapping[str, list[tuple[ChannelGroup, Slice]]],
        seed: int,
    ) -> None:
        super().__init__(module)
        self._score, self._readers, self._seed = score, dict(readers), seed
        self.found: dict[str, list[Tensor]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        result, view = super().run_node(n), view_of(n)
        if view is not None and view.weight in self._readers:
            self._read(view, result, self._readers.pop(view.weight))
        return result

    def _read(self, view: View, result: Tensor, reads: list[tuple[ChannelGroup, Slice]]) -> None:
        given: dict[str, Any] = self.map_nodes_to_values(bound_arguments(view.node), view.node)  # type: ignore[assignment]
        weight = given["weight"]
        rows = view.sample(result.numel() // result.shape[view.dim], given, self._seed)
        w_GTJ = view.layer(weight, None, has_bias=False).w_GTJ
        gram_GJJ = rows.x_GNJ.mT @ rows.x_GNJ / rows.x_GNJ.shape[1]
        energy = float(((w_GTJ @ gram_GJJ) * w_GTJ).sum())
        for group, part in reads:
            if part.dim == 1 or view.groups == 1:
                columns_CR = channel_columns(part.positions(group.size), prod(weight.shape[2:]))
                each = [self._score(w_TJ, gram_JJ, columns_CR) for w_TJ, gram_JJ in zip(w_GTJ, gram_GJJ, strict=True)]
                self.found[group.name].append(torch.stack(each).sum(0) / max(energy, _FAINTEST))
