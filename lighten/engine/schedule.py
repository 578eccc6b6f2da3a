"""The knobs of a training, its learning rate over time, and the optimizer they ask for.

Linear warm-up (Goyal et al. 2017, arXiv:1706.02677, section 2.2), then half a cosine (Loshchilov and Hutter 2017,
arXiv:1608.03983, eq. 5, one period). Weight decay is kept from biases and norms (He et al. 2019, arXiv:1812.01187,
section 3.1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lighten.core.errors import InputError, UnfitError
from lighten.core.recipe import refuse_unknown

OPTIMIZERS = {"sgd": 0.01, "adamw": 1e-4}
"""Name -> the learning rate when none is given: low enough to fine-tune a trained network without undoing it."""
PRECISIONS = ("float32", "bf16")
KEEPS = ("best", "last")

_Check = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Check = ("> 0", lambda value: value > 0)
_FRACTION: _Check = ("in [0, 1]", lambda value: 0 <= value <= 1)
_COUNT: _Check = ("an integer >= 1", lambda value: isinstance(value, int) and value >= 1)
_RANGES: dict[str, _Check] = {
    "epochs": _POSITIVE,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "lr": _POSITIVE,
    "weight_decay": (">= 0", lambda value: value >= 0),
    "warmup": ("in [0, 1)", lambda value: 0 <= value < 1),
    "final_lr": _FRACTION,
    "clip_norm": _POSITIVE,
    "patience": _COUNT,
    "ema": ("in (0, 1)", lambda value: 0 < value < 1),
}
_MAY_BE_NONE = ("lr", "clip_norm", "patience", "ema")


@dataclass(frozen=True)
class Training:
    """How long, how fast and how carefully to train.

    epochs: passes over the split; a fraction ends inside one. batch_size: examples in memory at once. accumulate: batches a
    step; without batch norms, as one batch so many times as large. optimizer: "sgd" (momentum 0.9,
    Nesterov) or "adamw". lr: at the peak; None takes OPTIMIZERS. weight_decay: on tensors of two dimensions and more. warmup:
    fraction of all steps. final_lr: fraction of lr at the end. clip_norm: largest norm of the whole gradient. precision:
    "float32", or "bf16" for autocast. freeze_norm: batch norms use and keep the statistics they have. patience: epochs without
    a better validation before training stops, None for never. ema: decay of a running average of the weights, which is then
    what is validated and kept. keep: "best" gives the weights of the best validation, those before training among them;
    "last" is for training that changes what a valid result is (growing masks, a penalty).
    Raises InputError on a value out of range.
    """

    epochs: float = 10
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.05
    final_lr: float = 0.0
    clip_norm: float | None = None
    precision: str = "float32"
    freeze_norm: bool = False
    patience: int | None = None
    ema: float | None = None
    keep: str = "best"

    def __post_init__(self) -> None:
        refuse_unknown("optimizer", self.optimizer, OPTIMIZERS)
        refuse_unknown("precision", self.precision, PRECISIONS)
        refuse_unknown("keep", self.keep, KEEPS)
        for name, (allowed, is_allowed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not is_allowed(value):
                raise InputError(f"{name} must be {allowed}. Got {value!r}.")

    @property
    def peak_lr(self) -> float:
        """`lr`, or the optimizer's default."""
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr

    def lr_at(self, progress: float) -> float:
        """The learning rate when `progress` in [0, 1] of all steps is done: 0 at 0, the peak at `warmup`, `final_lr` of the
        peak at 1.
        """
        if progress < self.warmup:
            return self.peak_lr * progress / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return self.peak_lr * (self.final_lr + (1 - self.final_lr) * cosine)


def optimizer_for(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """An optimizer of every parameter that takes gradients. Raises UnfitError when there is none."""
    parameters = [value for value in module.parameters() if value.requires_grad]
    if not parameters:
        raise UnfitError(
            "The network has no parameters to train.", hint="A graph that was saved or simplified holds its weights as buffers."
        )
    groups = [
        {"params": [value for value in parameters if value.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [value for value in parameters if value.dim() < 2], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.peak_lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.peak_lr)
