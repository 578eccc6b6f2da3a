"""An archive, read from front to back or tensor by tensor. Whatever the bytes are, they give the files that were packed or one
InputError.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lighten.core.errors import InputError
from lighten.export.pack.coder import corrupt
from lighten.export.pack.index import DIGEST, File, Index, Part, Piece, read_index
from lighten.export.pack.index import Tensor as Entry
from lighten.export.pack.kinds import Kind, elements
from lighten.export.pack.tensors import decode
from lighten.export.pack.text import expand

MAGIC = b"lighten\x01"
CHECK = 8
"""Bytes of a part's sha256 that stand behind it."""
MOST_HEAD = 1 << 28
MAX_SIZE = 4_000_000_000

_CHUNK = 1 << 20


class Archive:
    """file: open for reading bytes, and seekable. Only the index is read at first.

    max_size: bytes that the files may have together. Raises InputError when the file is no archive, is damaged, or says that
    it holds more than that.
    """

    def __init__(self, file: IO[bytes], *, max_size: int = MAX_SIZE) -> None:
        self._file = file
        self.index, self._text = self._read_head(max_size)
        size = self.unpacked_bytes
        if size > max_size:
            raise _too_large(size, max_size)
        self._starts = self._places()
        self._parts: dict[int, bytes] = {0: self._text}

    @classmethod
    def open(cls, path: str | Path, *, max_size: int = MAX_SIZE) -> "Archive":
        """The archive of that name. Raises InputError as the class does, and when the file cannot be opened."""
        try:
            return cls(Path(path).open("rb"), max_size=max_size)
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}.") from error

    @property
    def unpacked_bytes(self) -> int:
        """What the files take."""
        return sum(file.size for file in self.index.files)

    @property
    def names(self) -> list[str]:
        """The files'."""
        return [file.name for file in self.index.files]

    @property
    def tensors(self) -> list[tuple[str, str]]:
        """(file, name) of every tensor."""
        return [(self.index.files[entry.file].name, entry.name) for entry in self.index.tensors]

    def check(self) -> None:
        """Reads the whole archive once. Raises InputError unless it is, to the last bit, what was written."""
        self._file.seek(0)
        digest, rest = hashlib.sha256(), self._starts[-1]
        while rest:
            chunk = self._file.read(min(_CHUNK, rest))
            if not chunk:
                raise corrupt("it is cut short")
            digest.update(chunk)
            rest -= len(chunk)
        if self._file.read(DIGEST + 1) != digest.digest():
            raise corrupt("its sha256 is another")

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content, in order. Raises InputError at the end at the latest, unless its sha256 is the index's."""
        file, digest = self._named(name), hashlib.sha256()
        for piece in file.pieces:
            chunk = self._piece(piece)
            digest.update(chunk)
            yield chunk
        if digest.digest() != file.digest:
            raise corrupt(f"the sha256 of {name} is another")

    def tensor(self, name: str, *, file: str | None = None) -> Tensor:
        """One tensor, without reading the others: integers of fewer than 8 bits as int8 or uint8.

        file: where several hold one of that name. Raises InputError when there is none, or its part is damaged.
        """
        entry = next((one for one in self.index.tensors if one.name == name and file in (None, self._file_name(one))), None)
        if entry is None:
            raise InputError(f"The archive holds no tensor {name}.", hint="Archive.tensors lists them.")
        return _as_torch(self._piece(entry.piece), self.index.parts[entry.piece.part].layout.kind, entry.shape)

    def _file_name(self, entry: Entry) -> str:
        return self.index.files[entry.file].name

    def _named(self, name: str) -> File:
        found = next((file for file in self.index.files if file.name == name), None)
        if found is None:
            raise InputError(f"The archive holds no file {name}.", hint=f"It holds {', '.join(self.names)}.")
        return found

    def _piece(self, piece: Piece) -> bytes:
        keep = piece.size < self.index.parts[piece.part].size
        return self._part(piece.part, keep=keep)[piece.start : piece.start + piece.size]

    def _part(self, number: int, *, keep: bool) -> bytes:
        """keep: in memory, since other pieces of it will be asked for; a large tensor is used whole."""
        if number in self._parts:
            return self._parts[number]
        part = self.index.parts[number]
        packed = self._bytes(self._starts[number], part.packed_size + CHECK)
        data = _unpacked(part, packed[:-CHECK])
        if check_of(data) != packed[-CHECK:]:
            raise corrupt("the check of a part is another")
        if keep:
            self._parts[number] = data
        return data

    def _read_head(self, max_size: int) -> tuple[Index, bytes]:
        start = self._bytes(0, 16, why="It is no archive of lighten.")
        if start[:8] != MAGIC:
            raise InputError("It is no archive of lighten, or one of a later version.", hint="lighten pack writes archives.")
        size, packed_size = int.from_bytes(start[8:12], "little"), int.from_bytes(start[12:16], "little")
        if size > MOST_HEAD:
            raise corrupt("its index is too long")
        packed = self._bytes(16, packed_size + CHECK)
        self._first = 16 + packed_size + CHECK
        head = expand(packed[:-CHECK], size)
        if check_of(start + head) != packed[-CHECK:]:
            raise corrupt("the check of its index is another")
        index, place = read_index(head)
        if len(head) - place != index.parts[0].size:
            raise corrupt("its text has not its stated size")
        return index, head[place:]

    def _places(self) -> list[int]:
        """Where each part begins, and where the last one ends. Part 0 lies in the head."""
        places = [0, self._first]
        for part in self.index.parts[1:]:
            places.append(places[-1] + part.packed_size + CHECK)
        end = self._file.seek(0, 2)
        if places[-1] + DIGEST != end:
            raise corrupt(f"it has {end} bytes and should have {places[-1] + DIGEST}")
        return places

    def _bytes(self, start: int, size: int, *, why: str = "") -> bytes:
        end = self._file.seek(0, 2)
        if start + size > end:
            raise InputError(why) if why else corrupt("it is cut short")
        self._file.seek(start)
        return self._file.read(size)


def check_of(data: bytes) -> bytes:
    """The first bytes of the sha256."""
    return hashlib.sha256(data).digest()[:CHECK]


def _unpacked(part: Part, packed: bytes) -> bytes:
    return expand(packed, part.size) if part.kind is None else decode(packed, part.layout)


def _too_large(size: int, max_size: int) -> InputError:
    return InputError(
        f"The archive says that it holds {size / 1e6:,.1f} MB; {max_size / 1e6:,.1f} MB are allowed.", hint="See --max-size."
    )


def _as_torch(data: bytes, kind: Kind, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    if kind.bits >= 8:
        dtype = getattr(torch, kind.name)
        return (
            torch.frombuffer(bytearray(data), dtype=dtype, count=count).reshape(shape)
            if count
            else torch.empty(shape, dtype=dtype)
        )
    pattern_N = elements(data, kind, count).astype(np.int16)
    if kind.is_signed:
        pattern_N -= (pattern_N >> (kind.bits - 1)) << kind.bits
    return torch.from_numpy(pattern_N.astype(np.int8 if kind.is_signed else np.uint8)).reshape(shape)
