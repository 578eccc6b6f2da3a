"""A spec in words, and the bits that the file has for a weight under it."""

from collections import Counter

from lighten.core.plan import Plan
from lighten.core.spec import Codebook, Float, Keep, Quant, Spec

_FULL_BITS = 8
_PARTS = ("weights", "activations")
_FILE_BITS = (2, 4, 8, 16, 32)
_FLOAT_BITS = {"fp16": 16, "bf16": 16, "e2m1": 4, "nf4": 4}  # all others 8: ONNX has no codes of 6 bits


def label(spec: Spec) -> str:
    """A word or two."""
    if type(spec) is Float:
        scaled = "mx-" if spec.scale == "mx" else ""
        return f"{scaled}{spec.format} weights" + (f", blocks of {spec.block}" if spec.block else "")
    if type(spec) is Codebook:
        return f"{spec.bits}-bit codebook"
    if type(spec) is not Quant:
        return "float"
    few = f"{spec.weights}-bit weights" if spec.weights not in (None, _FULL_BITS) else ""
    if spec.activations is None:
        groups = f" in groups of {spec.group}" if spec.group else ""
        return (few or "int8 weights") + groups + ("" if spec.symmetric else " with zero points")
    kind = "int8 dynamic" if spec.dynamic else "int8"
    levels = f"{spec.activations}-bit activations" if spec.activations != _FULL_BITS else ""
    return ", ".join(word for word in (kind, few, levels) if word)


def stored_bits(spec: Spec) -> int:
    """Of a weight's code in the file."""
    if type(spec) is Float:
        return _FLOAT_BITS.get(spec.format, _FULL_BITS)
    bits = 32 if type(spec) is Keep else spec.bits if type(spec) is Codebook else getattr(spec, "weights", None) or _FULL_BITS
    return next(width for width in _FILE_BITS if bits <= width)


def is_for_weights_alone(spec: Spec) -> bool:
    """True where only the weight is in few bits: what the runtime does with it is then worth saying."""
    return type(spec) in (Float, Codebook) or (type(spec) is Quant and spec.activations is None)


def name_of(plan: Plan) -> str:
    """What the plan mostly does with activations; with weights, where it leaves those in float."""
    forms = [spec for spec in plan.values() if type(spec) is not Keep]
    if forms and all(is_for_weights_alone(spec) for spec in forms):
        return Counter(label(spec) for spec in forms).most_common(1)[0][0]
    quants = [spec for spec in plan.values() if type(spec) is Quant]
    if not quants:
        return "float32"
    dynamic = any(spec.dynamic for spec in quants)
    static = any(spec.activations is not None and not spec.dynamic for spec in quants)
    kind = "int8 dynamic" if dynamic else "int8" if static else "int8 weights"
    fewest = {part: min((getattr(spec, part) or _FULL_BITS for spec in quants), default=_FULL_BITS) for part in _PARTS}
    return ", ".join([kind, *(f"{bits}-bit {part}" for part, bits in fewest.items() if bits < _FULL_BITS)])
