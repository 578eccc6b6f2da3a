"""Class names found in data, in the order of the model's outputs."""

import difflib
import re
from collections.abc import Iterable

from torch import Tensor

from lighten.core.errors import InputError

_MOST_CLASSES = 100_000
_UNNAMED = re.compile(r"LABEL_\d+")  # what a Hugging Face configuration calls classes that were given no name
_WORDNET = re.compile(r"n\d{8}")  # the folders of ImageNet; its outputs are in their order


def classes(found: Iterable[str], own: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes in output order, and the output of each found name. own: as the model names its outputs, () when unknown.

    The model's names when every found one is among them, whatever its case; numbers are positions in them; otherwise, and only
    where the model names nothing, the found names in alphabetical order. Raises InputError for a name that the model does not
    have.
    """
    names = sorted(set(found))
    if len(names) == len(own) and all(_WORDNET.fullmatch(name) for name in names):
        return own, {name: index for index, name in enumerate(names)}
    labels = _labels(names, own)
    exact = {label: index for index, label in enumerate(labels)}
    lower = {label.lower(): index for index, label in reversed(list(enumerate(labels)))}
    return labels, {name: _place(name, exact, lower) for name in names}


def _labels(names: list[str], own: tuple[str, ...]) -> tuple[str, ...]:
    known = {name.lower() for name in own}
    if all(name.lower() in known for name in names):
        return own
    if all(name.isdecimal() for name in names):
        return _numbered(1 + max(int(name) for name in names), own)
    if not all(_UNNAMED.fullmatch(name) for name in own):
        raise _unknown(next(name for name in names if name.lower() not in known), own)
    return tuple(names)


def _place(name: str, exact: dict[str, int], lower: dict[str, int]) -> int:
    """By the name as it is, then whatever its case; what is neither is a number."""
    found = exact.get(name, lower.get(name.lower()))
    return int(name) if found is None else found


def _unknown(name: str, own: tuple[str, ...]) -> InputError:
    near = difflib.get_close_matches(name, own, n=1)
    few = f"{', '.join(own[:5])}{', ...' if len(own) > 5 else ''}"
    hint = f"Did you mean {near[0]!r}?" if near else f"Its classes are {few}; numbers from 0 are read as positions."
    return InputError(f"The model has no class {name!r}.", hint=hint)


def squeezed(targets: Tensor) -> Tensor:
    """Class numbers one a row, N, also where they come as N x 1. Real targets as they are."""
    is_column = not targets.is_floating_point() and targets.dim() == 2 and targets.shape[1] == 1
    return targets[:, 0] if is_column else targets


def _numbered(count: int, own: tuple[str, ...]) -> tuple[str, ...]:
    if count > _MOST_CLASSES:
        raise InputError(f"A label is {count - 1}, which is no class number.", hint="Classes are numbered from 0.")
    return own if len(own) >= count else tuple(str(index) for index in range(count))
