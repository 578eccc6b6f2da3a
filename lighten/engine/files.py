"""Files that are complete or absent: written under a temporary name in the same folder, synced, then moved."""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lighten.core.errors import InputError

_CHUNK = 1 << 20
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long",
}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes the whole file or nothing. Text is UTF-8. Raises InputError when the disk is full or the folder cannot be
    written.
    """
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the block ends without an error. Raises InputError as `write_atomic`
    does.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # not tempfile.mkstemp, whose files only their owner may read: the user's umask decides
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """The folder, made with all above it when missing. Raises InputError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def move(path: Path, destination: Path) -> None:
    """Replaces `destination` in one step; both lie in the same file system. Raises InputError when it cannot be written."""
    make_folder(destination.parent)
    try:
        os.replace(path, destination)
    except OSError as error:
        raise unwritable(destination, error) from error


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal, read in pieces. Raises InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Raises InputError unless files can be made in `folder` (or where it would be made) and `needed_bytes` are free there."""
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        raise unwritable(folder, error) from error
    if free_bytes < needed_bytes:
        raise InputError(
            f"Cannot write {folder}: {free_bytes / 1e6:.0f} MB are free, about {needed_bytes / 1e6:.0f} MB are needed.",
            hint="Free some space or choose another --out.",
        )


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a path that could not be written, with the reason in words."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"Cannot write {path}: {reason}.", hint="Choose another --out.")
