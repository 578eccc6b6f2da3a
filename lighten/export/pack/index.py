"""The index of an archive: its files, the parts they are put together from, and the tensors in them.

All numbers are varints, all names UTF-8 after their length.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from lighten.export.pack.coder import corrupt, read_varint, varint
from lighten.export.pack.kinds import KINDS, Kind
from lighten.export.pack.tensors import Layout, layout_of

DIGEST = 32
MOST_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Part:
    """layout: of its elements, None for text. size: in bytes, unpacked. packed_size: in the archive."""

    size: int
    packed_size: int
    kind: Kind | None = None
    shape: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        if self.kind is None:
            raise corrupt("a tensor lies in a text")
        return layout_of(self.kind, self.shape)


@dataclass(frozen=True)
class Piece:
    """The next `size` bytes of a part; one that is used up begins again."""

    part: int
    size: int


@dataclass(frozen=True)
class File:
    """name: relative, with slashes. digest: sha256 of the whole."""

    name: str
    digest: bytes
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: in which part, from which byte of it on."""

    file: int
    name: str
    part: int
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """Part 0 is text and lies behind the index itself."""

    parts: tuple[Part, ...]
    files: tuple[File, ...]
    tensors: tuple[Tensor, ...]

    def to_bytes(self) -> bytes:
        out = [varint(len(self.parts))]
        for part in self.parts:
            out.append(varint(0 if part.kind is None else 1 + KINDS.index(part.kind)))
            out += [varint(part.size)] if part.kind is None else [_shape(part.shape)]
            out.append(varint(part.packed_size))
        out.append(varint(len(self.files)))
        for file in self.files:
            out += [_name(file.name), file.digest, varint(len(file.pieces))]
            out += [varint(number) for piece in file.pieces for number in (piece.part, piece.size)]
        out.append(varint(len(self.tensors)))
        for tensor in self.tensors:
            out += [_name(tensor.name), varint(tensor.file), varint(tensor.part), varint(tensor.start), _shape(tensor.shape)]
        return b"".join(out)


def read_index(data: bytes) -> tuple[Index, int]:
    """The index and the place behind it. Raises InputError where it is malformed or contradicts itself."""
    reader = _Reader(data)
    index = Index(tuple(reader.parts()), tuple(reader.files()), tuple(reader.tensors()))
    _check(index)
    return index, reader.place


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def parts(self) -> list[Part]:
        return [self._part() for _ in range(self._count())]

    def files(self) -> list[File]:
        return [self._file() for _ in range(self._count())]

    def tensors(self) -> list[Tensor]:
        found = []
        for _ in range(self._count()):
            name = self._name()
            found.append(Tensor(self._number(), name, self._number(), self._number(), self._shape()))
        return found

    def _part(self) -> Part:
        kind = self._number()
        if kind == 0:
            return Part(self._number(), self._number())
        if kind > len(KINDS):
            raise corrupt("its elements are of an unknown type")
        shape = self._shape()
        return Part(layout_of(KINDS[kind - 1], shape).num_bytes, self._number(), KINDS[kind - 1], shape)

    def _file(self) -> File:
        name, digest = self._name(), self._bytes(DIGEST)
        return File(name, digest, tuple(Piece(self._number(), self._number()) for _ in range(self._count())))

    def _number(self) -> int:
        value, self.place = read_varint(self._data, self.place)
        return value

    def _count(self) -> int:
        count = self._number()
        if count > min(MOST_ENTRIES, len(self._data)):
            raise corrupt("its index is too long")
        return count

    def _shape(self) -> tuple[int, ...]:
        shape = tuple(self._number() for _ in range(self._count()))
        size = 1
        for dim in shape:
            size *= max(dim, 1)
        if size >= 2**48:
            raise corrupt("a tensor is too large")
        return shape

    def _bytes(self, size: int) -> bytes:
        found = self._data[self.place : self.place + size]
        if len(found) != size:
            raise corrupt("its index is cut short")
        self.place += size
        return found

    def _name(self) -> str:
        try:
            return self._bytes(self._number()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise corrupt("a name is not UTF-8") from error


def safe_name(name: str) -> bool:
    """True for a relative name that stays below the folder it is written to, on every system."""
    parts = PurePosixPath(name).parts
    plain = all(part not in ("..", ".") and part.strip(" .") for part in parts)
    special = any(character in '\\:*?"<>|' or ord(character) < 32 for character in name)
    return bool(parts) and plain and not special and not name.startswith("/") and "/".join(parts) == name


def _check(index: Index) -> None:
    if not index.parts or index.parts[0].kind is not None:
        raise corrupt("its first part is no text")
    names = [file.name for file in index.files]
    unsafe = next((name for name in names if not safe_name(name)), None)
    if unsafe is not None:
        raise corrupt(f"the name {unsafe!r} leads out of the folder or is no file name")
    # a file system may not tell names apart that differ in case
    if len({name.lower() for name in names}) != len(names):
        raise corrupt("a file is there twice")
    for file in index.files:
        for piece in file.pieces:
            if piece.part >= len(index.parts) or not 0 < piece.size <= index.parts[piece.part].size:
                raise corrupt("a piece lies outside its part")
    for tensor in index.tensors:
        part = index.parts[tensor.part] if tensor.part < len(index.parts) else index.parts[0]
        if part.kind is None or tensor.file >= len(index.files):
            raise corrupt("a tensor lies nowhere")
        if tensor.start + layout_of(part.kind, tensor.shape).num_bytes > part.size:
            raise corrupt("a tensor lies outside its part")


def _name(name: str) -> bytes:
    encoded = name.encode("utf-8")
    return varint(len(encoded)) + encoded


def _shape(shape: tuple[int, ...]) -> bytes:
    return b"".join(varint(number) for number in (len(shape), *shape))
