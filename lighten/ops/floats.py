"""Floating formats of 4 to 8 bits with a scale for each block, and half precision.

A format of at most 8 bits is a table from bit pattern to value, so every one is rounded alike: to the nearest value, a tie to
the pattern whose last bit is 0 (half to even), what lies beyond the table to its end. x' = scale * table[code].

* e4m3, e5m2: fp8 (Micikevicius et al. 2022, arXiv:2209.05433); the patterns are those of torch.float8_e4m3fn and float8_e5m2.
* e2m3, e3m2: fp6; e2m1: fp4; int8 with six binary places: the other elements of MX blocks (OCP Microscaling Formats v1.0,
  section 5.3), in which 32 values share a power of two, stored as its exponent (E8M0, a byte).
* nf4: the sixteen quantiles of a normal distribution (QLoRA, arXiv:2305.14314, section 3), for blocks of 64.

Dimension key: O rows, K columns, G blocks of a row, R rows that have a scale of their own, V values of a format.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lighten.ops.grids import SMALLEST_SCALE, in_groups, sharing_rows
from lighten.ops.packing import packed_bytes

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Format:
    """values: what each bit pattern stands for; NaN where that is no finite number. bits: width of a pattern, 4 to 8."""

    bits: int
    values: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest value, which is also the magnitude that an absmax scale sends the largest weight to."""
        return max(filter(math.isfinite, self.values))


@dataclass(frozen=True)
class Blocks:
    """Values of one format, shape O x K seen as O x G x K/G. scale: (O, G, 1) or (1, 1, 1), in the type it is stored in.
    format: a key of FORMATS.
    """

    format: str
    scale: Tensor

    @property
    def bits(self) -> int:
        """The width of a code: 4 to 8."""
        return FORMATS[self.format].bits

    def stored_bytes(self, num_values: int) -> int:
        """Packed codes, and the scales in their own type."""
        return packed_bytes(num_values, self.bits) + self.scale.numel() * self.scale.element_size()


def minifloat(exponent_bits: int, mantissa_bits: int, num_special: int = 0) -> Format:
    """Sign, exponent with bias 2^(exponent_bits - 1) - 1, mantissa, subnormals; the last num_special patterns of either sign
    are not finite.
    """
    bias = 2 ** (exponent_bits - 1) - 1
    positive: list[float] = []
    for pattern in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, mantissa = divmod(pattern, 2**mantissa_bits)
        significand = mantissa / 2**mantissa_bits + (exponent > 0)
        positive.append(significand * 2.0 ** (max(exponent, 1) - bias))
    positive[len(positive) - num_special :] = [math.nan] * num_special
    return Format(1 + exponent_bits + mantissa_bits, (*positive, *(-value for value in positive)))


def normal_float(bits: int = 4) -> Format:
    """Quantiles of N(0, 1), scaled to [-1, 1]: 2^(bits-1) positive ones, zero, and one negative one less; codes ascend.

    The outermost probability is between those of the two halves, 1 - (1/30 + 1/32) / 2 for four bits, as in the authors' code
    (bitsandbytes, create_normal_map); the paper's equation 4 alone would give two zeros.
    """
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (2 * half) + 1 / (2 * half - 1)) / 4
    positive, negative = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1]) for count in (half, half - 1)
    )
    ordered = torch.cat([-negative, torch.zeros(1, dtype=torch.float64), positive.flip(0)])
    return Format(bits, tuple((ordered / ordered.max()).tolist()))


FORMATS = {
    "e4m3": minifloat(4, 3, num_special=1),
    "e5m2": minifloat(5, 2, num_special=4),
    "e3m2": minifloat(3, 2),
    "e2m3": minifloat(2, 3),
    "e2m1": minifloat(2, 1),
    "int8": Format(8, tuple((code - 256 * (code > 127)) / 64 for code in range(256))),
    "nf4": normal_float(),
}


def half(x: Tensor, name: str) -> Tensor:
    """x in "fp16" or "bf16", to nearest even; beyond the largest finite value it saturates instead of becoming infinite."""
    limits = torch.finfo(HALVES[name])
    return x.clamp(limits.min, limits.max).to(HALVES[name])


def fit(w_OK: Tensor, *, format: str, block: int | None = None, per: str = "channel", scale: str = "absmax") -> Blocks:
    """The scales for a matrix. format: a key of FORMATS. block: columns that share a scale. per: "channel" or "tensor".

    scale: "absmax" sends the largest magnitude of a block to the format's largest value; "mx" is the power of two
    2^(floor(log2 absmax) - floor(log2 largest)) of OCP MX v1.0, section 6.3, under which the largest magnitudes of a block may
    saturate (above 3/4 of the next power of two, for e2m1); "one" takes values as they are. The standard's blocks are of 32.
    Raises ValueError when the columns do not split into blocks.
    """
    values_RM = sharing_rows(w_OK, block, per)
    scale_R1 = SCALES[scale](values_RM.abs().amax(1, keepdim=True), FORMATS[format].largest)
    return Blocks(format, scale_R1.reshape(1 if per == "tensor" else len(w_OK), -1, 1))


def encode(w_OK: Tensor, blocks: Blocks) -> Tensor:
    """Bit patterns, uint8, shape O x K. Minus zero becomes zero, for zero has one pattern here; NaN the largest value."""
    pattern_V, value_V = _ascending(FORMATS[blocks.format], w_OK.device)
    # bucketize sends a boundary to the value below it; where the one above is even, the boundary moves down by one float
    middle_V = (value_V[1:] + value_V[:-1]) / 2
    lower_V = torch.nextafter(middle_V, torch.full_like(middle_V, -torch.inf))
    boundary_V = torch.where(pattern_V[:-1] % 2 == 0, middle_V, lower_V)
    scaled_OGK = in_groups(w_OK, blocks.scale) / blocks.scale.float()
    return pattern_V[torch.bucketize(scaled_OGK, boundary_V, out_int32=True)].reshape(w_OK.shape)


def decode(codes_OK: Tensor, blocks: Blocks) -> Tensor:
    """scale * table[code], float32, shape O x K."""
    value_V = torch.tensor(FORMATS[blocks.format].values, device=codes_OK.device)
    return (in_groups(value_V[codes_OK.int()], blocks.scale) * blocks.scale.float()).reshape(codes_OK.shape)


def nearest(w_OK: Tensor, *, format: str, block: int | None = None, per: str = "channel", scale: str = "absmax") -> Tensor:
    """w_OK rounded to the nearest values that `fit` gives for the same knobs, float32."""
    blocks = fit(w_OK, format=format, block=block, per=per, scale=scale)
    return decode(encode(w_OK, blocks), blocks)


def with_scales(blocks: Blocks, dtype: torch.dtype) -> Blocks:
    """The blocks with their scales rounded to `dtype`, as they will be stored. Encode with these."""
    return replace(blocks, scale=blocks.scale.clamp_min(torch.finfo(dtype).tiny).to(dtype))


def _absmax(peak_R1: Tensor, largest: float) -> Tensor:
    return (peak_R1 / largest).clamp_min(SMALLEST_SCALE)


def _mx(peak_R1: Tensor, largest: float) -> Tensor:
    # frexp's mantissa is in [1/2, 1): its exponent is floor(log2) + 1, exactly
    exponent_R1 = torch.frexp(peak_R1).exponent - torch.frexp(torch.tensor(largest)).exponent
    return torch.ldexp(torch.ones_like(peak_R1), exponent_R1.clamp(-127, 127)).to(torch.float8_e8m0fnu)


def _one(peak_R1: Tensor, largest: float) -> Tensor:
    return torch.ones_like(peak_R1)


SCALES: dict[str, Callable[[Tensor, float], Tensor]] = {"absmax": _absmax, "mx": _mx, "one": _one}


def _ascending(format: Format, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patterns of the finite values without minus zero, uint8, and the values, ascending."""
    pairs = [(value, code) for code, value in enumerate(format.values) if math.isfinite(value)]
    values, codes = zip(*sorted(pair for pair in pairs if pair[0] or math.copysign(1, pair[0]) > 0), strict=True)
    return torch.tensor(codes, dtype=torch.uint8, device=device), torch.tensor(values, device=device)
