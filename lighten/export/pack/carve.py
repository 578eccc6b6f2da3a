"""Where the tensors lie in a file: ONNX and safetensors. Nothing is parsed into objects and written anew, so that what is put
together again is the file, byte for byte, whoever wrote it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from lighten.export.pack.kinds import KINDS, Kind

_KINDS = {kind.name: kind for kind in KINDS}
# TensorProto.DataType of ONNX; the names of safetensors
_ONNX_KINDS = {
    **{1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"},
    **{16: "bfloat16", 21: "uint4", 22: "int4", 25: "uint2", 26: "int2"},
}
_SAFETENSORS_KINDS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"},
    **{"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}

# the fields of onnx.proto that lead to a tensor's bytes
_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _TENSOR = 7, 1, 5, 5, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Span:
    """A tensor's bytes in a file: kind.num_bytes of all its elements, from `start`."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return self.kind.num_bytes(prod(self.shape))


def carve(name: str, data: bytes) -> list[Span]:
    """The tensors of a file, in the order of their bytes; none where the file is of another kind, or not well-formed."""
    finders = {".onnx": _onnx, ".safetensors": _safetensors}
    finder = next((finders[end] for end in finders if name.endswith(end)), None)
    if finder is None:
        return []
    try:
        spans = sorted(finder(data), key=lambda span: span.start)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):  # a file of that name, but no such file
        return []
    ends = [0, *(span.start + span.size for span in spans)]
    overlap = any(span.start < end for span, end in zip(spans, ends, strict=False))
    return [] if overlap or ends[-1] > len(data) else [span for span in spans if span.size]


def _onnx(data: bytes) -> Iterator[Span]:
    """Initializers of the main graph, and tensors of its nodes' attributes."""
    for path in ((_GRAPH, _INITIALIZER), (_GRAPH, _NODE, _ATTRIBUTE, _TENSOR)):
        for tensor in _submessages(data, (0, len(data)), path):
            yield from _onnx_tensor(data, *tensor)


@dataclass
class _Found:
    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw: tuple[int, int] = (0, 0)


def _onnx_tensor(data: bytes, start: int, end: int) -> Iterator[Span]:
    found = _Found()
    for number, (low, high), value in _messages(data, start, end):
        if number == _NAME:
            found.name = data[low:high].decode("utf-8")
        elif number == _DATA_TYPE:
            found.data_type = value
        elif number == _RAW_DATA:
            found.raw = (low, high)
        elif number == _DIMS:
            found.dims += [value] if low == high else _packed(data, low, high)
    low, high = found.raw
    if high > low and found.data_type in _ONNX_KINDS:
        span = Span(found.name, _KINDS[_ONNX_KINDS[found.data_type]], tuple(found.dims), low)
        if span.size == high - low:
            yield span


def _safetensors(data: bytes) -> Iterator[Span]:
    first = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:first].decode("utf-8")).items():
        if name == "__metadata__" or entry["dtype"] not in _SAFETENSORS_KINDS:
            continue
        low, high = entry["data_offsets"]
        span = Span(name, _KINDS[_SAFETENSORS_KINDS[entry["dtype"]]], tuple(entry["shape"]), first + low)
        if span.size == high - low:
            yield span


def _submessages(data: bytes, place: tuple[int, int], path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Begin and end of each submessage that the fields of those numbers lead to."""
    if not path:
        yield place
        return
    for number, (low, high), _ in _messages(data, *place):
        if number == path[0] and low < high:
            yield from _submessages(data, (low, high), path[1:])


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int], int]]:
    """The fields of a protocol buffer: number, begin and end of the bytes (equal for a number), and the number."""
    while start < end:
        key, start = _varint(data, start)
        value, size = 0, {_FIXED64: 8, _FIXED32: 4}.get(key & 7, 0)
        if key & 7 == _VARINT:
            value, start = _varint(data, start)
        elif key & 7 == _BYTES:
            size, start = _varint(data, start)
        elif not size:
            raise ValueError("a wire type that is not in use")
        if start + size > end:
            raise ValueError("a field that is longer than its message")
        yield key >> 3, (start, start + size if key & 7 == _BYTES else start), value
        start += size


def _packed(data: bytes, start: int, end: int) -> list[int]:
    values = []
    while start < end:
        value, start = _varint(data, start)
        values.append(value)
    return values


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number that does not end")
