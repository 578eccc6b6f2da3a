"""Element types of tensors, and how their bytes become unsigned integers.

Dimension key: N elements.
"""

from dataclasses import dataclass

import numpy as np

from lighten.export.pack.coder import Array


@dataclass(frozen=True)
class Kind:
    """bits: of an element in the file; fewer than 8 are packed, the lowest bits first. is_signed: of an integer, two's
    complement. is_float: sign, exponent and mantissa, from the highest bit down.
    """

    name: str
    bits: int
    is_signed: bool = False
    is_float: bool = False

    def num_bytes(self, num_elements: int) -> int:
        return (num_elements * self.bits + 7) // 8


KINDS = (
    Kind("uint8", 8),
    Kind("int8", 8, is_signed=True),
    Kind("uint4", 4),
    Kind("int4", 4, is_signed=True),
    Kind("uint2", 2),
    Kind("int2", 2, is_signed=True),
    Kind("float32", 32, is_float=True),
    Kind("float16", 16, is_float=True),
    Kind("bfloat16", 16, is_float=True),
    Kind("float64", 64, is_float=True),
    Kind("int16", 16, is_signed=True),
    Kind("int32", 32, is_signed=True),
    Kind("int64", 64, is_signed=True),
    Kind("bool", 8),
)
"""The place in this list is the number in the archive."""


def elements(data: bytes, kind: Kind, num_elements: int) -> Array:
    """The bit patterns, unsigned, shape (N,). `data` holds kind.num_bytes(num_elements) bytes."""
    if kind.bits >= 8:
        return np.frombuffer(data, f"<u{kind.bits // 8}")
    byte_N, per_byte = np.frombuffer(data, np.uint8), 8 // kind.bits
    shift = np.arange(per_byte, dtype=np.uint8) * np.uint8(kind.bits)
    return ((byte_N[:, None] >> shift) & np.uint8(2**kind.bits - 1)).ravel()[:num_elements]


def element_bytes(pattern_N: Array, kind: Kind) -> bytes:
    """What `elements` took apart; unused bits of the last byte are zeros."""
    if kind.bits >= 8:
        return pattern_N.astype(f"<u{kind.bits // 8}").tobytes()
    per_byte = 8 // kind.bits
    padded = np.zeros(-(-len(pattern_N) // per_byte) * per_byte, np.uint8)
    padded[: len(pattern_N)] = pattern_N
    shift = np.arange(per_byte, dtype=np.uint8) * np.uint8(kind.bits)
    packed: Array = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shift, 1)
    return packed.astype(np.uint8).tobytes()


def ordered(pattern_N: Array, kind: Kind) -> Array:
    """Patterns of at most 8 bits as 0 to 2^bits - 1 in the order of their values: int8 -128 is 0, and zero is 128."""
    return pattern_N ^ np.uint8(1 << (kind.bits - 1)) if kind.is_signed else pattern_N


def rotated(pattern_N: Array, kind: Kind, *, back: bool = False) -> Array:
    """Turned left by one bit, or back: the sign of a float becomes its lowest bit and the exponent the highest."""
    if not kind.is_float:
        return pattern_N
    up, down = pattern_N.dtype.type(kind.bits - 1 if back else 1), pattern_N.dtype.type(1 if back else kind.bits - 1)
    turned_N: Array = pattern_N << up | pattern_N >> down
    return turned_N
