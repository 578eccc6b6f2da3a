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
MOST_DIMS = 64


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
    """`size` bytes of a part from `start` on. Pieces of a part follow each other; one that is used up begins again."""

    part: int
    size: int
    start: int


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
    """A piece that is a tensor of a file."""

    file: int
    name: str
    piece: Piece
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """Part 0 is text and lies behind the index itself. tensors: one for each piece of a tensor's part, in their order."""

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
            out += [varint(number) for piece in file.pieces for number in (piece.part, self._told_size(piece))]
        for tensor in self.tensors:
            same = tensor.shape == self.parts[tensor.piece.part].shape
            out += [_name(tensor.name), varint(0) if same else _shape(tensor.shape, more=1)]
        return b"".join(out)

    def _told_size(self, piece: Piece) -> int:
        """0 for the whole part."""
        return 0 if piece.size == self.parts[piece.part].size else piece.size


def read_index(data: bytes) -> tuple[Index, int]:
    """The index and the place behind it. Raises InputError where it is malformed or contradicts itself."""
    reader = _Reader(data)
    parts = reader.parts()
    if not parts or parts[0].kind is not None:
        raise corrupt("its first part is no text")
    files = reader.files(parts)
    index = Index(tuple(parts), tuple(files), tuple(reader.tensors(parts, files)))
    _check_names(index)
    return index, reader.place


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def parts(self) -> list[Part]:
        return [self._part() for _ in range(self._count())]

    def files(self, parts: list[Part]) -> list[File]:
        used: dict[int, int] = {}
        found = []
        for _ in range(self._count()):
            name, digest = self._name(), self._bytes(DIGEST)
            found.append(File(name, digest, tuple(self._piece(parts, used) for _ in range(self._count()))))
        return found

    def tensors(self, parts: list[Part], files: list[File]) -> list[Tensor]:
        found = []
        for number, file in enumerate(files):
            for piece in file.pieces:
                kind = parts[piece.part].kind
                if kind is not None:
                    found.append(self._tensor(number, piece, parts[piece.part]))
        return found

    def _tensor(self, file: int, piece: Piece, part: Part) -> Tensor:
        name, num_dims = self._name(), self._number()
        shape = part.shape if num_dims == 0 else self._dims(num_dims - 1)
        if part.kind is None or layout_of(part.kind, shape).num_bytes != piece.size:
            raise corrupt("a tensor has not its stated size")
        return Tensor(file, name, piece, shape)

    def _piece(self, parts: list[Part], used: dict[int, int]) -> Piece:
        number, size = self._number(), self._number()
        if number >= len(parts):
            raise corrupt("a piece lies in no part")
        whole = parts[number].size
        start = used.get(number, 0) % max(whole, 1)
        size = size or whole
        if start + size > whole:
            raise corrupt("a piece lies outside its part")
        used[number] = start + size
        return Piece(number, size, start)

    def _part(self) -> Part:
        kind = self._number()
        if kind == 0:
            return Part(self._number(), self._number())
        if kind > len(KINDS):
            raise corrupt("its elements are of an unknown type")
        shape = self._shape()
        return Part(layout_of(KINDS[kind - 1], shape).num_bytes, self._number(), KINDS[kind - 1], shape)

    def _number(self) -> int:
        value, self.place = read_varint(self._data, self.place)
        return value

    def _count(self) -> int:
        count = self._number()
        if count > min(MOST_ENTRIES, len(self._data)):
            raise corrupt("its index is too long")
        return count

    def _shape(self) -> tuple[int, ...]:
        return self._dims(self._count())

    def _dims(self, count: int) -> tuple[int, ...]:
        if count > MOST_DIMS:
            raise corrupt("a tensor has too many dimensions")
        shape = tuple(self._number() for _ in range(count))
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


def _check_names(index: Index) -> None:
    names = [file.name for file in index.files]
    unsafe = next((name for name in names if not safe_name(name)), None)
    if unsafe is not None:
        raise corrupt(f"the name {unsafe!r} leads out of the folder or is no file name")
    # a file system may not tell names apart that differ in case
    if len({name.lower() for name in names}) != len(names):
        raise corrupt("a file is there twice")


def _name(name: str) -> bytes:
    encoded = name.encode("utf-8")
    return varint(len(encoded)) + encoded


def _shape(shape: tuple[int, ...], *, more: int = 0) -> bytes:
    return b"".join(varint(number) for number in (len(shape) + more, *shape))
