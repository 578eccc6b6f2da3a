"""Texts that the student itself goes on with: it learns what the teacher says to what it really writes.

A student that only ever reads good text does not know how to go on behind a mistake of its own (GKD, Agarwal et al. 2024,
arXiv:2306.13649; MiniLLM, Gu et al. 2024, arXiv:2306.08543). Some windows of each batch keep their beginning, and the student
writes the rest. Both networks then read what it wrote, and the loss compares their distributions token by token. No gradient
goes through the choice of tokens (GKD, section 3.1).

Dimension key: B windows, T tokens, S windows of real text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.recipe import refuse_unknown
from lighten.engine.losses import Loss, first_output
from lighten.engine.modes import set_training
from lighten.engine.sampling import continued


@dataclass(frozen=True)
class OnPolicy:
    """share: of the windows, in (0, 1], which the student continues. prompt: fraction of a window, in (0, 1), that stays.
    temperature: > 0, of what it draws.
    """

    share: float = 0.5
    prompt: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("share", 1.0), ("prompt", 1.0), ("temperature", float("inf"))):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= most or (value == most and name != "share"):
                allowed = {"share": "in (0, 1]", "prompt": "in (0, 1)", "temperature": "> 0"}[name]
                raise InputError(f"distill: on_policy's {name} must be {allowed}. Got {value!r}.")


def on_policy_of(asked: Any) -> OnPolicy | None:
    """The knob `on_policy`: None or 0, a share, or a mapping. Raises InputError for anything else."""
    if asked is None or (asked == 0 and not isinstance(asked, bool)):
        return None
    if not isinstance(asked, Mapping):
        return OnPolicy(share=asked)
    for name in asked:
        refuse_unknown("knob of distill's on_policy", str(name), [one.name for one in fields(OnPolicy)])
    return OnPolicy(**asked)


@dataclass(frozen=True)
class Written(Batch):
    """real_S: places of the windows that are as the data has them."""

    real_S: Tensor | None = None


def writing(loss: Loss, knobs: OnPolicy, *, freeze_norm: bool) -> Loss:
    """The loss on batches that the student has gone on with. Draws from torch's generator: the training seeds it for every
    epoch. The student writes in evaluation mode, without dropout.
    """

    def own(module: nn.Module, batch: Batch) -> Tensor:
        set_training(module, False)
        try:
            written = _written(module, batch, knobs)
        finally:
            set_training(module, True, freeze_norm=freeze_norm)
        return loss(module, written)

    return own


def reading(loss: Loss) -> Loss:
    """A loss with labels, the next tokens, on windows of real text alone: the student's own say nothing about what is right."""

    def own(module: nn.Module, batch: Batch) -> Tensor:
        real_S = batch.real_S if type(batch) is Written else None
        if real_S is None:
            return loss(module, batch)
        if not len(real_S):
            return 0.0 * first_output(module, batch).sum()
        inputs = tuple(value[real_S] for value in batch.inputs)
        return loss(_Rows(module, batch, real_S), Batch(inputs, None, tuple(batch.index[place] for place in real_S.tolist())))

    return own


class _Rows(nn.Module):
    """Some rows of what a network says to a whole batch, so that it runs once."""

    def __init__(self, module: nn.Module, batch: Batch, rows_S: Tensor) -> None:
        super().__init__()
        self.module, self.batch, self.rows_S = module, batch, rows_S

    def forward(self, *inputs: Tensor) -> Tensor:
        del inputs
        return first_output(self.module, self.batch)[self.rows_S]


def _written(module: nn.Module, batch: Batch, knobs: OnPolicy) -> Written:
    ids_BT, *rest = batch.inputs
    mask_BT = rest[0] if rest else torch.ones_like(ids_BT)
    num_rows, length = ids_BT.shape
    first = min(max(1, round(knobs.prompt * length)), length - 1)
    # on the average the share, in batches of one too
    is_own_B = torch.rand(num_rows) < knobs.share
    own = is_own_B.nonzero().flatten().to(ids_BT.device)
    if len(own):
        rows = own if len(own) > 1 else own.repeat(2)  # a traced graph may take no batch of one
        written = continued(module, ids_BT[rows], mask_BT[rows], first=first, temperature=knobs.temperature)
        ids_BT = ids_BT.index_copy(0, own, written[: len(own)])
    real_S = (~is_own_B).nonzero().flatten().to(ids_BT.device)
    return Written((ids_BT, *rest), batch.target, batch.index, real_S)
