"""Rules for operators that take positions by number: tables, indexing, experts that a router picks.

Dimension key: none; the rules are about dimensions of any meaning.
"""

import torch
from torch import fx

from lighten.analyze.axes import Misfit, atom
from lighten.analyze.flow import Call, Dim, Rule, Value, words
from lighten.analyze.pointwise import broadcast


def embedding(call: Call) -> Value:
    """Rows of a table, chosen by number."""
    table, indices = call.value("weight"), call.value("indices")
    call.look_up(table.dims[0], indices)
    call.use(table.dims[1], "out", "embedding")
    return Value((*(Dim(axis) for axis in indices.axes), Dim(table.axes[1])))


def index(call: Call) -> Value:
    """Positions chosen by tensors of numbers: their dimensions stand where the first chosen one stood, or in front."""
    value = call.value("self")
    given = call.arguments["indices"]
    chosen = [place for place, item in enumerate(given) if isinstance(item, fx.Node)]
    indices = call.values("indices")
    if any(item.meta["val"].dtype == torch.bool for item in given if item is not None):
        return _masked(call, value, chosen, indices)
    for place, numbers in zip(chosen, indices, strict=True):
        call.look_up(value.dims[place], numbers)
    rows_of_weight = value.weight and all(numbers.points for numbers in indices)
    count = max(len(item.dims) for item in indices)
    first = chosen[0] if chosen == list(range(chosen[0], chosen[-1] + 1)) else 0
    kept = [dim if rows_of_weight else Dim(dim.axis) for place, dim in enumerate(value.dims) if place not in chosen]
    where = [Dim(axis) for axis in broadcast(call, indices, call.sizes[first : first + count]).axes]
    return Value((*kept[:first], *where, *kept[first:]), rows_of_weight)


def _masked(call: Call, value: Value, chosen: list[int], masks: list[Value]) -> Value:
    """A mask takes the place of as many dimensions as it has, and leaves one of a length that only the run knows."""
    if len(chosen) != 1:
        raise Misfit
    first, count = chosen[0], len(masks[0].dims)
    for ours, theirs in zip(value.axes[first : first + count], masks[0].axes, strict=True):
        call.unify(ours, theirs)
        call.fix(ours, "is chosen by a mask")
    kept = [Dim(dim.axis) for dim in value.dims]
    return Value((*kept[:first], call.fixed(call.sizes[first]), *kept[first + count :]))


def index_select(call: Call) -> Value:
    """Positions of one dimension chosen by a list of numbers."""
    value, numbers = call.value("self"), call.value("index")
    dim = value.index(call.arguments["dim"])
    call.look_up(value.dims[dim], numbers)
    rows_of_weight = value.weight and numbers.points is not None
    passed = [item if rows_of_weight else Dim(item.axis) for item in value.dims]
    return Value((*passed[:dim], Dim(numbers.axes[0]), *passed[dim + 1 :]), rows_of_weight)


def gather(call: Call) -> Value:
    """Along one dimension, each by a number of its own; the others are the same where they are as long."""
    value, numbers = call.value("self"), call.value("index")
    _meet_numbers(call, value, numbers)
    return Value(tuple(Dim(axis) for axis in numbers.axes))


def scatter(call: Call) -> Value:
    """Writes to one dimension, each to a number of its own; the others are the same where they are as long."""
    value, numbers = call.value("self"), call.value("index")
    _meet_numbers(call, value, numbers)
    if call.has("src"):
        for ours, theirs in zip(call.value("src").axes, numbers.axes, strict=True):
            call.unify(ours, theirs)
    return Value(tuple(Dim(axis) for axis in value.axes))


def _meet_numbers(call: Call, value: Value, numbers: Value) -> None:
    dim = value.index(call.arguments["dim"])
    for place, (ours, theirs) in enumerate(zip(value.axes, numbers.axes, strict=True)):
        if place == dim:
            call.look_up(value.dims[dim], numbers)
        elif ours.size != theirs.size:
            call.fix(ours)
            call.fix(theirs)
        else:
            call.unify(ours, theirs)


def one_hot(call: Call) -> Value:
    """1 at each number's own position of a new dimension, 0 elsewhere."""
    numbers, axis = call.value("self"), atom(call.sizes[-1])
    call.look_up(Dim(axis), numbers)
    call.literal("num_classes", [axis], "size")
    return Value((*(Dim(other) for other in numbers.axes), Dim(axis)))


RULES: dict[str, Rule] = {
    "embedding": embedding,
    "index": index,
    "index_select": index_select,
    "gather": gather,
    **dict.fromkeys(words("scatter scatter_add"), scatter),
    "one_hot": one_hot,
}
