"""NumPy archives: x and y, or x_train, y_train, x_test, y_test. Integer y are classes, real y are regression targets."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.rows import Rows, divide
from lighten.engine.files import sha256_of

_MOST_BAD = 0.5


def load_arrays(path: Path, *, model: Model, seed: int) -> Data:
    """Raises InputError when the archive is corrupt, an array is missing or x does not fit the model's input."""
    arrays = _read(path)
    bad: list[BadRow] = []
    if "x" in arrays:
        train, test = divide(_rows(arrays, "", model, bad=bad, path=path), seed)
    elif "x_test" in arrays:
        _check_pairs(arrays, path)
        test = _rows(arrays, "_test", model, bad=bad, path=path)
        train = _rows(arrays, "_train", model, bad=bad, path=path) if "x_train" in arrays else None
        if train is None:
            train, test = divide(test, seed)
    else:
        raise InputError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}.", hint="It needs x and y, or x_test and y_test."
        )
    is_classes = test.targets is None or not test.targets.is_floating_point()
    task = (model.origin.task or "classification") if is_classes else "regression"
    metric = "agreement" if test.targets is None else "accuracy" if is_classes else "mse"
    return Data(str(path), task, metric, test, train, model.origin.labels, tuple(bad), sha256_of(path))


def _check_pairs(arrays: dict[str, Any], path: Path) -> None:
    """Labels on one side only are a mistake."""
    if "x_train" in arrays and ("y_train" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path} holds {', '.join(sorted(arrays))}.", hint="Give both y_train and y_test, or neither.")


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise what they like
        raise InputError(f"{path} is not a readable .npz of plain arrays: {error}.") from error


def _rows(arrays: dict[str, Any], part: str, model: Model, *, bad: list[BadRow], path: Path) -> Rows:
    x, y = arrays[f"x{part}"], arrays.get(f"y{part}")
    _check(x, y, model, path=path, name=f"x{part}")
    finite = np.isfinite(x.reshape(len(x), -1)).all(1) if np.issubdtype(x.dtype, np.floating) else np.ones(len(x), bool)
    if y is not None and np.issubdtype(y.dtype, np.floating):
        finite &= np.isfinite(y.reshape(len(y), -1)).all(1)
    if finite.mean() <= _MOST_BAD:
        raise InputError(f"{path}: {int((~finite).sum())} of {len(x)} rows of x{part} hold NaN or infinity.")
    bad.extend(BadRow(f"x{part}[{row}]", "NaN or infinity") for row in np.flatnonzero(~finite))
    dtype = model.example[0].dtype
    kept = torch.from_numpy(np.ascontiguousarray(x[finite])).to(dtype)
    targets = None if y is None else _targets(y[finite], path)
    rows = list(zip(np.flatnonzero(finite).tolist(), kept, strict=True))
    return Rows(rows, lambda rows: (torch.stack([value for _, value in rows]),), targets, _show)


def _check(x: Any, y: Any, model: Model, *, path: Path, name: str) -> None:
    if len(model.example) != 1:
        raise InputError(f"{path} holds one input, the model takes {len(model.example)}.", hint="Give batches from Python.")
    example, dynamic = model.example[0], model.origin.dynamic[0] if model.origin.dynamic else {}
    fixed = [dim for dim in range(1, example.dim()) if dim not in dynamic]
    if x.ndim != example.dim() or any(x.shape[dim] != example.shape[dim] for dim in fixed):
        raise InputError(f"{path}: an example of {name} has shape {x.shape[1:]}, the model takes {tuple(example.shape[1:])}.")
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer) or x.dtype == bool):
        raise InputError(f"{path}: {name} has type {x.dtype}.", hint="It must hold real numbers or integers.")
    if y is not None and (y.ndim == 0 or len(y) != len(x)):
        raise InputError(f"{path}: {name} has {len(x)} rows, y{name[1:]} has {len(y) if y.ndim else 'none'}.")
    if not len(x):
        raise InputError(f"{path}: {name} is empty.")


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


def _show(numbered: tuple[int, Tensor], index: int) -> Example:
    """Named by the row of the file. Small arrays that look like an image are shown as one."""
    number, row = numbered
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
