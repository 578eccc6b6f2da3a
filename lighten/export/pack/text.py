"""Bytes that are no tensor: text, JSON, the skeleton of a file. LZMA, without a container, its three settings in one byte."""

import lzma
from typing import Any

from lighten.export.pack.coder import corrupt

_SETTINGS = ((3, 0, 2), (3, 0, 0), (4, 0, 0), (0, 0, 0))
"""lc, lp and pb that are tried: the usual ones, and three for text."""
_QUICK = 1 << 18  # larger texts are tried with one setting only
_WINDOW = 1 << 23


def squeeze(data: bytes) -> bytes:
    """One byte of settings, then the LZMA1 stream with its end mark; only the byte 255 and the data where that is shorter."""
    settings = _SETTINGS if len(data) <= _QUICK else _SETTINGS[1:2]
    tries = [bytes([_byte(*one)]) + lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(*one)) for one in settings]
    return min([b"\xff" + data, *tries], key=len)


def expand(packed: bytes, size: int) -> bytes:
    """Exactly `size` bytes, never more in memory. Raises InputError otherwise."""
    if not packed:
        raise corrupt("a text is missing")
    settings, body = packed[0], packed[1:]
    try:
        data = body if settings == 0xFF else _expand(body, settings, size)
    except (lzma.LZMAError, ValueError, EOFError) as error:
        raise corrupt("a text cannot be read") from error
    if len(data) != size:
        raise corrupt("a text has not its stated size")
    return data


def _expand(body: bytes, settings: int, size: int) -> bytes:
    lc, rest = settings % 9, settings // 9
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(lc, rest % 5, rest // 5))
    data = decompressor.decompress(body, max_length=size + 1)
    if not decompressor.eof and len(data) == size:
        data += decompressor.decompress(b"", max_length=1)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError
    return data


def _byte(lc: int, lp: int, pb: int) -> int:
    """As in the header of an .lzma file."""
    return (pb * 5 + lp) * 9 + lc


def _filters(lc: int, lp: int, pb: int) -> list[dict[str, Any]]:
    if lc + lp > 4 or pb > 4:
        raise ValueError
    setting = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _WINDOW}
    return [{**setting, "lc": lc, "lp": lp, "pb": pb}]
