"""Symbols to bits and back: asymmetric numeral systems (Duda, arXiv:1311.2540), by the package constriction.

A coder is a stack: what is coded first is decoded first, because the encoder works through its list from the end. Both sides
call the same methods in the same order, so each part of the format is one function that serves packing and unpacking: the
encoder returns what it is given, the decoder returns what it finds and looks at nothing but lengths.
Dimension key: N symbols, A letters of the alphabet.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lighten.core.errors import InputError

Array = npt.NDArray[Any]

TOTAL_BITS = 20
"""Frequencies of an alphabet add up to 2^20."""

_STATE_BITS = 24  # constriction's precision: each letter has at least 2^-24
_BYTE = 8
_LAZY = 64  # below so many symbols a table is not worth building


class Coder(Protocol):
    """Either direction. packs: True where symbols are given, False where they are to be found."""

    packs: bool

    def code(self, symbol_N: Array, frequency_A: Array) -> Array:
        """Symbols 0 to A - 1 under the frequencies, int64, of sum 2^20. An alphabet of one letter takes no bits."""
        ...

    def numbers(self, value_N: Array, bits: int) -> Array:
        """Integers of 0 to 32 bits, each value as likely as any other."""
        ...

    def raw(self, value_N: Array) -> Array:
        """Bytes as they are."""
        ...


class Encoder:
    """Collects, and codes at the end."""

    packs = True

    def __init__(self) -> None:
        self._steps: list[tuple[Array, Array]] = []
        self._raw: list[bytes] = []

    def code(self, symbol_N: Array, frequency_A: Array) -> Array:
        if len(symbol_N) and len(frequency_A) > 1:
            self._steps.append((symbol_N, frequency_A))
        return symbol_N

    def numbers(self, value_N: Array, bits: int) -> Array:
        for shift in range(0, bits, _BYTE):
            width = min(_BYTE, bits - shift)
            self.code((value_N >> shift) & (2**width - 1), uniform(2**width))
        return value_N

    def raw(self, value_N: Array) -> Array:
        self._raw.append(value_N.tobytes())
        return value_N

    def finish(self) -> bytes:
        """raw_size, varint; the raw bytes; 32-bit words, little-endian, of which the last is read first, without the zero
        bytes at its end.
        """
        coder = _constriction().stack.AnsCoder()
        for symbol_N, frequency_A in reversed(self._steps):
            coder.encode_reverse(symbol_N.astype(np.int32), _model(frequency_A, len(symbol_N)))
        raw = b"".join(self._raw)
        words: bytes = coder.get_compressed().astype("<u4").tobytes()
        return varint(len(raw)) + raw + words.rstrip(b"\0")


class Decoder:
    """Raises InputError as soon as the bytes are none that Encoder writes."""

    packs = False

    def __init__(self, data: bytes) -> None:
        raw_size, start = read_varint(data, 0)
        words = data[start + raw_size :]
        if raw_size > len(data) - start or words.endswith(b"\0"):
            raise corrupt("a tensor is cut short")
        self._raw, self._taken = data[start : start + raw_size], 0
        word_W = np.frombuffer(words + bytes(-len(words) % 4), "<u4").astype(np.uint32)
        self._coder = _constriction().stack.AnsCoder(word_W)

    def code(self, symbol_N: Array, frequency_A: Array) -> Array:
        if not len(symbol_N) or len(frequency_A) == 1:
            return np.zeros(len(symbol_N), np.int64)
        found: Array = self._coder.decode(_model(frequency_A, len(symbol_N)), len(symbol_N))
        return found

    def numbers(self, value_N: Array, bits: int) -> Array:
        found_N = np.zeros(len(value_N), np.int64)
        for shift in range(0, bits, _BYTE):
            found_N |= self.code(value_N, uniform(2 ** min(_BYTE, bits - shift))).astype(np.int64) << shift
        return found_N

    def raw(self, value_N: Array) -> Array:
        start, self._taken = self._taken, self._taken + value_N.nbytes
        if self._taken > len(self._raw):
            raise corrupt("a tensor is cut short")
        return np.frombuffer(self._raw[start : self._taken], value_N.dtype)

    def finish(self) -> None:
        """Raises InputError unless all was read: a stack that began empty ends empty."""
        if self._taken != len(self._raw) or not self._coder.is_empty():
            raise corrupt("a tensor does not end where it should")


def number(coder: Coder, value: int, bits: int) -> int:
    """One integer of so many bits."""
    return int(coder.numbers(np.array([value], np.int64), bits)[0])


def uniform(count: int) -> Array:
    """Equal frequencies; `count` is a power of two."""
    return np.full(count, 2**TOTAL_BITS // count, np.int64)


def bits_each(frequency_A: Array) -> Array:
    """What a symbol of each letter costs in bits, float64: the coder gives each at least 2^-24."""
    least = 2.0**-_STATE_BITS
    cost_A: Array = -np.log2(frequency_A / 2**TOTAL_BITS * (1 - len(frequency_A) * least) + least)
    return cost_A


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """The value, below 2^63, and the place behind it. Raises InputError when it does not end."""
    value = 0
    for shift in range(0, 63, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise corrupt("a number does not end")


def corrupt(why: str) -> InputError:
    """The one error for an archive that is not as it was written."""
    return InputError(f"The archive is damaged: {why}.", hint="Fetch or pack it again.")


def _model(frequency_A: Array, count: int) -> Any:
    return _constriction().model.Categorical(frequency_A.astype(np.float64), lazy=count < _LAZY, perfect=False)


def _constriction() -> Any:
    try:
        from constriction import stream
    except ImportError as error:
        raise InputError("Archives need the package constriction.", hint="pip install 'lighten[pack]'") from error
    return stream
