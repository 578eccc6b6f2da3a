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

    weights: bits of the stored weight, 8 or 7, symmetric, one scale per output channel; None for a site that has no weight. 7
    bits take a byte too: their products cannot saturate where a processor adds two of them in 16 bits.
    activations: bits of what flows in, 8, affine, one scale per tensor; None stores the weight small but computes in float.
    dynamic: True takes the activation range from each input at run time, False from calibration.
    """

    weights: int | None = 8
    activations: int | None = 8
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.weights not in (None, 7, 8):
            raise InputError(f"Quant weights must be 8 bits, 7 or None. Got {self.weights!r}.")
        if self.activations not in (None, 8):
            raise InputError(f"Quant activations must be 8 bits or None. Got {self.activations!r}.")
        if self.weights is None and self.activations is None:
            raise InputError("Quant without weights and without activations changes nothing.", hint="Use Keep().")
        if self.dynamic and self.activations is None:
            raise InputError("Quant(dynamic=True) needs activations=8.", hint="Use dynamic=False for weights only.")


Spec = Keep | Quant
_KINDS: dict[str, type[Keep] | type[Quant]] = {"keep": Keep, "quant": Quant}


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
