"""Rules for operators that sum over a dimension of two tensors: linear, convolution, matrix products, attention, recurrence.

Here the roles come from: a weight makes the channels of the dimension it keeps ("out") and consumes those of the dimension it
sums over ("in").

Dimension key (comments): G groups, H heads or hidden units, R query heads a key/value head.
"""

import re
from collections.abc import Iterable

from lighten.analyze.axes import Axis, Misfit, atom, product, split, total
from lighten.analyze.flow import Attention, Call, Dim, Result, Rule, Value, words
from lighten.analyze.pointwise import broadcast

_WINDOW = "is slid over by a convolution"
_INSIDE = "is inside an attention head"
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def linear(call: Call) -> Value:
    """y = x W' + b, W of shape (out, in)."""
    value, weight = call.value("input"), call.value("weight")
    call.unify(value.axes[-1], weight.axes[-1])
    call.use(weight.dims[-1], "in", "linear")
    made = weight.dims[:-1]
    for dim in made:
        call.use(dim, "out", "linear")
    if call.has("bias") and made:
        call.unify(made[0].axis, call.value("bias").axes[0])
    return Value((*_plain(value.dims[:-1]), *_plain(made)))


def convolution(call: Call) -> Value:
    """Weight of shape (out, in / groups, ...), transposed (in, out / groups, ...); groups is a factor of both channels."""
    value, weight = call.value("input"), call.value("weight")
    window = len(weight.dims) - 2
    channel = len(value.dims) - window - 1
    transposed = "transpose" in call.name or bool(call.arguments.get("transposed"))
    source, made = (0, 1) if transposed else (1, 0)
    for axis in (*value.axes[channel + 1 :], *weight.axes[2:]):
        call.fix(axis, _WINDOW)
    out = _grouped(call, value.axes[channel], weight) if call.arguments["groups"] > 1 else weight.axes[made]
    if call.arguments["groups"] == 1:
        call.unify(value.axes[channel], weight.axes[source])
    call.use(weight.dims[source], "in", "conv")
    call.use(weight.dims[made], "out", "conv")
    if call.has("bias"):
        call.unify(out, call.value("bias").axes[0])
    size = (call.fixed(n, _WINDOW) for n in call.sizes[channel + 1 :])
    return Value((*_plain(value.dims[:channel]), Dim(out), *size))


def _grouped(call: Call, channels: Axis, weight: Value) -> Axis:
    """Channels in = G x in / G, channels out = G x out / G, of which the weight's dimension 1 holds no G."""
    groups = call.arguments["groups"]
    source_G, source = split(channels, channels.size // groups)
    wide = weight.axes[0]
    wide_G, narrow = split(wide, wide.size // groups)
    call.unify(source_G, wide_G)
    call.literal("groups", [wide_G], "size")
    if "transpose" in call.name:
        call.unify(source, narrow)
        return product((wide_G, weight.axes[1]))
    call.unify(source, weight.axes[1])
    return wide


def matrix_product(call: Call) -> Value:
    """Sums over the last dimension of the first and the last but one of the second; the ones before run along."""
    names = ("self", "other") if "other" in call.arguments else ("self", "mat2")
    left, right = (call.value(name if name in call.arguments else "vec") for name in names)
    flat = len(left.dims) == 1, len(right.dims) == 1
    left = Value((Dim(atom(1)), *left.dims), left.weight) if flat[0] else left
    right = Value((*right.dims, Dim(atom(1))), right.weight) if flat[1] else right
    dims = list(_product(call, left, right).dims)
    kept = [*dims[:-2], *([] if flat[0] else [dims[-2]]), *([] if flat[1] else [dims[-1]])]
    return Value(tuple(kept), left.weight and right.weight)


def added_product(call: Call) -> Value:
    """beta self + alpha (first x second)."""
    names = ("mat1", "mat2") if "mat1" in call.arguments else ("batch1", "batch2")
    made = _product(call, call.value(names[0]), call.value(names[1]))
    return Value(_plain(broadcast(call, [made, call.value("self")], call.sizes).dims))


def einsum(call: Call) -> Value:
    """Letters name dimensions; those that the result lacks are summed over."""
    inputs, _, output = re.sub(r"\s", "", call.arguments["equation"]).partition("->")
    values = call.values("tensors")
    if not output or "." in inputs or len(values) != len(inputs.split(",")):
        raise Misfit
    found: dict[str, Dim] = {}
    for letters, value in zip(inputs.split(","), values, strict=True):
        for letter, dim in zip(letters, value.dims, strict=True):
            call.unify(found.setdefault(letter, dim).axis, dim.axis)
    for letters, value in zip(inputs.split(","), values, strict=True):
        if value.weight:
            _use_letters(call, zip(letters, value.dims, strict=True), (inputs.replace(letters, "", 1), output))
    if len(values) == 2 and not any(value.weight for value in values):
        first, second = inputs.split(",")
        shared = [found[letter].axis for letter in output if letter in first and letter in second]
        other = [
            dim.axis for letter, dim in found.items() if letter not in output or letter not in first or letter not in second
        ]
        call.flow.attentions.append(Attention(tuple(shared), tuple(other)))
    return Value(_plain(found[letter] for letter in output))


def attention(call: Call) -> Value:
    """softmax(Q K' / sqrt(D)) V; with grouped queries (Ainslie et al. 2023, arXiv:2305.13245) heads are K/V heads x R."""
    query, key, value = (call.value(name) for name in ("query", "key", "value"))
    for inside in (query, key, value):
        # the scale is 1 / sqrt(D) of what is given: a smaller D would change it
        call.fix(inside.axes[-1], _INSIDE)
    call.unify(key.axes[-2], value.axes[-2])
    heads = [query.axes[-3], key.axes[-3], value.axes[-3]] if len(query.dims) > 3 else []
    if heads and call.arguments["enable_gqa"] and heads[0].size != heads[1].size:
        query_heads, _ = split(heads[0], heads[0].size // heads[1].size)
        call.unify(query_heads, heads[1])
        call.unify(query_heads, heads[2])
        outer = broadcast(call, [Value(item.dims[:-3]) for item in (query, key, value)], call.sizes[:-3])
        batch = (*outer.dims, query.dims[-3])
    else:
        batch = broadcast(call, [Value(item.dims[:-2]) for item in (query, key, value)], call.sizes[:-2]).dims
    if call.has("attn_mask"):
        scores = Value((*batch, query.dims[-2], key.dims[-2]))
        broadcast(call, [scores, call.value("attn_mask")], [axis.size for axis in scores.axes])
    call.flow.attentions.append(Attention(tuple(dim.axis for dim in batch), (query.axes[-1], value.axes[-1])))
    return Value((*_plain(batch), *_plain([query.dims[-2], value.dims[-1]])))


def recurrence(call: Call) -> Result:
    """LSTM, GRU and plain RNN. All layers and directions share one state tensor, so their hidden units go together.

    An LSTM with projections (Sak et al. 2014, arXiv:1402.1128) hands on fewer units than its cells have.
    """
    value = call.value("input")
    states = call.values("hx") if isinstance(call.arguments["hx"], (list, tuple)) else [call.value("hx")]
    hidden, units = states[0].axes[-1], states[-1].axes[-1]
    projected = hidden.size != units.size
    directions = 2 if call.arguments["bidirectional"] else 1
    each = (4 if call.arguments["has_biases"] else 2) + projected
    tensors = call.values("params")
    for number in range(directions * call.arguments["num_layers"]):
        layer_in = value.axes[-1] if number < directions else total([hidden] * directions)
        mine = tensors[number * each : (number + 1) * each]
        _cell(call, mine[: each - projected], (layer_in, hidden), units=units)
        if projected:
            _weight(call, mine[-1], hidden, units)
    for state in states:
        call.fix(state.axes[0], "numbers the layers and directions of a recurrence")
        call.unify(state.axes[-2], value.axes[-3 if call.arguments["batch_first"] else -2])
    if projected:
        # torch tells from the two sizes whether there are projections: they must go on to differ
        call.flow.floors.append((units, hidden.size + 1))
    else:
        call.unify(hidden, units)
    call.fix(value.axes[-2 if call.arguments["batch_first"] else -3], "is a sequence")
    out = Value((*_plain(value.dims[:-1]), Dim(total([hidden] * directions))))
    return (out, *(Value(_plain(state.dims)) for state in states))


def _cell(call: Call, tensors: list[Value], sources: tuple[Axis, Axis], *, units: Axis) -> None:
    """Weights of shape (gates x H, in) and (gates x H, state), then the biases (gates x H)."""
    gates = atom(_GATES[call.name], "numbers the gates of a recurrence")
    for tensor, source in zip(tensors, sources, strict=False):
        _weight(call, tensor, product((gates, units)), source)
    for bias in tensors[2:]:
        call.unify(bias.axes[0], product((gates, units)))


def _weight(call: Call, tensor: Value, made: Axis, source: Axis) -> None:
    for dim, axis, role in zip(tensor.dims, (made, source), ("out", "in"), strict=True):
        call.unify(dim.axis, axis)
        call.use(dim, role, call.name)


def _product(call: Call, left: Value, right: Value) -> Value:
    call.unify(left.axes[-1], right.axes[-2])
    batch_sizes = call.sizes[: max(len(left.dims), len(right.dims)) - 2]
    batch = broadcast(call, [Value(left.dims[:-2]), Value(right.dims[:-2])], batch_sizes)
    if right.weight:
        call.use(right.dims[-2], "in", "linear")
        call.use(right.dims[-1], "out", "linear")
    elif left.weight:
        call.use(left.dims[-1], "in", "linear")
        call.use(left.dims[-2], "out", "linear")
    else:
        inner = (left.axes[-2], left.axes[-1], right.axes[-1])
        call.flow.attentions.append(Attention(batch.axes, inner))
    return Value(_plain((*batch.dims, left.dims[-2], right.dims[-1])), left.weight and right.weight)


def _use_letters(call: Call, letters: Iterable[tuple[str, Dim]], outside: tuple[str, str]) -> None:
    """A letter the result lacks is consumed; one that only the weight brings is made."""
    others, output = outside
    for letter, dim in letters:
        if letter not in output:
            call.use(dim, "in", "linear")
        elif letter not in others:
            call.use(dim, "out", "linear")


def _plain(dims: Iterable[Dim]) -> tuple[Dim, ...]:
    """Without origins: what is made of them is no view of a parameter any more."""
    return tuple(Dim(dim.axis) for dim in dims)


RULES: dict[str, Rule] = {
    "linear": linear,
    **dict.fromkeys(words("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"), convolution),
    **dict.fromkeys(words("matmul mm bmm mv"), matrix_product),
    **dict.fromkeys(words("addmm baddbmm"), added_product),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(_GATES, recurrence),
}
