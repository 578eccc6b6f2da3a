"""Files that hold one example: what they are traced with, and the example that they have to hold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Data
from lighten.core.model import Model

_ROWS = 2  # as core.model.Model wants it


def single(model: Model) -> tuple[tuple[Tensor, ...], tuple[Mapping[int, Any], ...] | None]:
    """One example of the model's inputs, and, for `torch.export`, its other dimensions that may vary, from 1 to the example's
    size.
    """
    dynamic = model.origin.dynamic or ({},) * len(model.example)
    pairs = list(zip(model.example, dynamic, strict=True))
    example = tuple(value[:1].clone() if 0 in dims else value.clone() for value, dims in pairs)
    shapes = tuple(
        {dim: torch.export.Dim.AUTO(min=1, max=value.shape[dim]) for dim in dims if dim > 0 and value.shape[dim] > 1}
        for value, dims in pairs
    )
    return example, shapes if any(shapes) else None


def with_longest(model: Model, data: Data) -> Model:
    """The model with the longest input that a file will meet as its example: of the test examples, and of those for calibration
    where a probe is fitted on them. The same model where all inputs are of one size.
    """
    if not any(dim > 0 for dims in model.origin.dynamic for dim in dims):
        return model
    splits = [data.test, data.calibration] if data.metric == "probe" else [data.test]
    found = [batch.inputs for split in splits for batch in split.batches(_ROWS)]
    longest = max(found, key=lambda inputs: sum(value[0].numel() for value in inputs))
    return replace(
        model, example=tuple(value.expand(_ROWS, *value.shape[1:]) if len(value) == 1 else value[:_ROWS] for value in longest)
    )
