"""Which weights stay: patterns of zeros, and masks that choose the weights of the largest scores under a pattern.

A layer's weight is seen as rows: outputs by inputs, the inputs of a convolution kernel position by kernel position, so that
neighbouring columns are neighbouring input channels. Scores are at least 0, larger for weights that matter more; a mask is True
where a weight stays.

Dimension key: O outputs (rows), K input columns, I input channels (K = kernel positions * I); B rows and C columns of blocks.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = 1e-9  # (1 - 0.9) * 1000 is 99.99999999999997
_FORMS = re.compile(r"(?P<kept>[1-9]\d*):(?P<among>[1-9]\d*)|(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)")


@dataclass(frozen=True)
class Pattern:
    """Blocks of rows x columns weights that are zero together; where `among` is not 0, at most `kept` of `among` neighbouring
    columns of a row are not zero.
    """

    rows: int = 1
    columns: int = 1
    kept: int = 0
    among: int = 0

    @property
    def ratio(self) -> float | None:
        """The share of zeros where the pattern decides it."""
        return 1 - self.kept / self.among if self.among else None

    @property
    def size(self) -> int:
        """Weights of a block."""
        return self.rows * self.columns

    def misfit(self, num_outputs: int, num_inputs: int) -> str | None:
        """What does not divide, in words; None where the pattern fits. num_inputs: I."""
        if num_inputs % (self.among or self.columns):
            return f"{num_inputs} inputs do not split into groups of {self.among or self.columns}"
        if num_outputs % self.rows:
            return f"{num_outputs} outputs do not split into groups of {self.rows}"
        return None


def pattern_of(text: str) -> Pattern:
    """ "unstructured", "N:M" such as "2:4" (N of M neighbouring inputs stay), "RxC" such as "4x1" (blocks of R outputs and C
    inputs). Raises ValueError for anything else.
    """
    if text == "unstructured":
        return Pattern()
    found = _FORMS.fullmatch(text)
    if found is None:
        raise ValueError(f"pattern must be unstructured, N:M such as 2:4, or RxC such as 4x1. Got {text!r}.")
    number = {name: int(value) for name, value in found.groupdict().items() if value}
    if "among" in number and number["kept"] >= number["among"]:
        raise ValueError(f"pattern N:M keeps N of M weights, and N is smaller than M. Got {text!r}.")
    return Pattern(**number)


def num_kept(total: int, ratio: float) -> int:
    """How many of `total` stay where a share of `ratio` in [0, 1) or more must go; at least one."""
    return max(math.floor((1 - ratio) * total + _SLACK), 1)


def block_sums(value_OK: Tensor, pattern: Pattern) -> Tensor:
    """The sum over each block, shape B x C."""
    num_rows, num_columns = value_OK.shape
    parts = value_OK.reshape(num_rows // pattern.rows, pattern.rows, num_columns // pattern.columns, pattern.columns)
    return parts.sum((1, 3))


def spread(value_BC: Tensor, pattern: Pattern) -> Tensor:
    """Each block's value at every weight of it, shape O x K."""
    return value_BC.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)


def largest(score: Tensor, count: int) -> Tensor:
    """True at the `count` largest entries, of any shape; of equal ones the first."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.reshape(score.shape)


def n_of_m(score_OK: Tensor, pattern: Pattern) -> Tensor:
    """True at the `kept` largest of every `among` neighbours; of equal ones the first (Mishra et al., arXiv:2104.08378)."""
    groups = score_OK.reshape(-1, pattern.among)
    order = groups.argsort(dim=1, descending=True, stable=True)[:, : pattern.kept]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).reshape(score_OK.shape)


def mask(score_OK: Tensor, pattern: Pattern, ratio: float, *, by_row: bool = False) -> Tensor:
    """mask_OK of the largest scores. ratio: share of zeros, in [0, 1); N:M has its own, and a smaller one is a part of the way
    there, the smallest of those that go first. by_row: the same share of each row (of
    blocks), as Wanda compares them; elsewhere the scores of all rows are compared.
    """
    if pattern.ratio is not None:
        stays_OK = n_of_m(score_OK, pattern)
        count = max(num_kept(score_OK.numel(), ratio), int(stays_OK.sum()))
        return largest(score_OK.double().masked_fill(stays_OK, torch.inf), count)
    score_BC = block_sums(score_OK, pattern)
    if not by_row:
        return spread(largest(score_BC, num_kept(score_BC.numel(), ratio)), pattern)
    order_BC = score_BC.argsort(dim=1, descending=True, stable=True)[:, : num_kept(score_BC.shape[1], ratio)]
    return spread(torch.zeros_like(score_BC, dtype=torch.bool).scatter_(1, order_BC, True), pattern)


def masks_together(scores: Sequence[Tensor], pattern: Pattern, ratio: float) -> list[Tensor]:
    """A mask for each layer, scores compared between all of them: the share of zeros is that of all weights together.

    Each layer keeps its best block: one that is all zero would cut the network off (Tanaka et al. 2020, arXiv:2006.05467).
    """
    if pattern.among:
        return [n_of_m(score_OK, pattern) for score_OK in scores]
    blocks = [block_sums(score_OK.double(), pattern) for score_OK in scores]
    for score_BC in blocks:
        score_BC.view(-1)[score_BC.argmax()] = torch.inf
    every = torch.cat([score_BC.flatten() for score_BC in blocks])
    kept = largest(every, max(num_kept(len(every), ratio), len(blocks)))
    parts = torch.split(kept, [score_BC.numel() for score_BC in blocks])
    return [spread(part.reshape(score_BC.shape), pattern) for part, score_BC in zip(parts, blocks, strict=True)]


def holds(mask_OK: Tensor, pattern: Pattern) -> bool:
    """Whether the weights that stay are as the pattern says."""
    if pattern.among:
        return bool((mask_OK.reshape(-1, pattern.among).sum(1) <= pattern.kept).all())
    count_BC = block_sums(mask_OK.int(), pattern)
    return bool(((count_BC == 0) | (count_BC == pattern.size)).all())


def regrown(mask_OK: Tensor, keep_OK: Tensor, grow_OK: Tensor, *, pattern: Pattern, share: float) -> Tensor:
    """A mask of as many weights: a `share` in [0, 1] of them, those of the smallest `keep_OK`, make room for those of the
    largest `grow_OK` among all that are then out, the dropped ones too.

    Random growth is SET (Mocanu et al. 2018, arXiv:1707.04780), growth by the size of the gradient RigL (Evci et al. 2020,
    arXiv:1911.11134, algorithm 1). Not for N:M.
    """
    mask_BC = block_sums(mask_OK.int(), pattern) > 0
    count = int(mask_BC.sum())
    moved = min(int(share * count), mask_BC.numel() - count)
    stays_BC = largest(block_sums(keep_OK.double(), pattern).masked_fill(~mask_BC, -torch.inf), count - moved)
    # what stays has the place it has; one of the dropped may come back
    grows_BC = largest(block_sums(grow_OK.double(), pattern).masked_fill(stays_BC, -torch.inf), moved)
    return spread(stays_BC | grows_BC, pattern)
