"""What a tensor becomes: a representation, never an algorithm (how to get there is a Method's business).

A site is a place in the traced graph: a layer by its module path (`layers.0.conv`) or, for an operator without weights, by its
node name (`add_3`).
"""

from dataclasses import asdict, dataclass
from typing import Any, final

from lighten.core.errors import InputError


@final
@dataclass(frozen=True)
class Keep:
    """The site stays in float."""


@final
@dataclass(frozen=True)
class Quant:
    """Integers on a uniform grid: x' = scale * (q - zero).

    weights: bits of the stored weight, 1 to 8, with one scale per output channel; None for a site that has no weight. 7 bits
    take a byte too: their products cannot saturate where a processor adds two of them in 16 bits.
    activations: bits of what flows in, 1 to 8, affine, one scale per tensor; None stores weights small but computes in float.
    dynamic: True takes the activation range from each input at run time, False from calibration.
    group: input columns of a weight that share a scale, None for whole rows. symmetric: False gives weights zero points.
    """

    weights: int | None = 8
    activations: int | None = 8
    dynamic: bool = False
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.weights is not None:
            _check_bits("Quant weights", self.weights)
        if self.activations is not None:
            _check_bits("Quant activations", self.activations)
        _check_size("Quant group", self.group)
        if self.weights is None and self.activations is None:
            raise InputError("Quant without weights and without activations changes nothing.", hint="Use Keep().")
        if self.dynamic and self.activations is None:
            raise InputError("Quant(dynamic=True) needs activations=8.", hint="Use dynamic=False for weights only.")
        if self.weights is None and (self.group is not None or not self.symmetric):
            raise InputError("Quant(weights=None) has no weight for a group or for zero points.")


@final
@dataclass(frozen=True)
class Float:
    """Weights in a floating format. format: one of FLOAT_FORMATS. block: input columns that share a scale, None for whole rows;
    half precision has no scale. scale: "absmax", or "mx", a power of two (OCP MX, with block=32).
    """

    format: str
    block: int | None = None
    scale: str = "absmax"

    def __post_init__(self) -> None:
        if self.format not in FLOAT_FORMATS:
            raise InputError(f"Float format must be one of {', '.join(FLOAT_FORMATS)}. Got {self.format!r}.")
        if self.scale not in ("absmax", "mx"):
            raise InputError(f"Float scale must be absmax or mx. Got {self.scale!r}.")
        _check_size("Float block", self.block)
        if self.format in ("fp16", "bf16") and (self.block is not None or self.scale != "absmax"):
            raise InputError(f"Float({self.format!r}) has no scale, so neither block nor scale applies.")


@final
@dataclass(frozen=True)
class Codebook:
    """Each weight is one of 2^bits values. bits: 1 to 8. rows, columns: of the parts of a weight, seen as output channels by
    everything else, that have a codebook of their own; None for all.
    """

    bits: int
    rows: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        _check_bits("Codebook bits", self.bits)
        _check_size("Codebook rows", self.rows)
        _check_size("Codebook columns", self.columns)


FLOAT_FORMATS = ("fp16", "bf16", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8", "nf4")
Spec = Keep | Quant | Float | Codebook
_KINDS: dict[str, type[Keep] | type[Quant] | type[Float] | type[Codebook]] = {
    "keep": Keep,
    "quant": Quant,
    "float": Float,
    "codebook": Codebook,
}


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data: {"kind": "quant", "weights": 8, ...}."""
    kind = next(name for name, cls in _KINDS.items() if cls is type(spec))
    return {"kind": kind, **asdict(spec)}


def from_dict(fields: dict[str, Any]) -> Spec:
    """The inverse of `to_dict`. Raises InputError on an unknown kind or field."""
    rest = dict(fields)
    kind = rest.pop("kind", None)
    if kind not in _KINDS:
        raise InputError(f"Unknown spec kind {kind!r}; known: {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](**rest)
    except TypeError as error:
        raise InputError(f"Spec {kind!r} does not take {sorted(rest)}: {error}.") from error


def _check_bits(what: str, bits: int) -> None:
    if type(bits) is not int or not 1 <= bits <= 8:
        raise InputError(f"{what} must be a whole number from 1 to 8. Got {bits!r}.")


def _check_size(what: str, size: int | None) -> None:
    if size is not None and (type(size) is not int or size < 1):
        raise InputError(f"{what} must be a whole number of 1 or more, or None. Got {size!r}.")
