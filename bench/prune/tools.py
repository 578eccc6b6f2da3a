"""The tools that are compared: each takes the trained network, the data and a share of the multiply-accumulates to keep."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from network import EXAMPLE, as_model, macs
from torch import nn

from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.methods.prune.prune import Prune

_SAMPLES = 1_024  # examples for what needs examples, the same number for every tool
_LEAST = 0.1  # fraction of every group that stays, the same for every tool
_BLOCK_SHARE = 0.65  # the one block that can go holds 39 % of the multiply-accumulates
_PROBES = 12  # of the peer's ratio: the share is met within about 1/100


@dataclass(frozen=True)
class Tool:
    """name: of the row. cut: what it does. tunes: False where the row ends before fine-tuning. is_peer: needs torch-pruning."""

    name: str
    cut: Callable[[Model, Data, float], Model]
    tunes: bool = True
    is_peer: bool = False


def _ours(model: Model, data: Data, share: float, **knobs: Any) -> Model:
    return Prune(macs=share, least=_LEAST, samples=_SAMPLES, **knobs).rewrite(model, data=data, run=Run())


def _blocks_first(model: Model, data: Data, share: float) -> Model:
    """The residual block that is missed least, then channels, in widths of 8, down to the share."""
    shorter = Prune(macs=_BLOCK_SHARE, unit="block", least=0, samples=_SAMPLES).rewrite(model, data=data, run=Run())
    return _ours(shorter, data, share * macs(model.module) / macs(shorter.module))


def _peer(model: Model, data: Data, share: float, *, importance: str, **knobs: Any) -> Model:
    """Its group importance and global ranking. The pruner takes a ratio of channels: the one that keeps the share is found by
    bisection, each probe on a fresh copy.
    """
    low, high = 0.0, 1 - _LEAST
    best: nn.Module | None = None
    for _ in range(_PROBES):
        ratio = (low + high) / 2
        module = _prune_once(copy.deepcopy(model.module), data, ratio, importance=importance, knobs=knobs)
        if macs(module) > share * macs(model.module):
            low = ratio
        else:
            high, best = ratio, module
    if best is None:
        raise SystemExit(f"Torch-Pruning does not reach {share} of the multiply-accumulates.")
    return as_model(best)


def _prune_once(module: nn.Module, data: Data, ratio: float, *, importance: str, knobs: dict[str, Any]) -> nn.Module:
    import torch_pruning as tp

    module.requires_grad_(True)
    judge = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}[importance]()
    settings = {"global_pruning": True, "max_pruning_ratio": 1 - _LEAST, "ignored_layers": [module.head], **knobs}
    pruner = tp.pruner.BasePruner(module, EXAMPLE[0], judge, pruning_ratio=ratio, **settings)
    if importance == "taylor":
        for inputs, targets in _labelled(data):
            torch.nn.functional.cross_entropy(module(inputs), targets).backward()
    pruner.step()
    module.zero_grad()
    return module.eval()


def _labelled(data: Data) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in data.calibration.batches(64, _SAMPLES):
        yield batch.inputs[0], batch.target


def _with(cut: Callable[..., Model], **knobs: Any) -> Callable[[Model, Data, float], Model]:
    return lambda model, data, share: cut(model, data, share, **knobs)


TOOLS = (
    Tool("lighten", _with(_ours, round_to=1)),
    Tool("lighten, widths of 8", _with(_ours)),
    Tool("lighten, a block first", _blocks_first),
    Tool("lighten, no repair", _with(_ours, round_to=1, repair=False), tunes=False),
    Tool("Torch-Pruning, magnitude", _with(_peer, importance="magnitude"), is_peer=True),
    Tool("Torch-Pruning, Taylor", _with(_peer, importance="taylor"), is_peer=True),
    Tool("Torch-Pruning, magnitude, widths of 8", _with(_peer, importance="magnitude", round_to=8), tunes=False, is_peer=True),
)
