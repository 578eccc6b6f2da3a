"""NumPy archives: x and y, or x_train, y_train, x_test, y_test; for several inputs arrays under the model's input names.

Integer y are classes, real y are regression targets.
Dimension key: N rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.iterable import task_and_metric
from lighten.data.rows import MOST_BAD, Rows, divide
from lighten.engine.files import sha256_of

Row = tuple[int, tuple[Tensor, ...]]


def load_arrays(path: Path, *, model: Model, seed: int) -> Data:
    """One input is `x`, or named as the model names it; several are named as the model names them.

    Raises InputError when the archive is corrupt, an array is missing or an input does not fit the model's.
    """
    arrays = _read(path)
    names = _input_names(arrays, model)
    bad: list[BadRow] = []
    if _has(arrays, names, ""):
        train, test = divide(_rows(arrays, names, "", model=model, bad=bad, path=path), seed)
    elif _has(arrays, names, "_test"):
        _check_pairs(arrays, names, path)
        test = _rows(arrays, names, "_test", model=model, bad=bad, path=path)
        train = None
        if _has(arrays, names, "_train"):
            train = _rows(arrays, names, "_train", model=model, bad=bad, path=path)
        else:
            train, test = divide(test, seed)
    else:
        wanted, tests = (f"{', '.join(f'{name}{part}' for name in names)} and y{part}" for part in ("", "_test"))
        raise InputError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}.", hint=f"It needs {wanted}, or {tests}.")
    task, metric = task_and_metric(test.targets, model)
    return Data(str(path), task, metric, test, train, model.origin.labels, tuple(bad), sha256_of(path))


def _input_names(arrays: dict[str, Any], model: Model) -> tuple[str, ...]:
    """The arrays that are the inputs, without _train and _test. One input is called x unless its own name is there."""
    own = model.input_names
    return own if len(own) > 1 or any(_has(arrays, own, part) for part in ("", "_test")) else ("x",)


def _has(arrays: dict[str, Any], names: tuple[str, ...], part: str) -> bool:
    return all(f"{name}{part}" in arrays for name in names)


def _check_pairs(arrays: dict[str, Any], names: tuple[str, ...], path: Path) -> None:
    """Labels on one side only are a mistake."""
    if _has(arrays, names, "_train") and ("y_train" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path} holds {', '.join(sorted(arrays))}.", hint="Give both y_train and y_test, or neither.")


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise what they like
        raise InputError(f"{path} is not a readable .npz of plain arrays: {error}.") from error


def _rows(arrays: dict[str, Any], names: tuple[str, ...], part: str, *, model: Model, bad: list[BadRow], path: Path) -> Rows:
    inputs = {f"{name}{part}": arrays[f"{name}{part}"] for name in names}
    for place, (name, x) in enumerate(inputs.items()):
        _check_input(x, model, place, path=path, name=name)
    y = arrays.get(f"y{part}")
    every = inputs if y is None else {**inputs, f"y{part}": y}
    _check_rows(every, path)
    finite_N = np.logical_and.reduce([_finite_N(value) for value in every.values()])
    first = next(iter(inputs))
    if finite_N.mean() <= 1 - MOST_BAD:
        raise InputError(f"{path}: {int((~finite_N).sum())} of {len(finite_N)} rows of {first} hold NaN or infinity.")
    bad.extend(BadRow(f"{first}[{row}]", "NaN or infinity") for row in np.flatnonzero(~finite_N))
    kept = [
        torch.from_numpy(np.ascontiguousarray(x[finite_N])).to(example.dtype)
        for x, example in zip(inputs.values(), model.example, strict=True)
    ]
    rows: list[Row] = list(zip(np.flatnonzero(finite_N).tolist(), zip(*kept, strict=True), strict=True))
    return Rows(rows, _stack, None if y is None else _targets(y[finite_N], path), _show)


def _stack(rows: list[Row]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(values) for values in zip(*(inputs for _, inputs in rows), strict=True))


def _finite_N(value: Any) -> Any:
    is_real = np.issubdtype(value.dtype, np.floating)
    return np.isfinite(value.reshape(len(value), -1)).all(1) if is_real else np.ones(len(value), bool)


def _check_input(x: Any, model: Model, place: int, *, path: Path, name: str) -> None:
    """Raises InputError where the array does not fit input `place` of the model."""
    example, dynamic = model.example[place], model.origin.dynamic[place] if model.origin.dynamic else {}
    fixed = [dim for dim in range(1, example.dim()) if dim not in dynamic]
    if x.ndim != example.dim() or any(x.shape[dim] != example.shape[dim] for dim in fixed):
        raise InputError(f"{path}: an example of {name} has shape {x.shape[1:]}, the model takes {tuple(example.shape[1:])}.")
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer) or x.dtype == bool):
        raise InputError(f"{path}: {name} has type {x.dtype}.", hint="It must hold real numbers or integers.")
    if not len(x):
        raise InputError(f"{path}: {name} is empty.")


def _check_rows(named: dict[str, Any], path: Path) -> None:
    """Raises InputError where two arrays, inputs or labels, have not as many rows."""
    (first, x), *others = named.items()
    for name, value in others:
        if value.ndim == 0 or len(value) != len(x):
            raise InputError(f"{path}: {first} has {len(x)} rows, {name} has {len(value) if value.ndim else 'none'}.")


def _targets(y: Any, path: Path) -> Tensor:
    is_classes = np.issubdtype(y.dtype, np.integer) or y.dtype == bool
    if is_classes and y[0].size != 1:
        raise InputError(f"{path}: y has the shape {y.shape}.", hint="Integer y are class numbers, one a row.")
    y = y.reshape(len(y)) if is_classes else y
    if is_classes:
        return torch.from_numpy(y.astype(np.int64))
    if np.issubdtype(y.dtype, np.floating):
        return torch.from_numpy(y.astype(np.float64))
    raise InputError(f"{path}: y has type {y.dtype}.", hint="Integers are classes, real numbers are targets.")


def _show(numbered: Row, index: int) -> Example:
    """Named by the row of the file. Small arrays that look like an image are shown as one."""
    number, (row, *_) = numbered
    is_image = row.dim() == 3 and row.shape[0] in (1, 3)
    image = row.permute(1, 2, 0).squeeze(2) if is_image else row
    if image.dim() < 2 or min(image.shape[:2]) < 4 or (image.dim() == 3 and image.shape[2] != 3):
        return Example(f"row {number}")
    try:
        from lighten.data.images import thumbnail

        span = (image.max() - image.min()).clamp_min(1e-9)
        scaled = ((image - image.min()) / span * 255).to(torch.uint8).numpy()
        return Example(f"row {number}", image_png=thumbnail(np.ascontiguousarray(scaled)))
    except ImportError:  # without Pillow the report goes without pictures
        return Example(f"row {number}")
