"""Batches made in Python: (inputs, target), a mapping with the model's input names and "target", or inputs alone."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Batch, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model


@dataclass(frozen=True)
class Items:
    """Examples held in memory, each a tuple of inputs without the batch dimension. targets: one an example, or None."""

    items: tuple[tuple[Tensor, ...], ...]
    targets: tuple[Tensor, ...] | None

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """In order; a batch ends early where the next example has another shape."""
        end = len(self.items) if limit is None else min(limit, len(self.items))
        start = 0
        while start < end:
            stop = start + 1
            while stop < min(start + size, end) and _shapes(self.items[stop]) == _shapes(self.items[start]):
                stop += 1
            inputs = tuple(torch.stack(values) for values in zip(*self.items[start:stop], strict=True))
            target = None if self.targets is None else torch.stack(self.targets[start:stop])
            yield Batch(inputs, target, tuple(range(start, stop)))
            start = stop

    def describe(self, index: int) -> Example:
        """The example's number."""
        return Example(f"example {index}")


def load_iterable(batches: Iterable[Any], *, model: Model, source: str = "Python batches") -> Data:
    """Goes through `batches` once and keeps them. A pair of iterables is (train, test).

    Raises InputError when there is no batch, a shape does not fit the model, or only some batches have targets.
    """
    if isinstance(batches, tuple) and len(batches) == 2 and not isinstance(batches[0], Tensor | Mapping):
        train, test = _items(batches[0], model), _items(batches[1], model)
    else:
        train, test = None, _items(batches, model)
    is_classes = test.targets is None or not test.targets[0].is_floating_point()
    task = model.origin.task or ("classification" if is_classes else "regression")
    metric = "agreement" if test.targets is None else "accuracy" if is_classes else "mse"
    if task == "language-model":
        metric = "perplexity"
    return Data(source, task, metric, test, train, model.origin.labels, digest=_digest(test))


def _items(batches: Iterable[Any], model: Model) -> Items:
    items: list[tuple[Tensor, ...]] = []
    targets: list[Tensor] = []
    for number, batch in enumerate(batches):
        inputs, target = _parts(batch, model, number)
        items.extend(zip(*(value.unbind(0) for value in inputs), strict=True))
        targets.extend([] if target is None else target.unbind(0))
    if not items:
        raise InputError("The data has no batch.")
    if targets and len(targets) != len(items):
        raise InputError(f"{len(targets)} targets for {len(items)} examples.", hint="Give every batch a target, or none.")
    return Items(tuple(items), tuple(targets) if targets else None)


def _parts(batch: Any, model: Model, number: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
    if isinstance(batch, Mapping):
        missing = [name for name in model.input_names if name not in batch]
        if missing:
            raise InputError(f"Batch {number} has no {', '.join(missing)}.", hint=f"Needed: {', '.join(model.input_names)}.")
        inputs, target = tuple(batch[name] for name in model.input_names), batch.get("target", batch.get("labels"))
    else:
        values = (batch,) if isinstance(batch, Tensor) else tuple(batch)
        nested = values[0] if isinstance(values[0], tuple | list) else values[: len(model.example)]
        inputs, target = tuple(nested), values[-1] if len(values) > (1 if nested is values[0] else len(model.example)) else None
    _check_shapes(inputs, model, number)
    return inputs, target


def _check_shapes(inputs: tuple[Any, ...], model: Model, number: int) -> None:
    dynamic = model.origin.dynamic or tuple({} for _ in model.example)
    if len(inputs) != len(model.example) or not all(isinstance(value, Tensor) for value in inputs):
        raise InputError(f"Batch {number} has {len(inputs)} inputs, the model takes {len(model.example)} tensors.")
    for value, example, dims in zip(inputs, model.example, dynamic, strict=True):
        fixed = [dim for dim in range(1, example.dim()) if dim not in dims]
        if value.dim() != example.dim() or any(value.shape[dim] != example.shape[dim] for dim in fixed):
            raise InputError(f"Batch {number} has shape {tuple(value.shape)}, the model takes {tuple(example.shape)}.")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"Batch {number} holds NaN or infinity.")


def _digest(items: Items) -> str:
    digest = hashlib.sha256()
    for item in items.items:
        for value in item:
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _shapes(item: tuple[Tensor, ...]) -> list[torch.Size]:
    return [value.shape for value in item]
