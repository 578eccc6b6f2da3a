"""How far one runner's outputs lie from another's on the same inputs.

Dimension key: B examples of a batch, C classes.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Batch, Runner, Split
from lighten.core.errors import ParityError
from lighten.evaluate.collect import example_name, outputs
from lighten.evaluate.predictions import Pass


@dataclass(frozen=True)
class Parity:
    """max_abs, mean_abs: absolute differences over all outputs, in the output's unit. sqnr_db: signal to quantization
    noise, 10 log10(sum of squared reference / sum of squared difference), infinite where nothing differs. argmax_agreement:
    fraction of rows of the first output whose largest entry is the same, None where rows have fewer than two entries.
    """

    max_abs: float
    mean_abs: float
    sqnr_db: float
    num_examples: int
    argmax_agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite sqnr_db becomes None."""
        return {**asdict(self), "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None}


def parity(reference: Runner, other: Runner, split: Split, *, how: Pass, what: str = "comparing outputs") -> Parity:
    """Runs both over the split, batch by batch, and compares every output.

    Raises ParityError when the outputs differ in number or shape, or are not finite (naming the example).
    """
    sums = _Sums()
    for batch in how.batches(split, what):
        expected, given = outputs(reference, batch), outputs(other, batch)
        _require_alike(expected, given)
        for tensor in (*expected, *given):
            _require_finite(tensor, batch, split)
        for one, another in zip(expected, given, strict=True):
            sums.add(one.double(), another.double())
        sums.add_rows(expected[0], given[0])
        sums.num_examples += len(batch.index)
    return sums.parity()


class _Sums:
    """Running totals."""

    def __init__(self) -> None:
        self.max_abs, self.sum_abs, self.num_values = 0.0, 0.0, 0
        self.signal, self.noise = 0.0, 0.0
        self.num_rows, self.num_same, self.num_examples = 0, 0, 0

    def add(self, expected: Tensor, given: Tensor) -> None:
        if not expected.numel():
            return
        distance = (expected - given).abs()
        self.max_abs = max(self.max_abs, float(distance.max()))
        self.sum_abs += float(distance.sum())
        self.num_values += distance.numel()
        self.signal += float(expected.square().sum())
        self.noise += float(distance.square().sum())

    def add_rows(self, expected: Tensor, given: Tensor) -> None:
        if expected.ndim >= 2 and expected.shape[-1] >= 2:
            same = expected.argmax(-1) == given.argmax(-1)
            self.num_rows += same.numel()
            self.num_same += int(same.sum())

    def parity(self) -> Parity:
        return Parity(
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / max(self.num_values, 1),
            sqnr_db=_decibels(self.signal, self.noise),
            num_examples=self.num_examples,
            argmax_agreement=self.num_same / self.num_rows if self.num_rows else None,
        )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _require_alike(expected: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> None:
    shapes, other_shapes = ([tuple(tensor.shape) for tensor in tensors] for tensors in (expected, given))
    if shapes != other_shapes:
        raise ParityError(f"The outputs differ in number or shape: {shapes} expected, {other_shapes} given.")


def _require_finite(tensor: Tensor, batch: Batch, split: Split) -> None:
    if torch.isfinite(tensor).all():
        return
    bad_rows = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor).reshape(-1)
    row = int(bad_rows.nonzero()[0]) % len(batch.index)  # sentence pairs give two rows an example
    raise ParityError(f"An output is not finite (NaN or infinity) for {example_name(split, batch.index[row])}.")
