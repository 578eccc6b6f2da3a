"""Which layers several ranks share, and which each of them has alone, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx


@dataclass(frozen=True)
class TensorPlan:
    """How the layers of a network are shared among `size` ranks (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053).

    columns: paths of layers of which each rank makes a share of the output channels. rows: of those that consume such channels;
    their results are added up over the ranks. along: of what acts on each such channel alone, between them. integers:
    attributes of modules that count channels or heads, by (path, name), at what they are for one rank's share.
    refused: groups of channels that stay whole, by name, with the reason in words.
    """

    size: int
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    along: tuple[str, ...] = ()
    integers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One part of a network's depth, run by one rank of the pipeline axis.

    module: takes what the stage before gives, then the network's inputs in `inputs` by name; gives a tensor or a tuple. Its
    tensors have the names that they have in the whole network. macs: multiply-accumulates of one example.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    macs: int
