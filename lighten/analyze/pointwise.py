"""Rules for operators that keep positions apart: element by element, reductions, norms, softmax, pooling, new tensors.

Dimension key: none; the rules are about dimensions of any meaning.
"""

from collections.abc import Iterable

from lighten.analyze.axes import Axis, Misfit, atom, split, total
from lighten.analyze.flow import Call, Dim, Result, Rule, Value, words

_SPATIAL = "is slid over by a window, or resized"


def pointwise(call: Call) -> Value:
    """Dimensions of equal place, counted from the back, are the same; those of size 1 are repeated."""
    return broadcast(call, call.operands(), call.sizes)


def broadcast(call: Call, operands: list[Value], sizes: Iterable[object]) -> Value:
    """The value of `sizes` that the operands give together."""
    targets = list(sizes)
    weight = all(operand.weight for operand in operands)
    dims = []
    for place, size in enumerate(targets):
        back = place - len(targets)
        meeting = [operand.dims[back] for operand in operands if -back <= len(operand.dims)]
        dims.append(_meet(call, [dim for dim in meeting if dim.axis.size == size], weight) or Dim(atom(1)))
    return Value(tuple(dims), weight)


def _meet(call: Call, dims: list[Dim], weight: bool) -> Dim | None:
    if not dims:
        return None
    for other in dims[1:]:
        call.unify(dims[0].axis, other.axis)
    origins = frozenset[tuple[str, int]]().union(*(dim.origins for dim in dims)) if weight else frozenset()
    return Dim(dims[0].axis, origins)


def same_as_first(call: Call) -> Value:
    """The first tensor's dimensions, whatever the others are."""
    first = call.operands()[0]
    return Value(first.dims, first.weight)


def same_numbers(call: Call) -> Value:
    """The first tensor, perhaps in another type or memory."""
    return call.operands()[0]


def reduction(call: Call) -> Result:
    """Drops the reduced dimensions, or leaves them with size 1; the place of a largest is a position of the reduced one."""
    if call.has("other"):
        return pointwise(call)
    (value,) = call.operands()
    given = call.arguments.get("dim")
    listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    reduced = {value.index(dim) for dim in listed} or set(range(len(value.dims)))
    keep = bool(call.arguments.get("keepdim"))
    left = [Dim(atom(1)) if dim in reduced else old for dim, old in enumerate(value.dims) if keep or dim not in reduced]
    result = Value(tuple(left), value.weight)
    if call.name in ("var_mean", "std_mean"):
        return result, result
    if given is None or call.name not in ("max", "min", "argmax", "argmin"):
        return result
    place = Value(result.dims, points=value.axes[value.index(given)])
    return place if call.name.startswith("arg") else (result, place)


def largest(call: Call) -> Result:
    """The k largest along a dimension, and their positions: it needs k of them, whichever they are."""
    value = call.value("self")
    dim, count = value.index(call.arguments["dim"]), call.arguments["k"]
    axis = value.axes[dim]
    call.flow.floors.append((axis, count))
    dims = (*value.dims[:dim], call.fixed(count, "numbers the largest"), *value.dims[dim + 1 :])
    return Value(dims), Value(dims, points=axis)


def new_tensor(call: Call) -> Value:
    """A constant of one number: its sizes can follow whatever it meets."""
    axes = [atom(size) for size in call.sizes]
    if "size" not in call.arguments:
        raise Misfit
    call.literal("size", axes, "sizes")
    return Value(tuple(Dim(axis) for axis in axes))


def along_channels(call: Call) -> Value:
    """Batch and instance normalization, PReLU: vectors along dimension 1."""
    (value,) = [call.value(name) for name in ("input", "self") if call.has(name)]
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = call.value(name) if call.has(name) else None
        if vector is not None and vector.axes[0].size != 1:
            call.unify(value.axes[min(1, len(value.dims) - 1)], vector.axes[0])
    return value


def last_dims_norm(call: Call) -> Result:
    """Layer and root-mean-square normalization over the last dimensions."""
    value = call.value("input")
    count = len(call.arguments["normalized_shape"])
    call.literal("normalized_shape", value.axes[-count:], "sizes")
    for name in ("weight", "bias"):
        if call.has(name):
            for ours, theirs in zip(value.axes[-count:], call.value(name).axes, strict=True):
                call.unify(ours, theirs)
    if call.name == "native_layer_norm":
        rest = Value((*value.dims[:-count], *(Dim(atom(1)) for _ in range(count))))
        return value, rest, rest
    return value


def group_norm(call: Call) -> Value:
    """Channels are groups x channels of a group: either can be cut."""
    value = call.value("input")
    channels = value.axes[1]
    for name in ("weight", "bias"):
        if call.has(name):
            call.unify(channels, call.value(name).axes[0])
    groups, _ = split(channels, channels.size // call.arguments["num_groups"])
    call.literal("num_groups", [groups], "size")
    return value


def weight_norm(call: Call) -> Value:
    """A direction and its length per position of one dimension (Salimans and Kingma 2016, arXiv:1602.07868)."""
    return broadcast(call, [call.value("v"), call.value("g")], call.sizes)


def spatial(call: Call) -> Result:
    """Pooling, resizing, padding by reflection: the last dimensions are fixed, batch and channels pass."""
    value = call.operands()[0]
    count = next(int(letter) for letter in call.name if letter in "123")
    for axis in value.axes[-count:]:
        call.fix(axis, _SPATIAL)
    dims = (*value.dims[:-count], *(call.fixed(size, _SPATIAL) for size in call.sizes[-count:]))
    several = isinstance(call.node.meta["val"], (list, tuple))
    return (Value(dims), Value(dims)) if several else Value(dims)


def in_order(call: Call) -> Result:
    """Cumulative sums, sorting, flipping, rolling: the dimension is fixed, the others pass."""
    value = call.operands()[0]
    given = call.arguments.get("dims", call.arguments.get("dim"))
    listed = given if isinstance(given, (list, tuple)) else [-1 if given is None else given]
    for dim in listed or range(len(value.dims)):
        call.fix(value.axes[dim])
    passed = Value(value.dims)
    return (passed, passed) if isinstance(call.node.meta["val"], (list, tuple)) else passed


def triangle(call: Call) -> Value:
    """The last two dimensions are compared with each other."""
    (value,) = call.operands()
    for axis in value.axes[-2:]:
        call.fix(axis)
    return Value(value.dims)


def pad(call: Call) -> Value:
    """A fixed part before, the old positions, a fixed part after."""
    value = call.operands()[0]
    amounts = call.arguments["pad"]
    if call.arguments.get("mode", "constant") != "constant" or not all(isinstance(n, int) and n >= 0 for n in amounts):
        raise Misfit
    axes: list[Axis] = list(value.axes)
    for place in range(len(amounts) // 2):
        before, after = (atom(n, "is padding") for n in amounts[2 * place : 2 * place + 2])
        axes[-1 - place] = total((before, axes[-1 - place], after))
    return Value(tuple(Dim(axis) for axis in axes))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        words(
            "dropout alpha_dropout feature_dropout softmax _softmax log_softmax _log_softmax zeros_like ones_like full_like "
            "empty_like rand_like randn_like bernoulli hardswish _conj resolve_conj fill zero nan_to_num rrelu logit"
        ),
        same_as_first,
    ),
    **dict.fromkeys(words("to _to_copy type_as contiguous clone detach alias lift_fresh_copy"), same_numbers),
    "topk": largest,
    **dict.fromkeys(
        words("copy __and__ __or__ __xor__ masked_fill where clamp multiply subtract divide true_divide"), pointwise
    ),
    **dict.fromkeys(
        words(
            "mean sum nansum amax amin var std linalg_vector_norm norm prod any all logsumexp argmax argmin max min "
            "var_mean std_mean"
        ),
        reduction,
    ),
    **dict.fromkeys(words("zeros ones full empty rand randn new_zeros new_ones new_full new_empty"), new_tensor),
    **dict.fromkeys(words("batch_norm instance_norm prelu"), along_channels),
    **dict.fromkeys(words("layer_norm native_layer_norm rms_norm"), last_dims_norm),
    **dict.fromkeys(
        words(
            "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
            "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d "
            "upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
            "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d"
        ),
        spatial,
    ),
    **dict.fromkeys(words("cumsum cumprod flip roll sort"), in_order),
    **dict.fromkeys(words("tril triu"), triangle),
    **dict.fromkeys(words("pad constant_pad_nd"), pad),
    "group_norm": group_norm,
    "_weight_norm": weight_norm,
}
