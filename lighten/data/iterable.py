"""Batches made in Python: (inputs, target), a mapping with the model's input names and "target", or inputs alone."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.labels import squeezed
from lighten.data.rows import Rows

Inputs = tuple[Tensor, ...]


def load_iterable(batches: Iterable[Any], *, model: Model, source: str = "Python batches") -> Data:
    """Goes through `batches` once and keeps their examples. A tuple of two iterables is (train, test); one iterable is all
    test, whoever made it having decided what to score on.

    Raises InputError when there is no batch, a shape does not fit the model, or only some batches have targets.
    """
    parts = [_rows(part, model) for part in (batches if _is_pair(batches) else [batches])]
    train, test = parts if len(parts) == 2 else (None, parts[0])
    digest = _digest(*parts)
    task, metric = _task(test, model)
    return Data(source, task, metric, test, train, model.origin.labels, digest=digest)


def _is_pair(batches: Iterable[Any]) -> bool:
    """True for (train, test). A tuple of tensors is a batch, so a tuple whose parts are batches is no pair of splits."""
    if not isinstance(batches, tuple) or len(batches) != 2:
        return False
    return not any(
        isinstance(part, Tensor | Mapping) or (isinstance(part, tuple) and bool(part) and isinstance(part[0], Tensor))
        for part in batches
    )


def _task(test: Rows, model: Model) -> tuple[str, str]:
    """(task, metric) from what the model is and the targets are."""
    task, targets = model.origin.task, test.targets
    is_real = targets is not None and targets.is_floating_point()
    if task == "language-model":
        return task, "perplexity"
    if task == "sentence-similarity":
        if targets is None or is_real:
            raise InputError(
                "A sentence encoder's batches need class numbers as targets, for a probe.",
                hint="For rated pairs give a .csv with text_a, text_b and score.",
            )
        return "text-classification", "probe"
    if is_real:
        return "regression", "mse"
    return task or "classification", "agreement" if targets is None else "accuracy"


def _rows(batches: Iterable[Any], model: Model) -> Rows:
    if not isinstance(batches, Iterable):
        raise InputError(f"The data is a {type(batches).__name__}, which is no iterable of batches.")
    items: list[Inputs] = []
    targets: list[Tensor] = []
    for number, batch in enumerate(batches):
        inputs, target = _parts(batch, model, number)
        items.extend(zip(*(value.detach().cpu().unbind(0) for value in inputs), strict=True))
        targets.extend([] if target is None else target.detach().cpu().unbind(0))
    if not items:
        raise InputError("The data has no batch.")
    if targets and len(targets) != len(items):
        raise InputError(f"{len(targets)} targets for {len(items)} examples.", hint="Give every batch a target, or none.")
    if len({value.shape for value in targets}) > 1:
        raise InputError("The targets differ in shape.")
    return Rows(items, _stack, squeezed(torch.stack(targets)) if targets else None, _show, _shapes)


def _parts(batch: Any, model: Model, number: int) -> tuple[Inputs, Tensor | None]:
    if isinstance(batch, Mapping):
        missing = [name for name in model.input_names if name not in batch]
        if missing:
            raise InputError(f"Batch {number} has no {', '.join(missing)}.", hint=f"Needed: {', '.join(model.input_names)}.")
        inputs, target = tuple(batch[name] for name in model.input_names), batch.get("target", batch.get("labels"))
    else:
        inputs, target = _positional(batch, len(model.example), number)
    _check_shapes(inputs, model, number)
    _check_target(target, len(inputs[0]), number)
    # batches that were NumPy arrays are often float64, which a float32 network does not take
    cast = tuple(
        value.to(example.dtype) if value.is_floating_point() and example.is_floating_point() else value
        for value, example in zip(inputs, model.example, strict=True)
    )
    return cast, target


def _positional(batch: Any, num_inputs: int, number: int) -> tuple[Inputs, Any]:
    """An input alone, the inputs and perhaps a target in a row, or (inputs, target)."""
    values = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(values, tuple | list) or not values:
        raise InputError(f"Batch {number} is a {type(batch).__name__}.", hint="Give tensors, (inputs, target), or a mapping.")
    if isinstance(values[0], tuple | list):
        return tuple(values[0]), values[1] if len(values) > 1 else None
    if len(values) > num_inputs + 1:
        raise InputError(f"Batch {number} has {len(values)} parts; the model takes {num_inputs} inputs, and one is a target.")
    return tuple(values[:num_inputs]), values[num_inputs] if len(values) > num_inputs else None


def _check_target(target: Any, num_examples: int, number: int) -> None:
    if target is None:
        return
    if not isinstance(target, Tensor) or target.dim() == 0 or len(target) != num_examples:
        found = f"the shape {tuple(target.shape)}" if isinstance(target, Tensor) else f"type {type(target).__name__}"
        raise InputError(f"The target of batch {number} has {found}.", hint=f"It needs a tensor with {num_examples} rows.")
    if target.is_floating_point() and not bool(torch.isfinite(target).all()):
        raise InputError(f"The target of batch {number} holds NaN or infinity.")


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
    if len({value.shape[0] for value in inputs}) > 1:
        raise InputError(f"The inputs of batch {number} have {', '.join(str(len(value)) for value in inputs)} rows.")


def _stack(rows: list[Inputs]) -> Inputs:
    return tuple(torch.stack(values) for values in zip(*rows, strict=True))


def _show(row: Inputs, index: int) -> Example:
    return Example(f"example {index}")


def _shapes(row: Inputs) -> list[torch.Size]:
    return [value.shape for value in row]


def _digest(*splits: Rows) -> str:
    digest = hashlib.sha256()
    for split in splits:
        targets = () if split.targets is None else (split.targets,)
        for value in (*(value for row in split.rows for value in row), *targets):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
