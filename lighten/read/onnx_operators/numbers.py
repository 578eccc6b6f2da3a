"""Sizes as Python numbers: what files compute with shapes, without tensors.

A number, or a list of numbers for a vector. Each may be symbolic while torch.export traces.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Numbers = Any  # a number or a list of numbers
_INTEGERS = (int, torch.SymInt)


def is_numbers(value: Any) -> bool:
    """Whether it is no tensor."""
    return not isinstance(value, Tensor)


def to_tensor(value: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor; a tensor stays as it is. dtype: of numbers; else int64, float32 or bool as they are."""
    if isinstance(value, Tensor):
        return value
    flat = value if isinstance(value, list | tuple) else [value]
    dtype = dtype or _dtype(flat)
    if not any(isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool) for item in flat):
        return torch.tensor(list(value) if isinstance(value, list | tuple) else value, dtype=dtype)
    made = [torch.scalar_tensor(item, dtype=dtype) for item in flat]
    return torch.stack(made) if isinstance(value, list | tuple) else made[0]


def like(value: Any, other: Any) -> Tensor:
    """Numbers as a tensor of the other's type."""
    return to_tensor(value, dtype=other.dtype if isinstance(other, Tensor) else None)


def sizes(value: Any) -> list[Any]:
    """A list of sizes; a tensor's values, where it has any."""
    if isinstance(value, Tensor):
        return list(value.reshape(-1).tolist())
    return list(value) if isinstance(value, list | tuple) else [value]


def size(value: Any) -> Any:
    """One number."""
    if isinstance(value, Tensor):
        return value.reshape(()).item()
    return value[0] if isinstance(value, list | tuple) else value


def each(function: Callable[..., Any], *values: Numbers) -> Numbers:
    """The function for each number; one number, or a list of one, goes with every number of a list."""
    length = max((len(value) for value in values if isinstance(value, list | tuple)), default=None)
    if length is None:
        return function(*values)
    wide = [value if isinstance(value, list | tuple) else [value] for value in values]
    if any(len(value) not in (1, length) for value in wide):
        raise ValueError(f"lists of {[len(value) for value in wide]} numbers do not go together")
    return [function(*(value[index if len(value) > 1 else 0] for value in wide)) for index in range(length)]


def _dtype(flat: Any) -> torch.dtype:
    if flat and all(isinstance(item, bool | torch.SymBool) for item in flat):
        return torch.bool
    if any(isinstance(item, float | torch.SymFloat) for item in flat):
        return torch.float32
    return torch.int64


def _divide(a: Any, b: Any) -> Any:
    """Integers are divided towards zero."""
    if not (isinstance(a, _INTEGERS) and isinstance(b, _INTEGERS)):
        return a / b
    is_plain = isinstance(a, int) and isinstance(b, int)
    return -(-a // b) if is_plain and (a < 0) != (b < 0) else a // b


ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divide,
    "Pow": operator.pow,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Xor": operator.ne,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
    "Mod": operator.mod,
    "Neg": operator.neg,
    "Abs": abs,
    "Not": operator.not_,
    "Floor": lambda a: math.floor(a) if not isinstance(a, _INTEGERS) else a,
    "Ceil": lambda a: math.ceil(a) if not isinstance(a, _INTEGERS) else a,
    "Identity": lambda a: a,
}
