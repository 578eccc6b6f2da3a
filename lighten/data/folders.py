"""A folder with one subfolder a class, or with train/ and test/ above those: how images and recordings come."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.rows import Collate, Rows, divide

_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation")


@dataclass(frozen=True)
class Kind:
    """What a class folder holds. check: raises ValueError for a file that cannot be used. collate: paths to inputs."""

    task: str
    suffixes: tuple[str, ...]
    check: Callable[[Path], None]
    collate: Collate
    show: Callable[[Any, int], Example]


def load_folder(folder: Path, *, kind: Kind, model: Model, seed: int) -> Data:
    """Reads the file names; files are decoded once to find the bad ones, then again batch by batch.

    Raises InputError when no file can be used.
    """
    parts = {name: next((folder / one for one in names if (folder / one).is_dir()), None) for name, names in _PARTS.items()}
    test_folder = parts["test"] or folder
    labels = _labels([path for path in (test_folder, parts["train"]) if path is not None], kind, model)
    bad: list[BadRow] = []
    test = _rows(test_folder, labels, kind, bad=bad)
    train = None if parts["train"] is None or parts["test"] is None else _rows(parts["train"], labels, kind, bad=bad)
    if not len(test):
        raise InputError(f"{folder} holds no usable {'/'.join(kind.suffixes)} file in class folders{_first(bad)}.")
    if train is None or not len(train):
        train, test = divide(test, seed)
    metric = "accuracy" if test.targets is not None else "agreement"
    digest = _digest(folder, kind.suffixes)
    return Data(str(folder), kind.task, metric, test, train, tuple(labels), tuple(bad), digest)


_PARTS = {"train": _TRAIN, "test": _TEST}


def _labels(folders: Sequence[Path], kind: Kind, model: Model) -> list[str]:
    """The model's own labels where the folder names are among them, else the folder names in order."""
    names = sorted({entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir() and _files(entry, kind)})
    known = {label.lower() for label in model.origin.labels}
    return list(model.origin.labels) if names and all(name.lower() in known for name in names) else names


def _rows(folder: Path, labels: list[str], kind: Kind, *, bad: list[BadRow]) -> Rows:
    """All files below class folders, or, without class folders, the files themselves, unlabelled."""
    position = {label.lower(): index for index, label in enumerate(labels)}
    found: list[tuple[Path, int]] = []
    for path in _files(folder, kind):
        label = path.relative_to(folder).parts[0].lower() if labels else ""
        if labels and label not in position:
            bad.append(BadRow(str(path), "lies in no class folder"))
        elif (why := _why_unusable(path, kind)) is not None:
            bad.append(BadRow(str(path), why))
        else:
            found.append((path, position.get(label, 0)))
    targets = torch.tensor([label for _, label in found], dtype=torch.int64) if labels else None
    return Rows([path for path, _ in found], kind.collate, targets, kind.show)


def _why_unusable(path: Path, kind: Kind) -> str | None:
    try:
        kind.check(path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        return str(error) or type(error).__name__
    return None


def _files(folder: Path, kind: Kind) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in kind.suffixes and path.is_file())


def _digest(folder: Path, suffixes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _first(bad: list[BadRow]) -> str:
    return f"; {len(bad)} could not be read, the first: {bad[0].where} ({bad[0].why})" if bad else ""
