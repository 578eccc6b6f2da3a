"""A file that holds one example, fed with batches: called once an example, its results joined."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def one_by_one(run: Run, inputs: Sequence[Tensor], first: Sequence[int | None]) -> Tensor | tuple[Tensor, ...]:
    """The results for a batch: a tensor for one output, else a tuple. first: of each input the size of dimension 0 in the
    file, None for a scalar; where it is 1 and more are given, the file is called once for each and results are joined along
    dimension 0.
    """
    many = [size == 1 and value.dim() > 0 and len(value) > 1 for size, value in zip(first, inputs, strict=True)]
    if not any(many):
        results = list(run(inputs))
    else:
        count = min(len(value) for value, is_many in zip(inputs, many, strict=True) if is_many)
        rows = [
            run([value[place : place + 1] if is_many else value for value, is_many in zip(inputs, many, strict=True)])
            for place in range(count)
        ]
        results = [torch.cat([row[place] for row in rows]) for place in range(len(rows[0]))]
    return results[0] if len(results) == 1 else tuple(results)
