"""The symbols of a tensor under frequencies that depend on where a symbol stands and on what came before it.

A tensor is seen as a grid of O x I x R: its first dimension, its second, and all further ones together. A symbol's context
is made of two things. Its class: each axis gives each of its indices one of a few classes, so that rows and columns of many
zeros or of large codes have frequencies of their own. Its state: the grid is cut into groups of g neighbours along one axis,
and the activity of the symbols before it in its group, which is how far they lie from the symbol that means zero, says what
to expect; patterns such as 2:4, blocks, and the kernels of a convolution become cheap so.
Dimension key: N symbols, O, I, R the grid, J groups, G places in a group, A letters, C contexts, T thresholds.
"""

from dataclasses import dataclass, field

import numpy as np

from lighten.export.pack.coder import Array, Coder, corrupt, number
from lighten.export.pack.tables import code_table

Dims = tuple[int, int, int]

MOST_CLASSES = 16
MOST_CONTEXTS = 4096
MOST_GROUP = 255
FULL = 0
"""A number of thresholds: each place in the group and each activity, of zeros and ones, is a state of its own."""

_NO_CLASSES = (np.zeros(1, np.int64),) * 3


@dataclass(frozen=True)
class Groups:
    """Groups of `size` neighbours along `axis` of the grid; thresholds, shape (T,), or FULL of them."""

    axis: int
    size: int
    threshold_T: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def num_states(self) -> int:
        return self.size * (self.size + 1) // 2 if len(self.threshold_T) == FULL else len(self.threshold_T) + 2

    def split(self, grid_OIR: Array) -> Array:
        """Shape (J, G): the groups in the order of the grid."""
        dims = grid_OIR.shape
        parts = (*dims[: self.axis], dims[self.axis] // self.size, self.size, *dims[self.axis + 1 :])
        return np.moveaxis(grid_OIR.reshape(parts), self.axis + 1, -1).reshape(-1, self.size)

    def join(self, group_JG: Array, dims: Dims) -> Array:
        """What `split` took apart, shape (O, I, R)."""
        rest = (*dims[: self.axis], dims[self.axis] // self.size, *dims[self.axis + 1 :], self.size)
        return np.moveaxis(group_JG.reshape(rest), -1, self.axis + 1).reshape(dims)

    def states(self, activity_J: Array, place: int) -> Array:
        """The state of the symbols at one place in their groups."""
        if len(self.threshold_T) == FULL:
            return activity_J + place * (place + 1) // 2
        if place == 0:
            return np.zeros(len(activity_J), np.int64)
        return 1 + np.searchsorted(self.threshold_T, (activity_J << 4) // place, side="right")


@dataclass(frozen=True)
class Contexts:
    """classes: one array an axis, shapes (O,), (I,), (R,), or (1,) where the axis has no classes. groups: None without
    states.
    """

    classes: tuple[Array, Array, Array] = _NO_CLASSES
    groups: Groups | None = None

    @property
    def num_classes(self) -> int:
        return int(np.prod([one.max(initial=0) + 1 for one in self.classes]))

    @property
    def num_contexts(self) -> int:
        return self.num_classes * (1 if self.groups is None else self.groups.num_states)

    def class_OIR(self, dims: Dims) -> Array:
        """The class of each place in the grid."""
        class_O, class_I, class_R = self.classes
        num_I, num_R = class_I.max(initial=0) + 1, class_R.max(initial=0) + 1
        mixed = (class_O[:, None, None] * num_I + class_I[:, None]) * num_R + class_R
        return np.broadcast_to(mixed.astype(np.uint16), dims)


@dataclass(frozen=True)
class Letters:
    """The alphabet: how many letters, and the one that means zero."""

    count: int
    zero: int = 0


def code_stream(coder: Coder, symbol_N: Array, dims: Dims, *, letters: Letters, contexts: Contexts) -> Array:
    """All symbols of a grid, N = O I R, in C order.

    symbol_N and contexts are read when packing only; the result is the symbols in both directions.
    """
    contexts = _code_contexts(coder, contexts, dims)
    class_OIR = contexts.class_OIR(dims)
    groups = contexts.groups
    if groups is None:
        context_N = class_OIR.ravel()
        tables = _code_tables(coder, symbol_N, context_N, (contexts.num_contexts, letters.count))
        return _code_by_context(coder, symbol_N, context_N, tables)
    symbol_JG, class_JG = groups.split(symbol_N.reshape(dims)), groups.split(class_OIR)
    context_JG = class_JG
    if coder.packs:
        context_JG = states_of(symbol_JG, groups, letters) * contexts.num_classes + class_JG
    tables = _code_tables(coder, symbol_JG.ravel(), context_JG.ravel(), (contexts.num_contexts, letters.count))
    found_JG = _code_groups(coder, symbol_JG, class_JG, tables, groups=groups, letters=letters)
    return groups.join(found_JG, dims).ravel()


def code_chosen(coder: Coder, symbol_N: Array, dims: Dims, *, chosen: Array, letters: Letters, contexts: Contexts) -> Array:
    """The symbols of N chosen places of the grid, whose flat indices are `chosen`, in rising order."""
    contexts = _code_contexts(coder, contexts, dims)
    context_N = contexts.class_OIR(dims).ravel()[chosen] if contexts.num_classes > 1 else np.zeros(len(chosen), np.uint16)
    tables = _code_tables(coder, symbol_N, context_N, (contexts.num_contexts, letters.count))
    return _code_by_context(coder, symbol_N, context_N, tables)


def counted(symbol_N: Array, context_N: Array, shape: tuple[int, int]) -> Array:
    """How often each letter comes in each context, shape (C, A)."""
    mixed_N = context_N * np.int64(shape[1]) + symbol_N if shape[0] > 1 else symbol_N
    return np.bincount(mixed_N, minlength=shape[0] * shape[1]).reshape(shape)


def states_of(symbol_JG: Array, groups: Groups, letters: Letters) -> Array:
    """The states of known symbols, shape (J, G), int64."""
    # place by place, each in one run of memory
    distance_GJ = np.abs(np.ascontiguousarray(symbol_JG.T).astype(np.int64) - letters.zero)
    state_GJ, activity_J = np.empty_like(distance_GJ), np.zeros(len(symbol_JG), np.int64)
    for place in range(groups.size):
        state_GJ[place] = groups.states(activity_J, place)
        activity_J += distance_GJ[place]
    return state_GJ.T


def _code_groups(
    coder: Coder, symbol_JG: Array, class_JG: Array, tables: list[Array | None], *, groups: Groups, letters: Letters
) -> Array:
    """Place by place, since the state of one needs the symbols before it."""
    num_classes = len(tables) // groups.num_states
    found_JG = np.empty(symbol_JG.shape, np.int32)
    activity_J = np.zeros(len(symbol_JG), np.int64)
    for place in range(groups.size):
        context_J = groups.states(activity_J, place) * num_classes + class_JG[:, place]
        found_JG[:, place] = _code_by_context(coder, symbol_JG[:, place], context_J, tables)
        activity_J += np.abs(found_JG[:, place] - letters.zero)
    return found_JG


def _code_by_context(coder: Coder, symbol_N: Array, context_N: Array, tables: list[Array | None]) -> Array:
    """All symbols of context 0, then those of context 1, and so on."""
    if len(tables) == 1 and tables[0] is not None:
        return coder.code(symbol_N, tables[0])
    order_N = np.argsort(context_N.astype(np.uint16), kind="stable")  # a radix sort, linear in N
    sorted_N, start = symbol_N[order_N], 0
    found_N = np.empty(len(symbol_N), np.int32)
    for table, count in zip(tables, np.bincount(context_N, minlength=len(tables)), strict=True):
        if count and table is None:
            raise corrupt("a symbol has no frequencies")
        if count and table is not None:
            found_N[order_N[start : start + count]] = coder.code(sorted_N[start : start + count], table)
        start += count
    return found_N


def _code_tables(coder: Coder, symbol_N: Array, context_N: Array, shape: tuple[int, int]) -> list[Array | None]:
    """A bit for each of several contexts says whether it comes at all."""
    count_CA = counted(symbol_N, context_N, shape) if coder.packs else np.zeros(shape, np.int64)
    present_C = coder.numbers((count_CA.sum(1) > 0).astype(np.int64), 1) if len(count_CA) > 1 else np.ones(1, np.int64)
    return [code_table(coder, count_A) if present else None for count_A, present in zip(count_CA, present_C, strict=True)]


def _code_contexts(coder: Coder, contexts: Contexts, dims: Dims) -> Contexts:
    any_contexts = number(coder, contexts.num_classes > 1 or contexts.groups is not None, 1)
    if not any_contexts:
        return Contexts()
    groups = _code_groups_shape(coder, contexts.groups, dims)
    class_O, class_I, class_R = (_code_classes(coder, one, size) for one, size in zip(contexts.classes, dims, strict=True))
    found = Contexts((class_O, class_I, class_R), groups)
    if found.num_contexts > MOST_CONTEXTS:
        raise corrupt("it has too many contexts")
    return found


def _code_groups_shape(coder: Coder, groups: Groups | None, dims: Dims) -> Groups | None:
    """Axis (2 bits, 3: no groups), size (8), number of thresholds (4), and the thresholds (16 each), which rise."""
    axis = number(coder, 3 if groups is None else groups.axis, 2)
    if axis == 3:
        return None
    given = groups or Groups(axis, 1)
    size = number(coder, given.size, 8)
    threshold_T = coder.numbers(np.resize(given.threshold_T, number(coder, len(given.threshold_T), 4)), 16)
    if size < 2 or dims[axis] % size or (np.diff(threshold_T) < 0).any():
        raise corrupt("its groups do not fit")
    return Groups(axis, size, threshold_T)


def _code_classes(coder: Coder, class_X: Array, size: int) -> Array:
    """Number of classes less 1 (4 bits), and where there are several, a table and the class of each index."""
    num_classes = 1 + number(coder, int(class_X.max(initial=0)), 4)
    if num_classes == 1:
        return np.zeros(1, np.int64)
    class_X = np.resize(class_X, size)
    table = code_table(coder, np.bincount(class_X, minlength=num_classes))
    found_X = coder.code(class_X, table).astype(np.int64)
    if found_X.max(initial=0) + 1 != num_classes:
        raise corrupt("a class is missing")
    return found_X
