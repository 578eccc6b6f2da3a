"""Images changed at random before both networks see them: the teacher answers what the student was shown.

A teacher that is consistent (the same crop, the same mixture) can be followed on far more images than there are (Beyer et al.
2022, arXiv:2106.05237, section 3.1).

Dimension key: B images, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.data import Batch
from lighten.engine.losses import Loss

CHANGES = ("shift", "flip", "mixup")
_SHIFT = 1 / 14  # of height and width, to each side: 2 pixels of 28


@dataclass(frozen=True)
class Mixed(Batch):
    """A batch whose images are `share` of their own and the rest of another's. other: the targets of these."""

    other: Tensor | None = None
    share: float = 1.0


def augmented(loss: Loss, changes: tuple[str, ...]) -> Loss:
    """The loss on changed images. Draws from torch's generator: the training seeds it for every epoch."""
    return lambda module, batch: loss(module, changed(batch, changes))


def mixing(loss: Loss) -> Loss:
    """A loss with labels on mixtures: each label counts as much as its image (Zhang et al. 2018, arXiv:1710.09412, eq. 1)."""

    def both(module: nn.Module, batch: Batch) -> Tensor:
        mixed = cast(Mixed, batch)
        own = loss(module, batch)
        if mixed.other is None or mixed.share == 1:
            return own
        return mixed.share * own + (1 - mixed.share) * loss(module, Batch(batch.inputs, mixed.other, batch.index))

    return both


@torch.no_grad()
def changed(batch: Batch, changes: tuple[str, ...]) -> Mixed:
    """shift: by up to a fourteenth of the sides, the edge repeated; flip: left to right, half of the images; mixup: with
    another image of the batch, at a share in [0.5, 1] that the batch has in common.
    """
    x_BCHW, other, share = batch.inputs[0], batch.target, 1.0
    if "shift" in changes:
        x_BCHW = _shifted(x_BCHW)
    if "flip" in changes:
        is_flipped_B = torch.rand(len(x_BCHW)) < 0.5
        x_BCHW = torch.where(is_flipped_B.to(x_BCHW.device)[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
    if "mixup" in changes:
        share, order_B = 1 - 0.5 * float(torch.rand(())), torch.randperm(len(x_BCHW), device=x_BCHW.device)
        x_BCHW = share * x_BCHW + (1 - share) * x_BCHW[order_B]
        other = None if batch.target is None else batch.target[order_B]
    return Mixed((x_BCHW, *batch.inputs[1:]), batch.target, batch.index, other, share)


def _shifted(x_BCHW: Tensor) -> Tensor:
    height, width = x_BCHW.shape[2:]
    most = max(1, round(_SHIFT * height)), max(1, round(_SHIFT * width))
    padded_BCHW = functional.pad(x_BCHW, (most[1], most[1], most[0], most[0]), mode="replicate")
    device = x_BCHW.device
    rows_BH, columns_BW = (
        torch.randint(2 * edge + 1, (len(x_BCHW), 1), device=device) + torch.arange(size, device=device)
        for edge, size in zip(most, (height, width), strict=True)
    )
    images_B11 = torch.arange(len(x_BCHW), device=device)[:, None, None]
    return padded_BCHW.movedim(1, -1)[images_B11, rows_BH[:, :, None], columns_BW[:, None, :]].movedim(-1, 1).contiguous()
