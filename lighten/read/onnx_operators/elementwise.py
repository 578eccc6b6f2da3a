"""Operators that work on each element by itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_normalize import torch_type
from lighten.read.onnx_operators.numbers import ON_NUMBERS, each, is_numbers, like, to_tensor

_SHIFTS = {"LEFT": torch.bitwise_left_shift, "RIGHT": torch.bitwise_right_shift}


def binary(name: str, a: Any, b: Any) -> Any:
    """One of _BINARY; on numbers alone in Python, where it can be."""
    if is_numbers(a) and is_numbers(b) and name in ON_NUMBERS:
        return each(ON_NUMBERS[name], a, b)
    if is_numbers(a) and is_numbers(b):
        a, b = to_tensor(a), to_tensor(b)
    if is_numbers(a) and name in ("Add", "Mul"):
        a, b = b, a  # exporters know a number only behind the tensor
    # a plain number goes with a tensor of any type
    a = like(a, b) if isinstance(a, list) or (is_numbers(a) and name in _TENSORS_ONLY) else a
    b = like(b, a) if isinstance(b, list) or (is_numbers(b) and name in _TENSORS_ONLY) else b
    return _BINARY[name](a, b)


def unary(name: str, x: Any) -> Any:
    """One of _UNARY; on numbers in Python, where it can be."""
    if is_numbers(x) and name in ON_NUMBERS:
        return each(ON_NUMBERS[name], x)
    return _UNARY[name](to_tensor(x))


def cast(x: Any, dtype: torch.dtype) -> Any:
    """Real numbers are cut towards zero; sizes stay numbers."""
    if isinstance(x, Tensor):
        return x.to(dtype)
    if dtype in (torch.int32, torch.int64):
        return each(lambda item: item if isinstance(item, int | torch.SymInt) and not isinstance(item, bool) else int(item), x)
    if dtype == torch.float32:
        return each(lambda item: item * 1.0, x)
    if dtype == torch.bool:
        return each(lambda item: item != 0, x)
    return to_tensor(x).to(dtype)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b."""
    if is_numbers(condition) and is_numbers(a) and is_numbers(b):
        return each(lambda chosen, one, other: one if chosen else other, condition, a, b)
    if is_numbers(a) and is_numbers(b):
        a = to_tensor(a)
    a, b = like(a, b), like(b, a)
    return torch.where(to_tensor(condition, dtype=torch.bool), a, b)


def clip(x: Any, low: Any, high: Any) -> Any:
    """Between the limits; None for none. The upper limit wins where they cross."""
    if is_numbers(x):
        x = to_tensor(x)
    if low == 0 and high == 6 and is_numbers(low) and is_numbers(high):
        return functional.relu6(x)
    if is_numbers(low) and is_numbers(high):
        return x if low is None and high is None else torch.clamp(x, _scalar(low), _scalar(high))
    low, high = (None if limit is None else like(limit, x) for limit in (low, high))
    return torch.clamp(x, low, high)


def variadic(name: str, *values: Any) -> Any:
    """Sum, Mean, Max or Min of any number of tensors."""
    total = values[0]
    for value in values[1:]:
        total = binary({"Sum": "Add", "Mean": "Add"}.get(name, name), total, value)
    return total / len(values) if name == "Mean" else total


def prelu(x: Tensor, slope: Any) -> Tensor:
    """x where it is positive, else slope x; the slope broadcasts as in numpy."""
    return torch.where(x < 0, x * slope, x)


def activation(name: str, x: Tensor, *, a: float, b: float) -> Tensor:
    """One of _ACTIVATIONS, with its two settings."""
    return _ACTIVATIONS[name](to_tensor(x), a, b)


def softmax(name: str, x: Tensor, dim: int, *, flat: bool) -> Tensor:
    """Softmax, LogSoftmax or Hardmax. flat: over all dimensions from `dim` on together, as before version 13."""
    wide = x.flatten(dim if dim >= 0 else x.dim() + dim) if flat and x.dim() else x
    dim = -1 if flat else dim
    if name == "Hardmax":
        found = functional.one_hot(wide.argmax(dim), wide.shape[dim]).movedim(-1, dim).to(x.dtype)
    else:
        found = torch.softmax(wide, dim) if name == "Softmax" else torch.log_softmax(wide, dim)
    return found.reshape(x.shape) if flat else found


def is_infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where x is an infinity of a sign that is asked for."""
    return ((x == float("inf")) & positive) | ((x == float("-inf")) & negative)


def shift(x: Tensor, bits: Tensor, direction: str) -> Tensor:
    """Of unsigned integers; torch shifts only some types, so as int64."""
    return _SHIFTS[direction](x.to(torch.int64), to_tensor(bits).to(torch.int64)).to(x.dtype)


def remainder(x: Any, y: Any, *, of_dividend: bool) -> Any:
    """of_dividend: with the sign of x, as in C; else that of y, as in Python."""
    if is_numbers(x) and is_numbers(y) and not of_dividend:
        return each(ON_NUMBERS["Mod"], x, y)
    x, y = like(x, y), like(y, x)
    return torch.fmod(x, y) if of_dividend else torch.remainder(x, y)


def _scalar(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _divide(a: Any, b: Any) -> Tensor:
    kind = a.dtype if isinstance(a, Tensor) else b.dtype
    return torch.div(a, b) if kind.is_floating_point else torch.div(a, b, rounding_mode="trunc")


def _power(a: Any, b: Any) -> Tensor:
    """Of the base's type."""
    found: Tensor = torch.pow(a, b)
    return found.to(a.dtype) if isinstance(a, Tensor) else found


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Sub": lambda a, b: a - b,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": _power,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_TENSORS_ONLY = frozenset(_BINARY) - {"Add", "Mul", "Pow"}  # the others take plain numbers too
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name.lower()) for name in ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos")
    },
    **{name: getattr(torch, name.lower()) for name in ("Cosh", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Relu")},
    **{name: getattr(torch, name.lower()) for name in ("Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh")},
    "Identity": lambda x: x,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "IsNaN": torch.isnan,
    "Softsign": functional.softsign,
    "Mish": functional.mish,
    "HardSwish": functional.hardswish,
}
_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "LeakyRelu": lambda x, a, b: functional.leaky_relu(x, a),
    "Elu": lambda x, a, b: functional.elu(x, a),
    "Selu": lambda x, a, b: b * functional.elu(x, a),
    "Celu": lambda x, a, b: functional.celu(x, a),
    "Softplus": lambda x, a, b: functional.softplus(x),
    "ThresholdedRelu": lambda x, a, b: torch.where(x > a, x, 0.0),
    "HardSigmoid": lambda x, a, b: functional.hardsigmoid(x) if a == 1 / 6 and b == 0.5 else torch.clamp(x * a + b, 0, 1),
    "Shrink": lambda x, a, b: torch.where(x < -a, x + b, torch.where(x > a, x - b, torch.zeros_like(x))),
    "Swish": lambda x, a, b: functional.silu(x) if a == 1 else x * torch.sigmoid(a * x),
    "Gelu": lambda x, a, b: functional.gelu(x, approximate="tanh" if a else "none"),
}


def _two(step: Step, build: Build) -> Value:
    return build.emit(binary, step.op_type, *step.inputs[:2])


def _one(step: Step, build: Build) -> Value:
    return build.emit(unary, step.op_type, step.input(0))


def _settings(
    first: tuple[str, float] | None = None, second: tuple[str, float] | None = None
) -> Callable[[Step, Build], Value]:
    def add(step: Step, build: Build) -> Value:
        a, b = (0.0 if entry is None else step.get(*entry) for entry in (first, second))
        a = 1 / 6 if abs(a - 1 / 6) < 1e-6 else a  # float32 of a sixth
        return build.emit(activation, step.op_type, step.input(0), a=a, b=b)

    return add


def _gelu(step: Step, build: Build) -> Value:
    x = step.input(0) if step.input(1) is None else build.emit(binary, "Add", *step.inputs[:2])
    is_tanh = step.op_type == "FastGelu" or step.get("approximate", "none") == "tanh"
    return build.emit(activation, "Gelu", x, a=float(is_tanh), b=0.0)


def _cast(step: Step, build: Build) -> Value:
    return build.emit(cast, step.input(0), torch_type(step.get("to")))


def _cast_like(step: Step, build: Build) -> Value:
    return build.emit(_as_type_of, *step.inputs)


def _as_type_of(x: Any, other: Any) -> Any:
    return cast(x, to_tensor(other).dtype)


def _clip(step: Step, build: Build) -> Value:
    low, high = step.setting("min", 1), step.setting("max", 2)
    return build.emit(clip, step.input(0), *(_number(limit) for limit in (low, high)))


def _number(limit: Value) -> Value:
    return limit.item() if isinstance(limit, Tensor) and limit.numel() == 1 else limit


def _several(step: Step, build: Build) -> Value:
    if len(step.inputs) == 1:
        return step.input(0)
    return build.emit(variadic, step.op_type, *step.inputs)


def _softmax(step: Step, build: Build) -> Value:
    flat = step.opset < 13
    return build.emit(softmax, step.op_type, step.input(0), step.get("axis", 1 if flat else -1), flat=flat)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    **dict.fromkeys((name for name in _BINARY if name not in ("Max", "Min")), _two),
    **dict.fromkeys(_UNARY, _one),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), _several),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    "LeakyRelu": _settings(("alpha", 0.01)),
    "Elu": _settings(("alpha", 1.0)),
    "Selu": _settings(("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805)),
    "Celu": _settings(("alpha", 1.0)),
    "Softplus": _settings(),
    "ThresholdedRelu": _settings(("alpha", 1.0)),
    "HardSigmoid": _settings(("alpha", 0.2), ("beta", 0.5)),
    "Shrink": _settings(("lambd", 0.5), ("bias", 0.0)),
    "Swish": _settings(("alpha", 1.0)),
    "Gelu": _gelu,
    "com.microsoft::Gelu": _gelu,
    "com.microsoft::FastGelu": _gelu,
    "com.microsoft::BiasGelu": _gelu,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "PRelu": lambda step, build: build.emit(prelu, *step.inputs),
    "Where": lambda step, build: build.emit(where, *step.inputs),
    "Mod": lambda step, build: build.emit(remainder, *step.inputs, of_dividend=bool(step.get("fmod", 0))),
    "BitShift": lambda step, build: build.emit(shift, *step.inputs, step.get("direction")),
    "IsInf": lambda step, build: build.emit(
        is_infinite, step.input(0), bool(step.get("detect_negative", 1)), bool(step.get("detect_positive", 1))
    ),
}
