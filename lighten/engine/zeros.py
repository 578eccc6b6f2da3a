"""Zeros that stay zero: what makes a sparse network survive every step that comes after.

The zeros of a tensor are its mask. Nothing has to be carried along, saved or exported with them, and they cannot disagree with
the weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighten.core.errors import UnfitError
from lighten.ops.masks import holds, pattern_of


@dataclass(frozen=True)
class Zeros:
    """Of one tensor. shape: its sizes. zeros: how many entries are zero. where: the mask of these, on the CPU."""

    shape: tuple[int, ...]
    zeros: int
    where: Tensor

    @property
    def stays(self) -> int:
        """How many entries are not zero."""
        return self.where.numel() - self.zeros


def keep_zeros(module: nn.Module, names: Iterable[str]) -> Callable[[int, float], None]:
    """For `engine.train.Extras.after_step`: sets the entries of the named parameters to zero that are zero now. An optimizer
    with momentum moves them otherwise, even where their gradient is zero. What is no parameter does not train.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    known = [(parameters[name], parameters[name].detach() == 0) for name in names if name in parameters]

    @torch.no_grad()
    def apply(step: int, progress: float) -> None:
        del step, progress
        for parameter, is_zero in known:
            # not a product with the mask: that leaves negative zeros, which cost bits in an archive
            parameter.masked_fill_(is_zero, 0.0)

    return apply


def zeros_of(module: nn.Module, names: Iterable[str]) -> dict[str, Zeros]:
    """By name, for those that the module still has: a step may take a whole layer away."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    found = {}
    for name in names:
        if name in tensors:
            where = (tensors[name].detach() == 0).cpu()
            found[name] = Zeros(tuple(where.shape), int(where.sum()), where)
    return found


def check_zeros(before: Mapping[str, Zeros], after: Mapping[str, Zeros], *, step: str) -> None:
    """Raises UnfitError naming the first tensor in which an entry that was zero before `step` is not zero after it.

    A tensor that has become smaller holds slices of what it was: it may have no more entries that are not zero than before. One
    that is gone has none.
    """
    for name, now in after.items():
        was = before[name]
        filled = int((was.where & ~now.where).sum()) if now.shape == was.shape else max(now.stays - was.stays, 0)
        if filled:
            raise UnfitError(
                f"{step} filled {filled} zeros of {name}, which had {was.zeros}.",
                hint="Please report this: a step must keep the zeros that a step before it made.",
            )


def check_pattern(zeros: Mapping[str, Zeros], patterns: Mapping[str, str], *, step: str) -> None:
    """Raises UnfitError naming the first tensor whose zeros are not in its pattern: cutting channels breaks groups apart."""
    for name, found in zeros.items():
        if not _is_patterned(~found.where, patterns[name]):
            raise UnfitError(
                f"{step} broke the pattern {patterns[name]} of {name}.", hint="Put sparsify behind the steps that cut."
            )


def _is_patterned(mask: Tensor, text: str) -> bool:
    """Transposed convolutions hold their inputs first."""
    if text == "unstructured":
        return True
    pattern = pattern_of(text)
    for mask_OIQ in (mask.flatten(2), mask.flatten(2).transpose(0, 1)) if mask.dim() > 2 else (mask[..., None],):
        num_outputs, num_inputs = mask_OIQ.shape[:2]
        if pattern.misfit(num_outputs, num_inputs) is None and holds(mask_OIQ.mT.flatten(1), pattern):
            return True
    return False
