"""What a network would cost with fewer channels, without building it.

A layer's multiply-accumulates and a tensor's size are proportional to the share of its weight that stays; the share is the
product over the weight's dimensions.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import fx

from lighten.analyze.cost import costs
from lighten.analyze.trace import find_sites, tensor_of
from lighten.core.channels import ChannelGroup

Shares = Mapping[str, Mapping[int, Sequence[tuple[str, float]]]]


@dataclass(frozen=True)
class Amount:
    """The cost of the uncut network, and of any number of kept channels.

    fixed: what no cut changes. parts: cost of what a weight stands for, by tensor name. shares: by tensor and dimension, each
    group with the share of the dimension that one of its channels holds. sizes: channels by group.
    """

    fixed: float
    parts: Mapping[str, float]
    shares: Shares
    sizes: Mapping[str, int]

    @property
    def total(self) -> float:
        """With every channel."""
        return self.fixed + sum(self.parts.values())

    def __call__(self, counts: Mapping[str, int]) -> float:
        """With `counts` channels of each group; groups that are not named stay whole."""
        return self.fixed + sum(cost * self._share(tensor, counts) for tensor, cost in self.parts.items())

    def _share(self, tensor: str, counts: Mapping[str, int]) -> float:
        return prod(
            1 - sum((self.sizes[name] - counts.get(name, self.sizes[name])) * each for name, each in groups)
            for groups in self.shares.get(tensor, {}).values()
        )


def amount(module: fx.GraphModule, example: tuple[object, ...], groups: Sequence[ChannelGroup], *, measure: str) -> Amount:
    """measure: "macs" of one example (products of two activations, as in attention, count as fixed) or "params"."""
    shares = _shares(module, groups)
    sizes = {group.name: group.size for group in groups}
    parts = _PARTS[measure](module, example)
    fixed = sum(cost for tensor, cost in parts.items() if tensor not in shares)
    return Amount(fixed, {tensor: cost for tensor, cost in parts.items() if tensor in shares}, shares, sizes)


def _shares(module: fx.GraphModule, groups: Sequence[ChannelGroup]) -> Shares:
    shares: dict[str, dict[int, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for part in group.slices:
            size = tensor_of(module, part.tensor).shape[part.dim]
            shares[part.tensor][part.dim].append((group.name, part.outer * part.repeat / size))
    return shares


def _macs(module: fx.GraphModule, example: tuple[object, ...]) -> dict[str, float]:
    weight_of = {site.name: site.weights[0] for site in find_sites(module) if site.weights}
    parts: dict[str, float] = defaultdict(float)
    for layer in costs(module, example):  # type: ignore[arg-type]
        parts[weight_of.get(layer.site, "")] += layer.macs
    return parts


def _params(module: fx.GraphModule, example: tuple[object, ...]) -> dict[str, float]:
    return {name: float(value.numel()) for name, value in module.named_parameters()}


_PARTS: dict[str, Callable[[fx.GraphModule, tuple[object, ...]], dict[str, float]]] = {"macs": _macs, "params": _params}
