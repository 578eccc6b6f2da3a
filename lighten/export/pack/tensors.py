"""One tensor's bytes to a part of the archive and back.

What is coded, in order: the source (2 bits), which says how elements become symbols; whether zeros come first (1 bit), and if
so the stream that tells them from the others; then the streams of the elements, or of those that are not zero.
Sources: RAW, the bytes themselves; CODES, integers of up to 8 bits less the least; VALUES, a list of the distinct elements,
and indices into it; PLANES, the bytes of the elements, lowest first, each a stream of its own or raw. Floats in planes are
turned left by one bit, so that the exponent fills a byte.
Dimension key: N elements, V distinct values, Z elements that are not zero.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from lighten.export.pack.coder import Array, Coder, Decoder, Encoder, corrupt, number
from lighten.export.pack.fit import fit_chosen, fit_stream
from lighten.export.pack.kinds import Kind, element_bytes, elements, ordered, rotated
from lighten.export.pack.streams import Contexts, Dims, Letters, code_chosen, code_stream

RAW, CODES, VALUES, PLANES = range(4)

MOST_VALUES = 4096
_PROBE = 1 << 14  # elements in which distinct values are first counted: sorting all of a large tensor takes longer than coding
_EXACT = 1 << 14  # up to so many elements all ways are carried out and the shortest taken; above, the estimate decides
_FEW = 512  # in a small tensor many distinct values may still be few
_NEAR = 1.1  # the estimate knows only about what tables cost
_INCOMPRESSIBLE = 0.995  # low bytes of a mantissa are noise: coding them would only cost time
_FEWEST_ZEROS = 0.05  # a mask for fewer zeros does not pay

_TWO = Letters(2)


@dataclass(frozen=True)
class Way:
    """How a tensor is coded. Read when packing; blank when unpacking.

    mask, streams: the contexts of the mask and of each stream, None for a plane kept raw. value_V: of VALUES. bits: the
    estimate.
    """

    source: int
    split: bool = False
    mask: Contexts = field(default_factory=Contexts)
    streams: tuple[Contexts | None, ...] = ()
    value_V: Array = field(default_factory=lambda: np.zeros(1, np.uint8))
    bits: float = 0.0

    @property
    def has_contexts(self) -> bool:
        return any(one is not None and one.num_contexts > 1 for one in (self.mask, *self.streams))

    def plain(self) -> "Way":
        return replace(self, mask=Contexts(), streams=tuple(one and Contexts() for one in self.streams))


@dataclass(frozen=True)
class Layout:
    """kind: of the elements. dims: the grid O x I x R that they fill."""

    kind: Kind
    dims: Dims

    @property
    def num_elements(self) -> int:
        return self.dims[0] * self.dims[1] * self.dims[2]

    @property
    def num_bytes(self) -> int:
        return self.kind.num_bytes(self.num_elements)


def layout_of(kind: Kind, shape: tuple[int, ...]) -> Layout:
    """First dimension, second, all further ones together; missing ones are 1."""
    first, second, *rest = (*shape, 1, 1)
    return Layout(kind, (int(first), int(second), int(np.prod(rest, dtype=np.int64))))


def encode(data: bytes, layout: Layout) -> bytes:
    """The part that `decode` turns into `data` again."""
    pattern_N = elements(data, layout.kind, layout.num_elements)
    if element_bytes(pattern_N, layout.kind) != data:  # bits behind the last element are set
        return _raw(data)
    ways = _ways(pattern_N, layout)
    least = min((way.bits for way in ways), default=np.inf)
    if least >= 8 * len(data):
        return _raw(data)
    if len(pattern_N) > _EXACT:
        return _carry_out(pattern_N, layout, min(ways, key=lambda way: way.bits))
    near = [way for way in ways if way.bits <= least * _NEAR]
    plain = [way.plain() for way in near if way.has_contexts]
    return min([_raw(data), *(_carry_out(pattern_N, layout, way) for way in (*near, *plain))], key=len)


def decode(part: bytes, layout: Layout) -> bytes:
    """layout.num_bytes bytes. Raises InputError when `part` is not what `encode` writes."""
    decoder = Decoder(part)
    blank_N = np.zeros(layout.num_elements, f"<u{max(1, layout.kind.bits // 8)}")
    source = number(decoder, RAW, 2)
    if source == RAW:
        data = decoder.raw(np.zeros(layout.num_bytes, np.uint8)).tobytes()
    else:
        data = element_bytes(_code_tensor(decoder, blank_N, layout, Way(source)), layout.kind)
    decoder.finish()
    return data


def _raw(data: bytes) -> bytes:
    encoder = Encoder()
    number(encoder, RAW, 2)
    encoder.raw(np.frombuffer(data, np.uint8))
    return encoder.finish()


def _carry_out(pattern_N: Array, layout: Layout, way: Way) -> bytes:
    encoder = Encoder()
    number(encoder, way.source, 2)
    _code_tensor(encoder, pattern_N, layout, way)
    return encoder.finish()


def _code_tensor(coder: Coder, pattern_N: Array, layout: Layout, way: Way) -> Array:
    if not len(pattern_N):
        raise corrupt("a tensor without elements is not raw")
    code = {CODES: _code_codes, VALUES: _code_listed, PLANES: _code_planes}[way.source]
    return code(coder, pattern_N, layout, way)


def _code_codes(coder: Coder, pattern_N: Array, layout: Layout, way: Way) -> Array:
    """Least and greatest code (8 bits each), then the codes less the least."""
    kind = layout.kind
    if kind.bits > 8:
        raise corrupt("its elements are too wide for codes")
    symbol_N = ordered(pattern_N, kind).astype(np.int64)
    low, high = number(coder, int(symbol_N.min()), 8), number(coder, int(symbol_N.max()), 8)
    if not low <= high < 2**kind.bits:
        raise corrupt("its codes are out of range")
    found_N = low + _code_split(coder, symbol_N - low, layout, letters=_code_letters(low, high, kind), way=way)
    return ordered(found_N.astype(np.uint8), kind)


def _code_listed(coder: Coder, pattern_N: Array, layout: Layout, way: Way) -> Array:
    """Number of values less 1 (12 bits), the values as raw bytes, rising as unsigned integers, then the indices."""
    count = 1 + number(coder, len(way.value_V) - 1, 12)
    value_V = coder.raw(np.resize(way.value_V.astype(pattern_N.dtype), count))
    if (value_V[1:] <= value_V[:-1]).any() or int(value_V[-1]) >= 2**layout.kind.bits:
        raise corrupt("its values do not rise")
    return value_V[_code_split(coder, np.searchsorted(value_V, pattern_N), layout, letters=Letters(count), way=way)]


def _code_letters(low: int, high: int, kind: Kind) -> Letters:
    """Zero, or what is nearest to it."""
    zero = 1 << (kind.bits - 1) if kind.is_signed else 0
    return Letters(high - low + 1, min(max(zero - low, 0), high - low))


def _code_split(coder: Coder, symbol_N: Array, layout: Layout, *, letters: Letters, way: Way) -> Array:
    """One stream, or first the mask of what is not zero and then a stream of that, its letters without zero."""
    contexts = way.streams[0] or Contexts() if way.streams else Contexts()
    if not number(coder, way.split, 1):
        return code_stream(coder, symbol_N, layout.dims, letters=letters, contexts=contexts)
    if letters.count < 2:
        raise corrupt("it holds nothing but zeros")
    chosen = _code_mask(coder, symbol_N != letters.zero, layout, way)
    rest_Z = symbol_N[chosen]
    others = _others(letters)
    rest_Z = code_chosen(coder, rest_Z - (rest_Z > letters.zero), layout.dims, chosen=chosen, letters=others, contexts=contexts)
    found_N = np.full(len(symbol_N), letters.zero, np.int64)
    found_N[chosen] = rest_Z + (rest_Z >= letters.zero)
    return found_N


def _others(letters: Letters) -> Letters:
    """Without zero; what lies next to where it was counts as small."""
    return Letters(letters.count - 1, min(letters.zero, letters.count - 2))


def _code_mask(coder: Coder, mask_N: Array, layout: Layout, way: Way) -> Array:
    """Flat indices of what is not zero."""
    found_N = code_stream(coder, mask_N.astype(np.int64), layout.dims, letters=_TWO, contexts=way.mask)
    return np.flatnonzero(found_N)


def _code_planes(coder: Coder, pattern_N: Array, layout: Layout, way: Way) -> Array:
    kind, dims = layout.kind, layout.dims
    if kind.bits < 16:
        raise corrupt("its elements are too narrow for planes")
    turned_N = rotated(pattern_N, kind)
    found_N, chosen = np.zeros_like(turned_N), None
    if number(coder, way.split, 1):
        chosen = _code_mask(coder, _is_value(turned_N, kind), layout, way)
        _code_signs(coder, turned_N, found_N, chosen=chosen, layout=layout)
    turned_Z = turned_N if chosen is None else turned_N[chosen]
    found_Z = np.zeros_like(turned_Z)
    for plane in range(kind.bits // 8):
        contexts = way.streams[plane] if way.streams else None
        byte_Z = (turned_Z >> turned_Z.dtype.type(8 * plane)).astype(np.uint8)
        found = _code_plane(coder, byte_Z, dims, chosen=chosen, contexts=contexts)
        found_Z |= found.astype(turned_Z.dtype) << turned_Z.dtype.type(8 * plane)
    if chosen is None:
        return rotated(found_Z, kind, back=True)
    found_N[chosen] = found_Z
    return rotated(found_N, kind, back=True)


def _is_value(turned_N: Array, kind: Kind) -> Array:
    """True where an element is not zero, of either sign."""
    is_value_N: Array = turned_N > (1 if kind.is_float else 0)
    return is_value_N


def _code_signs(coder: Coder, turned_N: Array, found_N: Array, *, chosen: Array, layout: Layout) -> None:
    """Weights times a mask hold negative zeros, which must come back. A bit says whether there are any."""
    if not layout.kind.is_float:
        return
    is_zero_N = np.ones(len(turned_N), bool)
    is_zero_N[chosen] = False
    zeros = np.flatnonzero(is_zero_N)
    if number(coder, bool(turned_N[zeros].any()), 1):
        signs = turned_N[zeros]
        found_N[zeros] = code_chosen(coder, signs, layout.dims, chosen=zeros, letters=_TWO, contexts=Contexts())


def _code_plane(coder: Coder, byte_Z: Array, dims: Dims, *, chosen: Array | None, contexts: Contexts | None) -> Array:
    """Raw where the first bit says so."""
    if number(coder, contexts is None, 1):
        return coder.raw(byte_Z)
    letters, contexts = Letters(256), contexts or Contexts()
    if chosen is None:
        return code_stream(coder, byte_Z, dims, letters=letters, contexts=contexts)
    return code_chosen(coder, byte_Z, dims, chosen=chosen, letters=letters, contexts=contexts)


def _ways(pattern_N: Array, layout: Layout) -> list[Way]:
    """What can code these elements, each with fitted contexts and its price."""
    kind = layout.kind
    if not len(pattern_N):
        return []
    if kind.bits <= 8:
        symbol_N = ordered(pattern_N, kind).astype(np.int64)
        low, high = int(symbol_N.min()), int(symbol_N.max())
        return _symbol_ways(symbol_N - low, layout, _code_letters(low, high, kind), Way(CODES, bits=19.0))
    value_V = _distinct(pattern_N)
    if value_V is not None:
        start = Way(VALUES, value_V=value_V, bits=15.0 + kind.bits * len(value_V))
        listed = _symbol_ways(np.searchsorted(value_V, pattern_N), layout, Letters(len(value_V)), start)
        return [*listed, *_plane_ways(pattern_N, layout)]
    return _plane_ways(pattern_N, layout)


def _distinct(pattern_N: Array) -> Array | None:
    """The distinct elements, None where there are too many to list, which a sample of those that are not zero tells first."""
    probe = pattern_N[:: len(pattern_N) // _PROBE + 1]
    probe = probe[probe != 0]
    if len(np.unique(probe)) > min(MOST_VALUES, max(_FEW, len(probe) // 2)):
        return None
    value_V = np.unique(pattern_N)
    return value_V if len(value_V) <= MOST_VALUES else None


def _symbol_ways(symbol_N: Array, layout: Layout, letters: Letters, start: Way) -> list[Way]:
    """Without and, where zeros are many, with a mask."""
    fit = fit_stream(symbol_N, layout.dims, letters)
    ways = [replace(start, streams=(fit.contexts,), bits=start.bits + fit.bits)]
    mask_N = symbol_N != letters.zero
    if letters.count > 2 and np.count_nonzero(mask_N) <= (1 - _FEWEST_ZEROS) * len(mask_N):
        chosen = np.flatnonzero(mask_N)
        mask = fit_stream(mask_N.astype(np.int64), layout.dims, _TWO)
        rest_Z = symbol_N[chosen]
        rest = fit_chosen(rest_Z - (rest_Z > letters.zero), layout.dims, _others(letters), chosen=chosen)
        bits = start.bits + mask.bits + rest.bits
        ways.append(replace(start, split=True, mask=mask.contexts, streams=(rest.contexts,), bits=bits))
    return ways


def _plane_ways(pattern_N: Array, layout: Layout) -> list[Way]:
    turned_N = rotated(pattern_N, layout.kind)
    mask_N = _is_value(turned_N, layout.kind)
    if np.count_nonzero(mask_N) > (1 - _FEWEST_ZEROS) * len(mask_N):
        streams, bits = _fit_planes(turned_N, layout, None)
        return [Way(PLANES, streams=streams, bits=bits)]
    chosen = np.flatnonzero(mask_N)
    mask = fit_stream(mask_N.astype(np.int64), layout.dims, _TWO)
    streams, bits = _fit_planes(turned_N[chosen], layout, chosen)
    signs = len(mask_N) - len(chosen) if turned_N[~mask_N].any() else 0
    return [Way(PLANES, split=True, mask=mask.contexts, streams=streams, bits=bits + mask.bits + signs)]


def _fit_planes(turned_Z: Array, layout: Layout, chosen: Array | None) -> tuple[tuple[Contexts | None, ...], float]:
    letters = Letters(256)
    streams: list[Contexts | None] = []
    total = 0.0
    for plane in range(layout.kind.bits // 8):
        byte_Z = (turned_Z >> turned_Z.dtype.type(8 * plane)).astype(np.uint8)
        plain_Z, raw_bits = byte_Z.astype(np.int64), 8.0 * len(byte_Z)
        fit = fit_stream(plain_Z, layout.dims, letters) if chosen is None else None
        fit = fit or fit_chosen(plain_Z, layout.dims, letters, chosen=chosen if chosen is not None else plain_Z)
        pays = fit.bits < _INCOMPRESSIBLE * raw_bits
        streams.append(fit.contexts if pays else None)
        total += fit.bits if pays else raw_bits
    return tuple(streams), total
