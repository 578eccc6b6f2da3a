"""What a resumed run need not do again: finished pieces of work, one file each, in a folder.

JSON values and dicts of tensors (safetensors) are kept under the hash of their key, each behind the sha256 of its content. The
folder belongs to one run: when the model, data, recipe or target differ, everything in it is forgotten.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lighten.core.run import Forgetful, Ranks
from lighten.engine.files import make_folder, unwritable, write_atomic

_IDENTITY = "run"


class FolderMemory:
    """core.run.Memory over `folder`, which is made when missing. Raises InputError where it cannot be written."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any]) -> None:
        self._folder = make_folder(folder)
        wanted = json.dumps(dict(identity), sort_keys=True).encode()
        if self._read(_IDENTITY) != wanted:
            self._forget()
            self._write(_IDENTITY, wanted)

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The JSON value stored under `key`, else `compute()`, stored. A damaged entry is computed again."""
        kept = self._read(key)
        if kept is not None:
            return json.loads(kept)
        value = compute()
        self._write(key, json.dumps(value).encode())
        return value

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The same for a flat dict of tensors."""
        import safetensors.torch

        kept = self._read(f"tensors {key}")
        if kept is not None:
            return safetensors.torch.load(kept)
        tensors = compute()
        content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
        self._write(f"tensors {key}", content)
        return tensors

    def _read(self, key: str) -> bytes | None:
        """None where there is no such entry, or one that is not what was written."""
        try:
            digest, _, content = self._path(key).read_bytes().partition(b"\n")
        except OSError:
            return None
        return content if digest == _digest(content) else None

    def _write(self, key: str, content: bytes) -> None:
        write_atomic(self._path(key), _digest(content) + b"\n" + content)

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()[:24]

    def _forget(self) -> None:
        for path in self._folder.iterdir():
            try:
                path.unlink()
            except OSError as error:
                raise unwritable(path, error) from error


class SharedMemory:
    """core.run.Memory of all ranks: what the first one remembers or computes the others get. When it has to be computed every
    rank does so, for a training is the work of them all. folder: None remembers nothing.
    """

    def __init__(self, folder: Path | None, ranks: Ranks, *, identity: Mapping[str, Any]) -> None:
        is_kept = folder is not None and ranks.number == 0
        self._memory = FolderMemory(folder, identity=identity) if is_kept and folder is not None else Forgetful()
        self._ranks = ranks

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The first rank's JSON value."""
        return self._ranks.share(self._first(key, compute, self._memory.remember))

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The first rank's dict of tensors."""
        return self._ranks.share_tensors(self._first(key, compute, self._memory.remember_tensors) or {})

    def _first(self, key: str, compute: Callable[[], Any], remember: Callable[[str, Callable[[], Any]], Any]) -> Any:
        """The others learn whether there is something to compute when the first one is asked to, or has found it."""
        told: list[bool] = []

        def computed() -> Any:
            told.append(self._ranks.share(True))
            return compute()

        if self._ranks.number:
            return compute() if self._ranks.share(None) else None
        value = remember(key, computed)
        if not told:
            self._ranks.share(False)
        return value


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
