"""Files to one archive, which is read back and compared before anything is kept."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO

from lighten.core.errors import InputError, ParityError
from lighten.export.pack.carve import Span, carve
from lighten.export.pack.index import File, Index, Part, Piece, Tensor, safe_name
from lighten.export.pack.kinds import Kind
from lighten.export.pack.reading import MAGIC, MOST_HEAD, Archive, check_of
from lighten.export.pack.tensors import encode, layout_of
from lighten.export.pack.text import squeeze

_OWN_PART = 1024  # elements from which on a tensor has a part of its own
_OWN_TEXT = 1 << 16  # bytes from which on a file without tensors has


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """The archive of some files, in their order.

    files: name, relative and with slashes, to content. Raises InputError for a name that could not be unpacked everywhere,
    ParityError where the archive does not give the files back: then nothing is kept.
    """
    unsafe = next((name for name in files if not safe_name(name)), None)
    if unsafe is not None:
        raise InputError(f"{unsafe!r} cannot be a file's name everywhere.", hint="Rename it.")
    split = _Split()
    for name, data in files.items():
        split.add(name, data)
    archive = split.archive()
    _prove(archive, files)
    return archive


def _prove(archive: bytes, files: Mapping[str, bytes]) -> None:
    read = Archive(BytesIO(archive), max_size=max(1, sum(map(len, files.values()))))
    read.check()
    for name, data in files.items():
        # chunks, so that the file is not in memory twice
        place = 0
        for chunk in read.chunks(name):
            if data[place : place + len(chunk)] != chunk:
                raise ParityError(f"{name} does not come back from the archive as it was.", hint="Please report this.")
            place += len(chunk)


@dataclass
class _Content:
    """A part before it is coded. pooled: small tensors in a row, one-dimensional."""

    kind: Kind | None = None
    shape: tuple[int, ...] = ()
    data: list[bytes] = field(default_factory=list)
    size: int = 0

    def append(self, data: bytes) -> int:
        """Where the data begin."""
        start, self.size = self.size, self.size + len(data)
        self.data.append(data)
        return start


class _Split:
    """Files taken apart: text in part 0, one part for all small tensors of a type, one for each large tensor."""

    def __init__(self) -> None:
        self._contents = [_Content()]
        self._pools: dict[str, int] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._files: list[File] = []
        self._tensors: list[Tensor] = []

    def add(self, name: str, data: bytes) -> None:
        spans, pieces, place = carve(name, data), [], 0
        for span in spans:
            pieces += self._text(data[place : span.start])
            pieces.append(self._tensor(span, data[span.start : span.start + span.size]))
            place = span.start + span.size
        rest = data[place:]
        pieces += self._text(rest) if spans or len(rest) < _OWN_TEXT else [Piece(self._new(_Content(), rest), len(rest), 0)]
        self._files.append(File(name, hashlib.sha256(data).digest(), tuple(pieces)))

    def archive(self) -> bytes:
        """Parts in the order in which their files need them, pools first."""
        order = [0, *self._pools.values()]
        order += [part for part in range(1, len(self._contents)) if part not in set(order)]
        packed = [self._packed(part) for part in order[1:]]
        renumbered = {part: place for place, part in enumerate(order)}
        index = Index(
            (Part(self._contents[0].size, 0), *(part for part, _, _ in packed)),
            tuple(replace(file, pieces=_renumbered(file.pieces, renumbered)) for file in self._files),
            tuple(replace(tensor, piece=_renumbered((tensor.piece,), renumbered)[0]) for tensor in self._tensors),
        )
        head = index.to_bytes() + b"".join(self._contents[0].data)
        if len(head) > MOST_HEAD:
            raise InputError(
                f"The files hold {len(head) / 1e6:.0f} MB beside their tensors; archives take {MOST_HEAD / 1e6:.0f}."
            )
        squeezed = squeeze(head)
        start = MAGIC + len(head).to_bytes(4, "little") + len(squeezed).to_bytes(4, "little")
        body = b"".join([start, squeezed, check_of(start + head), *(data + check for _, data, check in packed)])
        return body + hashlib.sha256(body).digest()

    def _text(self, data: bytes) -> list[Piece]:
        return [Piece(0, len(data), self._contents[0].append(data))] if data else []

    def _tensor(self, span: Span, data: bytes) -> Piece:
        layout = layout_of(span.kind, span.shape)
        if layout.num_elements < _OWN_PART and span.kind.bits >= 8:
            part = self._pools.setdefault(span.kind.name, len(self._contents))
            if part == len(self._contents):
                self._contents.append(_Content(span.kind))
            start = self._contents[part].append(data)
        else:
            key = (span.kind.name, span.shape, hashlib.sha256(data).digest())
            if key not in self._known:
                self._known[key] = self._new(_Content(span.kind, span.shape), data)
            part, start = self._known[key], 0
        piece = Piece(part, len(data), start)
        self._tensors.append(Tensor(len(self._files), span.name, piece, span.shape))
        return piece

    def _new(self, content: _Content, data: bytes) -> int:
        content.append(data)
        self._contents.append(content)
        return len(self._contents) - 1

    def _packed(self, part: int) -> tuple[Part, bytes, bytes]:
        content = self._contents[part]
        data = b"".join(content.data)
        if content.kind is None:
            packed = squeeze(data)
            return Part(len(data), len(packed)), packed, check_of(data)
        shape = content.shape if part in self._known.values() else (len(data) * 8 // content.kind.bits,)
        packed = encode(data, layout_of(content.kind, shape))
        return Part(len(data), len(packed), content.kind, shape), packed, check_of(data)


def _renumbered(pieces: tuple[Piece, ...], numbers: Mapping[int, int]) -> tuple[Piece, ...]:
    return tuple(replace(piece, part=numbers[piece.part]) for piece in pieces)
