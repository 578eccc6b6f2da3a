"""Batches made in Python: (inputs, target), a mapping with the model's input names and "target", or inputs alone."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.labels import squeezed
from lighten.data.rows import MOST_BAD, Rows
from lighten.data.speech import HINT

Inputs = tuple[Tensor, ...]
Numbered = tuple[int, Inputs]


def load_iterable(batches: Iterable[Any], *, model: Model, source: str = "Python batches") -> Data:
    """Goes through `batches` once and keeps their examples. A tuple of two iterables is (train, test); one iterable is all
    test, whoever made it having decided what to score on.

    An example with NaN or infinity is left out and counted. Raises InputError when there is no batch, half or more of the
    examples are so, a shape does not fit the model, or only some batches have targets.
    """
    bad: list[BadRow] = []
    if _is_pair(batches):
        train, test = (_rows(part, model, bad=bad, what=what) for part, what in zip(batches, ("training ", ""), strict=True))
    else:
        train, test = None, _rows(batches, model, bad=bad)
    digest = _digest(test) if train is None else _digest(train, test)
    task, metric = task_and_metric(test.targets, model)
    return Data(source, task, metric, test, train, model.origin.labels, tuple(bad), digest)


def _is_pair(batches: Iterable[Any]) -> bool:
    """True for (train, test). A tuple of tensors is a batch, so a tuple whose parts are batches is no pair of splits."""
    if not isinstance(batches, tuple) or len(batches) != 2:
        return False
    return not any(
        isinstance(part, Tensor | Mapping) or (isinstance(part, tuple) and bool(part) and isinstance(part[0], Tensor))
        for part in batches
    )


def task_and_metric(targets: Tensor | None, model: Model) -> tuple[str, str]:
    """(task, metric) from what the model is and the targets are. Raises InputError where they do not suit each other."""
    task = model.origin.task
    is_real = targets is not None and targets.is_floating_point()
    if task == "speech-recognition":
        raise InputError("Batches from Python do not say how a recognizer's tokens become words.", hint=HINT)
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


def _rows(batches: Iterable[Any], model: Model, *, bad: list[BadRow], what: str = "") -> Rows:
    """The examples of all batches that are finite; the others go to `bad`."""
    if not isinstance(batches, Iterable):
        raise InputError(f"The data is a {type(batches).__name__}, which is no iterable of batches.")
    items: list[Numbered] = []
    targets: list[Tensor] = []
    num_seen = 0
    for number, batch in enumerate(batches):
        inputs, target = _parts(batch, model, number)
        finite_B = _finite_B(inputs if target is None else (*inputs, target))
        kept = torch.where(finite_B)[0].tolist()
        items.extend((num_seen + row, tuple(value[row] for value in inputs)) for row in kept)
        targets.extend([] if target is None else [target[row] for row in kept])
        bad.extend(BadRow(f"{what}batch {number}, row {row}", "NaN or infinity") for row in torch.where(~finite_B)[0].tolist())
        num_seen += len(finite_B)
    _check_count(len(items), num_seen)
    return Rows(items, _stack, _stacked_targets(targets, len(items)), _show, _shapes)


def _check_count(num_kept: int, num_seen: int) -> None:
    if not num_seen:
        raise InputError("The data has no batch.")
    if num_seen - num_kept >= MOST_BAD * num_seen:
        raise InputError(f"{num_seen - num_kept} of {num_seen} examples hold NaN or infinity.")


def _stacked_targets(targets: list[Tensor], num_examples: int) -> Tensor | None:
    if not targets:
        return None
    if len(targets) != num_examples:
        raise InputError(f"{len(targets)} targets for {num_examples} examples.", hint="Give every batch a target, or none.")
    if len({value.shape for value in targets}) > 1:
        raise InputError("The targets differ in shape.")
    return squeezed(torch.stack(targets))


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
        for value, example in zip((value.detach().cpu() for value in inputs), model.example, strict=True)
    )
    return cast, None if target is None else target.detach().cpu()


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


def _check_shapes(inputs: tuple[Any, ...], model: Model, number: int) -> None:
    dynamic = model.origin.dynamic or tuple({} for _ in model.example)
    if len(inputs) != len(model.example) or not all(isinstance(value, Tensor) for value in inputs):
        raise InputError(f"Batch {number} has {len(inputs)} inputs, the model takes {len(model.example)} tensors.")
    for value, example, dims in zip(inputs, model.example, dynamic, strict=True):
        fixed = [dim for dim in range(1, example.dim()) if dim not in dims]
        if value.dim() != example.dim() or any(value.shape[dim] != example.shape[dim] for dim in fixed):
            raise InputError(f"Batch {number} has shape {tuple(value.shape)}, the model takes {tuple(example.shape)}.")
    if len({value.shape[0] for value in inputs}) > 1:
        raise InputError(f"The inputs of batch {number} have {', '.join(str(len(value)) for value in inputs)} rows.")


def _finite_B(values: tuple[Tensor, ...]) -> Tensor:
    """True for the examples without NaN and infinity."""
    return torch.stack([_finite_rows(value) for value in values]).all(0)


def _finite_rows(value: Tensor) -> Tensor:
    return torch.isfinite(value).flatten(1).all(1) if value.dim() > 1 else torch.isfinite(value)


def _stack(rows: list[Numbered]) -> Inputs:
    return tuple(torch.stack(values) for values in zip(*(inputs for _, inputs in rows), strict=True))


def _show(row: Numbered, index: int) -> Example:
    """Named by its place among all that were given, also where others were left out."""
    return Example(f"example {row[0]}")


def _shapes(row: Numbered) -> list[torch.Size]:
    return [value.shape for value in row[1]]


def _digest(*splits: Rows) -> str:
    digest = hashlib.sha256()
    for split in splits:
        targets = () if split.targets is None else (split.targets,)
        for value in (*(value for _, inputs in split.rows for value in inputs), *targets):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
