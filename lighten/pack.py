"""`lighten pack DIR FILE` and `lighten unpack FILE DIR`: a result as one file, for storage and for the way to a device."""

import json
import tempfile
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.engine.files import check_writable, make_folder, move, open_atomic, write_atomic
from lighten.export.archive import PRETRAINED
from lighten.export.pack.reading import MAX_SIZE, Archive
from lighten.export.pack.writing import archive_of
from lighten.report.write import JSON_NAME, PAGE_NAME
from lighten.result import MANIFEST, damaged_files, is_exported, read_manifest

LABELS_FILE = "labels.json"
_STRUCTURE = "structure.json"
_NOT_ON_DEVICE = (PAGE_NAME, JSON_NAME, _STRUCTURE, "weights.safetensors")


def pack(folder: str | Path, archive: str | Path, *, everything: bool = False) -> dict[str, Any]:
    """Writes the archive of a folder that `Result.save` wrote: {"size_bytes", "unpacked_bytes", "files", "left_out"}.

    The runtime's file, the preprocessing, the recipe and the manifest go in, and the labels as labels.json where there are
    any. What a device does not need stays out, unless `everything`: the report, and what `lighten.load`, `lighten verify` and
    `from_pretrained` read. Raises InputError when a file of the folder is missing or changed, or the archive cannot be
    written.
    """
    folder, archive = Path(folder), Path(archive)
    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    if damaged:
        raise InputError(f"{folder} is not as it was written: {', '.join(damaged)}.", hint="Run lighten compress again.")
    check_writable(archive.parent, 0)
    left_out = [] if everything else [name for name in manifest["files"] if _is_left_out(name)]
    kept = [name for name in manifest["files"] if name not in left_out]
    # the model last: a device that reads from the front has the small files first
    names = [MANIFEST, *sorted(kept, key=is_exported)]
    files = {**_labels(folder, left_out), **{name: _content(folder / name) for name in names}}
    packed = archive_of(files)
    write_atomic(archive, packed)
    sizes = {name: len(data) for name, data in files.items()}
    return {"size_bytes": len(packed), "unpacked_bytes": sum(sizes.values()), "files": sizes, "left_out": left_out}


def unpack(archive: str | Path, folder: str | Path, *, max_size: int = MAX_SIZE) -> list[str]:
    """Writes the files of an archive to `folder` and returns their names. Files of those names are replaced.

    max_size: bytes that all files may have together. Raises InputError when the archive is damaged or too large, or the folder
    cannot be written; then nothing is there that was not before.
    """
    folder = Path(folder)
    read = Archive.open(archive, max_size=max_size)
    read.check()
    check_writable(folder, read.unpacked_bytes)
    with tempfile.TemporaryDirectory(dir=make_folder(folder)) as place:
        new = Path(place)
        for name in read.names:
            _write(read, name, new)
            _refuse_outside(folder, name)
        for name in read.names:
            move(new / name, folder / name)
    return read.names


def _write(read: Archive, name: str, folder: Path) -> None:
    make_folder((folder / name).parent)
    with open_atomic(folder / name) as file:
        for chunk in read.chunks(name):
            file.write(chunk)


def _is_left_out(name: str) -> bool:
    return name in _NOT_ON_DEVICE or name.startswith(f"{PRETRAINED}/")


def _labels(folder: Path, left_out: list[str]) -> dict[str, bytes]:
    """The names of the classes, which the folder keeps in structure.json."""
    if _STRUCTURE not in left_out:
        return {}
    try:
        labels = json.loads(_content(folder / _STRUCTURE))["origin"]["labels"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _STRUCTURE} is malformed.") from error
    return {LABELS_FILE: (json.dumps(labels, ensure_ascii=False) + "\n").encode()} if labels else {}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _refuse_outside(folder: Path, name: str) -> None:
    """A link that lies in the folder already may lead elsewhere."""
    if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / name} lies behind a link that leads out of the folder.", hint="Choose another folder.")
