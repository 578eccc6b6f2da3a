"""Which linear layers 8-bit activations would ruin, found before any plan is made.

In trained transformers a few feed-forward layers carry activations hundreds of times larger than the rest (Sun et al. 2024,
"Massive Activations", arXiv:2402.17762): one scale for the tensor leaves a handful of steps for everything else, and
smoothing cannot move the whole of it into the weights. The error of such a layer is several percent of its output, that of
every other one a fraction of a percent.

Dimension key: N sampled rows (tokens), O outputs, I inputs of a linear layer.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.core.data import Batch
from lighten.core.graph import Graph
from lighten.methods.quantize.smooth import linear_readers
from lighten.ops.grids import affine, nearest

_ROWS = 256
MOST_ERROR = 0.01
"""Relative error of a layer's output beyond which it is not computed in integers: 20 dB. On a sentence encoder the ruined
layers lie at 0.02 to 0.15, all others below 0.004."""


@torch.no_grad()
def layer_errors(graph: Graph, batches: Iterable[Batch], *, ranges: str, seed: int) -> dict[str, float]:
    """For each linear site, the mean over sampled rows of |int8 output - output|^2 / |output|^2. One float pass over `batches`.

    ranges: of weights, "minmax" or "mse". The activation grid covers all that the pass saw.
    """
    readers = linear_readers(graph)
    sampler = _Sampler(graph.module, set(readers), seed)
    for batch in batches:
        sampler.run(*batch.inputs)
    by_node = {site.node: site for site in graph.sites}
    errors: dict[str, float] = {}
    for tensor, names in readers.items():
        rows_NI = torch.cat(sampler.rows[tensor])[:_ROWS]
        rounded_NI = _rounded(rows_NI, *sampler.ends[tensor])
        for name in names:
            weight_OI = tensor_of(graph.module, by_node[name].weights[0]).detach()
            errors[by_node[name].name] = _error(rows_NI, rounded_NI, weight_OI, ranges)
    return errors


class _Sampler(fx.Interpreter):
    """Extremes and random rows of the wanted tensors."""

    def __init__(self, module: fx.GraphModule, wanted: set[str], seed: int) -> None:
        super().__init__(module)
        self._wanted, self._generator = wanted, torch.Generator().manual_seed(seed)
        self.rows: dict[str, list[Tensor]] = {}
        self.ends: dict[str, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted:
            rows_NI = result.reshape(-1, result.shape[-1])
            chosen_N = torch.randint(len(rows_NI), (min(_ROWS, len(rows_NI)),), generator=self._generator)
            self.rows.setdefault(n.name, []).append(rows_NI[chosen_N])
            low, high = (float(end) for end in torch.aminmax(result))
            before = self.ends.get(n.name, (low, high))
            self.ends[n.name] = (min(low, before[0]), max(high, before[1]))
        return result


def _rounded(rows_NI: Tensor, low: float, high: float) -> Tensor:
    grid = affine(low, high)
    return torch.fake_quantize_per_tensor_affine(rows_NI, grid.scale, grid.zero, grid.low, grid.high)


def _error(rows_NI: Tensor, rounded_NI: Tensor, weight_OI: Tensor, ranges: str) -> float:
    nearest_OI = nearest(weight_OI, bits=8, ranges=ranges)
    exact_NO = rows_NI @ weight_OI.t()
    noise_N = (rounded_NI @ nearest_OI.t() - exact_NO).square().sum(1)
    return float((noise_N / exact_NO.square().sum(1).clamp_min(1e-30)).mean())
