"""Zeros that stay zero: what makes a sparse network survive every step that comes after.

The zeros of a tensor are its mask. Nothing has to be carried along, saved or exported with them, and they cannot disagree with
the weights.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from lighten.core.errors import UnfitError


def keep_zeros(module: nn.Module, names: Iterable[str]) -> Callable[[int, float], None]:
    """For `engine.train.Extras.after_step`: sets the entries of the named parameters to zero that are zero now. An optimizer
    with momentum moves them otherwise, even where their gradient is zero.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    masks = [(parameters[name], parameters[name].detach() != 0) for name in names]

    @torch.no_grad()
    def apply(step: int, progress: float) -> None:
        del step, progress
        for parameter, mask in masks:
            parameter.mul_(mask)

    return apply


def count_zeros(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, int]:
    """Number of zeros in each named tensor."""
    return {name: tensors[name].numel() - int(tensors[name].count_nonzero()) for name in names}


def check_zeros(before: Mapping[str, int], after: Mapping[str, int], *, step: str) -> None:
    """Raises UnfitError naming the first tensor that has fewer zeros than it had before `step`."""
    for name, count in before.items():
        if after.get(name, 0) < count:
            raise UnfitError(
                f"{step} filled zeros of {name}: it has {after.get(name, 0)}, and had {count}.",
                hint="Please report this: a step must keep the zeros that a step before it made.",
            )
