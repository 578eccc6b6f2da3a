"""How much noise each site's output carries in the compressed network, all layers before it included."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.core.graph import Site

_EXACT_DB = 120.0


@torch.no_grad()
def layer_sqnr_db(
    original: fx.GraphModule, compressed: fx.GraphModule, sites: Iterable[Site], *, inputs: tuple[Tensor, ...]
) -> dict[str, float]:
    """Signal to quantization noise of each site's output in decibels, 10 log10(sum y^2 / sum (y - y')^2), both graphs on
    `inputs`.

    Sites whose node is not in the compressed graph (a rewritten embedding) are left out. Holds every site's float output at
    once.
    """
    by_node = {site.node: site.name for site in sites}
    before, after = _Outputs(original, by_node), _Outputs(compressed, by_node)
    before.run(*inputs)
    after.run(*inputs)
    noisy = {by_node[node]: _sqnr_db(before.kept[node], value) for node, value in after.kept.items() if node in before.kept}
    return {site: ratio for site, ratio in noisy.items() if ratio < _EXACT_DB}


class _Outputs(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, wanted: Iterable[str]) -> None:
        super().__init__(module)
        self._wanted = set(wanted)
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted:
            value = result[0] if isinstance(result, tuple | list) else result
            self.kept[n.name] = value.detach().clone()
        return result


def _sqnr_db(signal: Tensor, other: Tensor) -> float:
    noise = (signal.double() - other.double()).square().sum()
    return float(10 * torch.log10(signal.double().square().sum().clamp_min(1e-30) / noise.clamp_min(1e-30)))
