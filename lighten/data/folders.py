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
from lighten.data.labels import classes
from lighten.data.rows import Collate, Rows, always_alike, divide
from lighten.engine.files import sha256_of

_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation")


@dataclass(frozen=True)
class Kind:
    """What a class folder holds. check: raises ValueError for a file that cannot be used. collate: paths to inputs."""

    task: str
    suffixes: tuple[str, ...]
    check: Callable[[Path], None]
    collate: Collate
    show: Callable[[Any, int], Example]
    alike: Callable[[Any], Any] = always_alike


def load_folder(folder: Path, *, kind: Kind, model: Model, seed: int) -> Data:
    """Reads the file names; files are decoded once to find the bad ones, then again batch by batch.

    Raises InputError when no file can be used.
    """
    train_folder, test_folder = splits(folder)
    names = _class_folders([path for path in (test_folder, train_folder) if path is not None], kind)
    labels, places = classes(names, model.origin.labels) if names else ((), {})
    bad: list[BadRow] = []
    test = _rows(test_folder, places, kind, bad=bad)
    train = None if train_folder is None else _rows(train_folder, places, kind, bad=bad)
    if not len(test):
        raise InputError(f"{folder} holds no usable {'/'.join(kind.suffixes)} file in class folders{_first(bad)}.")
    if train is None or not len(train):
        train, test = divide(test, seed)
    metric = "accuracy" if test.targets is not None else "agreement"
    digest = _digest(folder, kind)
    return Data(str(folder), kind.task, metric, test, train, labels, tuple(bad), digest)


def splits(folder: Path) -> tuple[Path | None, Path]:
    """(train or None, test). One of the two folders alone holds all there is; beside other folders they are classes."""
    inside = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if not inside <= {*_TRAIN, *_TEST}:
        return None, folder
    train, test = (next((folder / one for one in names if (folder / one).is_dir()), None) for names in (_TRAIN, _TEST))
    return (train, test) if test is not None else (None, train or folder)


def _class_folders(folders: Sequence[Path], kind: Kind) -> set[str]:
    """Their names; none when the files lie in no folder of their own: then nothing is labelled."""
    inside = [path.relative_to(folder).parts for folder in folders for path in files_of(folder, kind.suffixes)]
    return {parts[0] for parts in inside if len(parts) > 1}


def _rows(folder: Path, places: dict[str, int], kind: Kind, *, bad: list[BadRow]) -> Rows:
    """All files below class folders, or, without class folders, the files themselves, unlabelled."""
    found: list[tuple[Path, int]] = []
    for path in files_of(folder, kind.suffixes):
        inside = path.relative_to(folder).parts
        place = places.get(inside[0]) if len(inside) > 1 else None
        why = "lies in no class folder" if places and place is None else _why_unusable(path, kind)
        if why is None:
            found.append((path, place or 0))
        else:
            bad.append(BadRow(str(path), why))
    targets = torch.tensor([place for _, place in found], dtype=torch.int64) if places else None
    return Rows([path for path, _ in found], kind.collate, targets, kind.show, kind.alike)


def _why_unusable(path: Path, kind: Kind) -> str | None:
    try:
        kind.check(path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        return str(error) or type(error).__name__
    return None


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """In order of their names. Hidden files and folders, such as thumbnails of a file manager, are no data."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _digest(folder: Path, kind: Kind) -> str:
    digest = hashlib.sha256()
    for path in files_of(folder, kind.suffixes):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def _first(bad: list[BadRow]) -> str:
    return f"; {len(bad)} could not be read, the first: {bad[0].where} ({bad[0].why})" if bad else ""
