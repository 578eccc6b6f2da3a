"""What a resumed run need not do again: finished pieces of work, one file each, in a folder.

JSON values and dicts of tensors (safetensors) are kept under the hash of their key. The folder belongs to one run: when the
model, data, recipe or target differ, everything in it is forgotten.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lighten.engine.files import write_atomic

_IDENTITY = "run.json"


class FolderMemory:
    """core.run.Memory over a folder, which is made when missing."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any]) -> None:
        self._folder = folder / "memory"
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps(dict(identity), sort_keys=True)
        if self._read_text(self._folder / _IDENTITY) != wanted:
            for path in self._folder.iterdir():
                path.unlink()
            write_atomic(self._folder / _IDENTITY, wanted)

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The JSON value stored under `key`, else `compute()`, stored. A damaged entry is computed again."""
        path = self._path(key, "json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):
            value = compute()
        write_atomic(path, json.dumps({"key": key, "value": value}))
        return value

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The same for a flat dict of tensors."""
        import safetensors.torch
        from safetensors import SafetensorError

        path = self._path(key, "safetensors")
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError):
            tensors = compute()
        write_atomic(path, safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}))
        return tensors

    def _path(self, key: str, suffix: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{suffix}"

    def _read_text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            return ""
