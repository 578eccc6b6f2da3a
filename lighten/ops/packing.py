"""Codes of 1 to 8 bits, packed without gaps into bytes, and back: exact for every width and length.

Little-endian: code n takes the bits n B to n B + B - 1 of the stream, the lowest first, and bit i of the stream is bit i mod 8
of byte i // 8. At 4 bits the even codes are the low nibbles, as ONNX int4 has them. Eight codes fill exactly B bytes.
Dimension key: N codes, B bits of a code, W words of eight codes.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(num_codes: int, bits: int) -> int:
    """Bytes that `num_codes` codes take; the unused bits of the last one are zeros."""
    return (num_codes * bits + 7) // 8


def pack(codes: Tensor, bits: int, *, low: int = 0) -> Tensor:
    """uint8, shape (packed_bytes,): the codes in the order of `flatten`, each less `low`.

    codes: integers in [low, low + 2^bits - 1], any shape. low: the grid's lowest code.
    Raises ValueError when bits are not 1 to 8 or a code is out of range.
    """
    _check_width(bits)
    lowest, highest = (int(codes.min()), int(codes.max())) if codes.numel() else (low, low)
    if lowest < low or highest >= low + 2**bits:
        raise ValueError(f"Codes of {bits} bits lie in [{low}, {low + 2**bits - 1}]. Got {lowest} to {highest}.")
    offset_N = codes.flatten().to(torch.int16) - low
    word_W = pad(offset_N.to(torch.uint8), (0, -len(offset_N) % 8)).view(torch.int64)
    for step in _FOLDS:
        fields = _fields(bits * step, step)
        word_W = (word_W & fields) | ((word_W >> 8 * step) & fields) << bits * step
    return word_W.view(torch.uint8).view(-1, 8)[:, :bits].flatten()[: packed_bytes(len(offset_N), bits)]


def unpack(packed: Tensor, bits: int, *, num_codes: int, low: int = 0) -> Tensor:
    """The codes, shape (num_codes,): int8, or uint8 where low = 0.

    Raises ValueError when `packed` does not hold `packed_bytes(num_codes, bits)` bytes.
    """
    _check_width(bits)
    if packed.numel() != packed_bytes(num_codes, bits):
        raise ValueError(f"{num_codes} codes of {bits} bits take {packed_bytes(num_codes, bits)} bytes. Got {packed.numel()}.")
    bytes_WB = pad(packed.flatten(), (0, -packed.numel() % bits)).view(-1, bits)
    word_W = pad(bytes_WB, (0, 8 - bits)).view(torch.int64).flatten()
    for step in reversed(_FOLDS):
        fields = _fields(bits * step, step)
        word_W = (word_W & fields) | ((word_W >> bits * step) & fields) << 8 * step
    codes_N = word_W.view(torch.uint8)[:num_codes]
    return codes_N if low == 0 else (codes_N.to(torch.int16) + low).to(torch.int8)


_FOLDS = (1, 2, 4)
"""A word of eight codes, one a byte, closes up in three folds: codes to pairs, pairs to fours, fours to eight."""


def _fields(width: int, step: int) -> int:
    """A mask of 64 bits: `width` ones at the bottom of each 2 `step` bytes."""
    return sum(((1 << width) - 1) << start for start in range(0, 64, 16 * step))


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"Codes have 1 to 8 bits. Got {bits}.")
