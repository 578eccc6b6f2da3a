"""Rules for operators that move positions: views, permutations, slices, concatenations.

Dimension key: none; the rules are about dimensions of any meaning.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from lighten.analyze.axes import Axis, Misfit, atom, product, quotient, reshape, split, take, total
from lighten.analyze.flow import Call, Dim, Origin, Result, Rule, Value, shapes, words
from lighten.analyze.pointwise import broadcast


def view(call: Call) -> Value:
    """The same elements in row-major order under other sizes."""
    value = call.operands()[0]
    result = _reshaped(call, value, call.sizes)
    for argument in ("size", "shape"):
        if argument in call.arguments:
            call.literal(argument, result.axes, "sizes")
    if call.name == "unflatten":
        first = value.index(call.arguments["dim"])
        call.literal("sizes", result.axes[first : first + len(call.arguments["sizes"])], "sizes")
    return result


def permuted(order: Callable[[Call, int], list[int]]) -> Rule:
    """The rule for an operator whose output dimension i is the operand's dimension order(call, number of dims)[i]."""

    def rule(call: Call) -> Value:
        value = call.operands()[0]
        return value.moved(value.dims[dim] for dim in order(call, len(value.dims)))

    return rule


def squeeze(call: Call) -> Value:
    """Drops dimensions of size 1: the listed ones, or all."""
    value = call.operands()[0]
    given = call.arguments.get("dim")
    listed = range(len(value.dims)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    dropped = {value.index(dim) for dim in listed if value.axes[dim].size == 1}
    return value.moved(dim for place, dim in enumerate(value.dims) if place not in dropped)


def unsqueeze(call: Call) -> Value:
    """Adds a dimension of size 1."""
    value = call.operands()[0]
    dims = list(value.dims)
    dims.insert(call.arguments["dim"] % (len(dims) + 1), Dim(atom(1)))
    return value.moved(dims)


def expand(call: Call) -> Value:
    """Repeats dimensions of size 1; how often can follow whatever the result meets."""
    value = call.operands()[0]
    dims = []
    for place, size in enumerate(call.sizes):
        back = place - len(call.sizes)
        old = value.dims[back] if -back <= len(value.dims) else None
        dims.append(old if old is not None and old.axis.size == size else Dim(atom(size)))
    call.literal("size", [dim.axis for dim in dims], "sizes")
    return value.moved(dims)


def expand_as(call: Call) -> Value:
    """Repeats dimensions of size 1 to the sizes of another tensor."""
    result = broadcast(call, [call.value("self"), call.value("other")], call.sizes)
    return Value(result.dims)


def repeat(call: Call) -> Value:
    """Tiles: copies x positions; how often can follow whatever the copies of one position meet."""
    value = call.operands()[0]
    axes = [*(atom(1) for _ in range(len(call.sizes) - len(value.dims))), *value.axes]
    counts = [quotient(size, axis.size) for size, axis in zip(call.sizes, axes, strict=True)]
    if None in counts:
        raise Misfit
    copies = [atom(count, "" if axis.size == 1 else call.why) for count, axis in zip(counts, axes, strict=True)]
    call.literal("repeats" if "repeats" in call.arguments else "dims", copies, "sizes")
    return Value(tuple(Dim(product(pair)) for pair in zip(copies, axes, strict=True)))


def repeat_interleave(call: Call) -> Value:
    """Positions x copies."""
    value = call.value("self")
    if call.arguments["dim"] is None or not isinstance(call.arguments.get("repeats"), int):
        raise Misfit
    dim = value.index(call.arguments["dim"])
    axis = product((value.axes[dim], atom(call.arguments["repeats"], call.why)))
    if call.arguments.get("output_size") is not None:
        call.literal("output_size", [axis], "size")
    return Value((*value.dims[:dim], Dim(axis), *value.dims[dim + 1 :]))


def slice_(call: Call) -> Value:
    """Positions from start up to end; every step-th of them where the dimension is whole steps long."""
    value = call.value("self")
    dim = value.index(call.arguments["dim"])
    old = value.dims[dim]
    if old.axis.size == call.sizes[dim]:
        return value
    start, length = call.arguments.get("start"), call.arguments.get("length")
    start = 0 if start is None else start
    size, step = old.axis.size, call.arguments.get("step", 1)
    if not isinstance(start, int) or not isinstance(size, int):
        return _cut_loose(call, value, dim)
    start = max(start + size, 0) if start < 0 else start
    try:
        axis = take(old.axis, start, start + call.sizes[dim]) if step == 1 else _every(call, old.axis, start)
    except Misfit:
        return _cut_loose(call, value, dim)
    if step == 1:
        call.literal("start", [old.axis], "bound")
        call.literal(*("end", [old.axis], "bound") if length is None else ("length", [axis], "size"))
    return value.moved((*value.dims[:dim], Dim(axis, old.origins), *value.dims[dim + 1 :]))


def select(call: Call) -> Value:
    """One position of a dimension, which is dropped."""
    value = call.value("self")
    dim = value.index(call.arguments["dim"])
    # one of which only the other sizes are asked may be any; the first and the last are there after every cut
    if call.arguments.get("index") not in (0, -1) or any(shapes(user) for user in call.node.users):
        call.fix(value.axes[dim], f"is taken apart position by position ({call.node.name})")
    return value.moved((*value.dims[:dim], *value.dims[dim + 1 :]))


def unbind(call: Call) -> Result:
    """All positions of a dimension, one by one."""
    return (select(call),) * len(shapes(call.node))


def split_apart(call: Call) -> Result:
    """Parts of a dimension, one after another."""
    value = call.value("self")
    dim = value.index(call.arguments.get("dim", 0))
    sizes = [shape[dim] for shape in shapes(call.node)]
    try:
        parts = _parts(value.axes[dim], sizes)
        call.literal("", parts, "parts")
    except Misfit:
        call.fix(value.axes[dim])
        parts = [atom(size, call.why) for size in sizes]
    origins = value.dims[dim].origins
    return tuple(value.moved((*value.dims[:dim], Dim(axis, origins), *value.dims[dim + 1 :])) for axis in parts)


def glu(call: Call) -> Value:
    """Two halves, multiplied: channel c of one meets channel c of the other."""
    value = call.value("self")
    dim = value.index(call.arguments["dim"])
    half = value.axes[dim].size // 2
    first, second = _parts(value.axes[dim], [half, half])
    call.unify(first, second)
    return Value((*value.dims[:dim], Dim(first), *value.dims[dim + 1 :]))


def concatenate(call: Call) -> Value:
    """One after another along a dimension; the other dimensions are the same."""
    values = [value for value in call.values("tensors") if len(value.dims) == len(call.sizes)]
    dim = call.arguments["dim"] % len(call.sizes)
    rest = [Value((*value.dims[:dim], *value.dims[dim + 1 :]), value.weight) for value in values]
    sizes = [size for place, size in enumerate(call.sizes) if place != dim]
    dims = list(broadcast(call, rest, sizes).dims)
    weight = all(value.weight for value in values)
    origins = frozenset[Origin]().union(*(value.dims[dim].origins for value in values)) if weight else frozenset()
    dims.insert(dim, Dim(total(value.axes[dim] for value in values), origins))
    return Value(tuple(dims), weight, call.common_points(values, call.sizes[dim]))


def stack(call: Call) -> Value:
    """One after another along a new dimension."""
    values = call.values("tensors")
    dim = call.arguments["dim"] % len(call.sizes)
    merged = broadcast(call, values, [size for place, size in enumerate(call.sizes) if place != dim])
    dims = list(merged.dims)
    dims.insert(dim, call.fixed(len(values)))
    return Value(tuple(dims), merged.weight, call.common_points(values, len(values)))


def pixel_shuffle(call: Call) -> Value:
    """Channels x r x r become channels, r times as high and wide (Shi et al. 2016, arXiv:1609.05158, eq. 4)."""
    value = call.value("self")
    channels, inside = split(value.axes[-3], call.arguments["upscale_factor"] ** 2)
    for axis in (inside, *value.axes[-2:]):
        call.fix(axis, "becomes height and width")
    size = [call.fixed(n, "is a height or width") for n in call.sizes[-2:]]
    return Value((*value.dims[:-3], Dim(channels), *size))


def pixel_unshuffle(call: Call) -> Value:
    """The inverse of the pixel shuffle."""
    value = call.value("self")
    inside = atom(call.arguments["downscale_factor"] ** 2, "is made of height and width")
    for axis in value.axes[-2:]:
        call.fix(axis, "becomes channels")
    size = [call.fixed(n, "is a height or width") for n in call.sizes[-2:]]
    return Value((*value.dims[:-3], Dim(product((value.axes[-3], inside))), *size))


def channel_shuffle(call: Call) -> Value:
    """Groups x channels become channels x groups (Zhang et al. 2018, arXiv:1707.01083, section 3.1)."""
    value = call.value("self")
    channels = value.axes[1]
    groups, inner = split(channels, channels.size // call.arguments["groups"])
    call.literal("groups", [groups], "size")
    return Value((value.dims[0], Dim(product((inner, groups))), *value.dims[2:]))


def _reshaped(call: Call, value: Value, sizes: Iterable[Any]) -> Value:
    """Dimensions equal at the front and at the back pass as they are, so that a misfit between does not reach them."""
    old, new = list(value.dims), list(sizes)
    front: list[Dim] = []
    tail: list[Dim] = []
    while old and new and old[-1].axis.size == new[-1]:
        tail.insert(0, old.pop())
        new.pop()
    while old and new and old[0].axis.size == new[0]:
        front.append(old.pop(0))
        new.pop(0)
    try:
        axes = reshape([dim.axis for dim in old], new)
    except Misfit:
        for dim in old:
            call.fix(dim.axis, f"is laid out in two ways that do not fit ({call.node.name})")
        axes = [atom(size, call.why) for size in new]
    between = (Dim(*pair) for pair in zip(axes, _overlapping(old, new), strict=True))
    return value.moved((*front, *between, *tail))


def _overlapping(old: list[Dim], new: list[Any]) -> list[frozenset[Origin]]:
    """For each new dimension the origins of the old ones whose strides it shares."""
    if not any(dim.origins for dim in old):
        return [frozenset()] * len(new)
    spans = _spans([dim.axis.size for dim in old])
    found = []
    for low, high in _spans(new):
        touched = [dim.origins for dim, (first, last) in zip(old, spans, strict=True) if max(low, first) < min(high, last)]
        found.append(frozenset[Origin]().union(*touched))
    return found


def _spans(sizes: list[Any]) -> list[tuple[Any, Any]]:
    spans, stride = [], 1
    for size in reversed(sizes):
        spans.append((stride, stride * size))
        stride = stride * size
    return spans[::-1]


def _parts(axis: Axis, sizes: Iterable[int]) -> list[Axis]:
    parts, start = [], 0
    for size in sizes:
        if not isinstance(size, int) or not isinstance(start, int):
            raise Misfit
        parts.append(take(axis, start, start + size))
        start += size
    return parts


def _every(call: Call, axis: Axis, start: int) -> Axis:
    """One position of each step, as where gates and values take turns."""
    if start >= call.arguments["step"]:
        raise Misfit
    outer, inner = split(axis, call.arguments["step"])
    call.fix(inner, f"is taken apart position by position ({call.node.name})")
    return outer


def _cut_loose(call: Call, value: Value, dim: int) -> Value:
    """The dimension is fixed and so is what came of it; the others pass."""
    call.fix(value.axes[dim])
    return value.moved((*value.dims[:dim], call.fixed(call.sizes[dim]), *value.dims[dim + 1 :]))


def _swap(call: Call, count: int) -> list[int]:
    first, second = (call.arguments[name] % count for name in _swapped(call))
    order = list(range(count))
    order[first], order[second] = second, first
    return order


def _swapped(call: Call) -> list[str]:
    return [name for name in call.arguments if re.fullmatch(r"(dim|axis)[01]", name)]


def _last_two(_: Call, count: int) -> list[int]:
    return [*range(count - 2), *range(count - 1, count - 3, -1)][:count] if count > 1 else list(range(count))


def _move(call: Call, count: int) -> list[int]:
    source, destination = call.arguments["source"], call.arguments["destination"]
    sources = [dim % count for dim in (source if isinstance(source, (list, tuple)) else [source])]
    places = [dim % count for dim in (destination if isinstance(destination, (list, tuple)) else [destination])]
    order = [dim for dim in range(count) if dim not in sources]
    for place, dim in sorted(zip(places, sources, strict=True)):
        order.insert(place, dim)
    return order


RULES: dict[str, Rule] = {
    **dict.fromkeys(words("view reshape _unsafe_view view_as reshape_as flatten unflatten"), view),
    "permute": permuted(lambda call, count: [dim % count for dim in call.arguments["dims"]]),
    **dict.fromkeys(words("transpose swapaxes swapdims"), permuted(_swap)),
    **dict.fromkeys(words("t mT adjoint"), permuted(_last_two)),
    "numpy_T": permuted(lambda call, count: list(range(count - 1, -1, -1))),
    **dict.fromkeys(words("movedim moveaxis"), permuted(_move)),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(words("expand broadcast_to"), expand),
    "expand_as": expand_as,
    **dict.fromkeys(words("repeat tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(words("slice narrow"), slice_),
    "select": select,
    "unbind": unbind,
    **dict.fromkeys(
        words("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes"), split_apart
    ),
    "glu": glu,
    **dict.fromkeys(words("cat concat concatenate"), concatenate),
    "stack": stack,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
}
