"""For which groups zeroing is the same as cutting.

Zeroing sets a group's "out" and "along" positions of parameters to 0; buffers stay. A channel so silenced gives what a missing
one gives if it is 0 wherever it is summed over. What spoils that: functions with f(0) != 0 on the way to a sum, constants added
to it, and statistics that count channels (means, layer norms, softmax). One pass over the graph keeps, for each dimension of
each value, the groups whose silenced channels may be other than 0.

Unknown operators are taken to spoil every group they touch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from lighten.analyze.axes import Axis, atoms
from lighten.analyze.flow import Flow, bound_arguments, operator_name, words

Marks = set[tuple[int, str]]  # (dimension, group) whose silenced channels may be other than 0

_PASSING = set(
    words(
        "relu relu6 leaky_relu gelu silu tanh neg abs sqrt square sign erf elu selu celu mish hardswish sin asin tan "
        "atan sinh asinh expm1 log1p floor ceil round trunc softsign softshrink hardshrink tanhshrink clone to _to_copy "
        "contiguous type_as detach alias dropout alpha_dropout feature_dropout lift_fresh_copy view reshape "
        "_unsafe_view view_as reshape_as flatten unflatten permute transpose swapaxes swapdims t mT adjoint numpy_T "
        "movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave slice narrow "
        "select unbind split split_with_sizes chunk tensor_split cat concat concatenate stack pixel_shuffle "
        "pixel_unshuffle channel_shuffle getitem copy index index_select gather max_pool1d max_pool2d max_pool3d "
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d tril "
        "triu flip roll cumsum glu embedding prelu"
    )
)
_JOINING = {"cat", "concat", "concatenate", "stack"}
_SUMS = {"sum", "linalg_vector_norm"}
_NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"}


@dataclass
class _Pass:
    """names: the group of an atom. marks: by node. counted: groups of which some statistic depends on the number."""

    flow: Flow
    names: Mapping[Axis, str]
    marks: dict[fx.Node, Marks] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def groups(self, node: Any) -> list[set[str]]:
        """Of each dimension; of all outputs together where there are several."""
        dims: list[set[str]] = []
        for value in self.flow.values.get(node, ()):
            found = [{self.names[atom] for atom in atoms(axis) if atom in self.names} for axis in value.axes]
            dims += [set() for _ in range(len(found) - len(dims))]
            dims = [old | (found[place] if place < len(found) else set()) for place, old in enumerate(dims)]
        return dims

    def carried(self, node: fx.Node) -> set[str]:
        """The groups of all dimensions."""
        return set[str]().union(*self.groups(node))

    def marked(self, node: fx.Node) -> set[str]:
        """The groups marked in any dimension."""
        return {group for _, group in self.marks.get(node, ())}

    def where(self, node: fx.Node, spoiled: Callable[[str], bool]) -> Marks:
        """Marks of the output for the groups for which `spoiled` holds."""
        return {(dim, group) for dim, found in enumerate(self.groups(node)) for group in found if spoiled(group)}


def inexact(module: fx.GraphModule, flow: Flow, names: Mapping[Axis, str], *, consumed: set[tuple[str, int]]) -> set[str]:
    """The names of the groups for which zeroing may differ from cutting.

    names: the group of each atom. consumed: (tensor, dimension) that take channels in and therefore stay as they are.
    """
    state = _Pass(flow, names)
    zeroed = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for node in module.graph.nodes:
        if node not in flow.values:
            continue
        if node.op == "get_attr":
            state.marks[node] = {
                (dim, group)
                for dim, found in enumerate(state.groups(node))
                for group in found
                if (str(node.target), dim) in consumed or str(node.target) not in zeroed
            }
        elif node.op == "call_function":
            state.marks[node] = _marks(state, node)
            _write_back(state, node)
    return state.counted


def _marks(state: _Pass, node: fx.Node) -> Marks:
    name, arguments = operator_name(node), bound_arguments(node)
    inputs = [item for item in node.all_input_nodes if item in state.flow.values]
    for family, names in _FAMILIES:
        if name in names:
            return family(state, node, inputs, arguments)
    if _keeps_zero(name, arguments):
        return _passed(state, node, inputs, arguments)
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        state.counted |= set[str]().union(*(state.carried(item) for item in inputs))
    return state.where(node, lambda group: True)


def _keeps_zero(name: str, arguments: Mapping[str, Any]) -> bool:
    if name == "pow":
        return isinstance(arguments.get("exponent"), (int, float)) and arguments["exponent"] > 0
    if name in ("clamp", "hardtanh", "clamp_min", "clamp_max"):
        low, high = (arguments.get(key, arguments.get(other)) for key, other in (("min", "min_val"), ("max", "max_val")))
        numbers = all(value is None or isinstance(value, (int, float)) for value in (low, high))
        return numbers and (low is None or low <= 0) and (high is None or high >= 0)
    return name in ("pad", "constant_pad_nd") and not arguments.get("value")


def _passed(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """What the first operand gives, or all of a list; a group that none of them knows, as after an expand, is not silent."""
    name = operator_name(node)
    if name == "copy":
        inputs = [arguments["src"]] if isinstance(arguments["src"], fx.Node) else []
    elif name not in _JOINING:
        inputs = inputs[:1]
    silent = set[str]().union(*(state.carried(item) for item in inputs))
    silent -= set[str]().union(*(state.marked(item) for item in inputs))
    return state.where(node, lambda group: group not in silent)


def _created(state: _Pass, node: fx.Node, inputs: list[fx.Node], _: Mapping[str, Any]) -> Marks:
    """Zeros are silent."""
    return set()


def _constant(state: _Pass, node: fx.Node, inputs: list[fx.Node], _: Mapping[str, Any]) -> Marks:
    return state.where(node, lambda group: True)


def _added(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """0 + 0 is 0; 0 + a constant, or + a tensor that does not know the group, is not."""
    scalar = any(isinstance(arguments.get(key), (int, float)) and arguments[key] != 0 for key in ("self", "other"))
    silent = [state.carried(item) - state.marked(item) for item in inputs]
    return state.where(node, lambda group: scalar or not all(group in found for found in silent))


def _multiplied(state: _Pass, node: fx.Node, inputs: list[fx.Node], _: Mapping[str, Any]) -> Marks:
    """0 times anything is 0."""
    silent = set[str]().union(*(state.carried(item) - state.marked(item) for item in inputs))
    return state.where(node, lambda group: group not in silent)


def _divided(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """0 / y is 0 where y is not 0."""
    above, below = arguments.get("self"), arguments.get("other")
    if not isinstance(above, fx.Node):
        return state.where(node, lambda group: True)
    silent = state.carried(above) - state.marked(above)
    if isinstance(below, fx.Node):
        silent -= state.carried(below) - state.marked(below)
    return state.where(node, lambda group: group not in silent)


def _summed(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    for item in inputs:
        state.counted |= (state.carried(item) - state.carried(node)) & state.marked(item)
    return _passed(state, node, inputs, arguments)


def _averaged(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    if isinstance(arguments.get("other"), fx.Node):
        return state.where(node, lambda group: True)
    for item in inputs:
        state.counted |= state.carried(item) - state.carried(node)
    return _passed(state, node, inputs, arguments)


def _normalized(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """Silent where the scale is and the shift is, whatever the statistics; those of layer and group norms count channels."""
    name, source = operator_name(node), arguments["input"]
    groups = state.groups(source)
    if name in ("layer_norm", "rms_norm"):
        state.counted |= set[str]().union(*groups[-len(arguments["normalized_shape"]) :])
    if name in ("batch_norm", "instance_norm") and arguments.get("training", arguments.get("use_input_stats")):
        state.counted |= set[str]().union(groups[0], *groups[2:])
    if name == "group_norm":
        apart = {
            state.names[atom]
            for literal in state.flow.literals.get(node.name, ())
            for axis in literal.axes
            for atom in atoms(axis)
            if atom in state.names
        }
        state.counted |= (groups[1] - apart) | set[str]().union(*groups[2:])
    scale, shift = arguments.get("weight"), arguments.get("bias")
    silent = state.carried(source) - state.marked(source)
    if isinstance(scale, fx.Node):
        silent |= state.carried(scale) - state.marked(scale)
    if isinstance(shift, fx.Node):
        silent &= state.carried(shift) - state.marked(shift)
    return state.where(node, lambda group: group not in silent)


def _softmax(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """Uniform, not 0, for scores that are 0."""
    groups = state.groups(node)
    state.counted |= groups[arguments["dim"]]
    return state.where(node, lambda group: True)


def _linear(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    source, weight = arguments["input"], arguments["weight"]
    last = len(state.groups(source)) - 1
    factors = [(source, [*range(last), -1]), (weight, [last, -1])]
    return _product(state, node, factors, arguments.get("bias"))


def _matmul(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    left = arguments.get("mat1", arguments.get("batch1", arguments.get("self")))
    right = next(arguments[key] for key in ("mat2", "batch2", "other", "vec") if key in arguments)
    added = arguments["self"] if "mat1" in arguments or "batch1" in arguments else None
    ranks, rank = [len(state.groups(item)) for item in (left, right)], len(state.groups(node))
    if min(ranks) < 2:
        state.counted |= state.marked(left) | state.marked(right)
        return state.where(node, lambda group: True)
    ours = [*range(rank - ranks[0], rank - 2), rank - 2, -1]
    theirs = [*range(rank - ranks[1], rank - 2), -1, rank - 1]
    return _product(state, node, [(left, ours), (right, theirs)], added)


def _einsum(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    letters, _, output = arguments["equation"].replace(" ", "").partition("->")
    summed = [letter for letter in dict.fromkeys(letters) if letter not in output and letter != ","]
    place = {letter: number for number, letter in enumerate(output)} | {letter: -1 - n for n, letter in enumerate(summed)}
    factors = [
        (item, [place[one] for one in term]) for item, term in zip(arguments["tensors"], letters.split(","), strict=True)
    ]
    return _product(state, node, factors, None)


def _attention(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """A weighted mean of V: silent where V is; a mean over keys counts them."""
    value = arguments["value"]
    state.counted |= state.groups(value)[-2] | state.groups(arguments["key"])[-2]
    silent = state.carried(value) - state.marked(value)
    return state.where(node, lambda group: group not in silent)


def _convolution(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    source, weight = arguments["input"], arguments["weight"]
    channel = len(state.groups(source)) - len(state.groups(weight)) + 1
    made, taken = (1, 0) if "transpose" in operator_name(node) else (0, 1)
    if arguments["groups"] == 1:
        factors = [(source, [*range(channel), -1]), (weight, [channel, -1] if made == 0 else [-1, channel])]
        return _product(state, node, factors, arguments.get("bias"))
    # the factor for the groups stays, in the source and in dimension 0 of the weight; the rest of the channels is summed over
    through = state.groups(source)[channel] & state.groups(node)[channel]
    summed = (state.groups(source)[channel] | state.groups(weight)[taken]) - through
    state.counted |= {g for g in summed if (channel, g) in state.marks.get(source, ()) and (taken, g) in state.marks[weight]}
    silent = {g for g in state.groups(weight)[made] if (made, g) not in state.marks[weight]}
    silent |= {g for g in state.carried(source) if g not in state.marked(source)}
    silent -= summed if made else set()
    return _with_bias(state, node, state.where(node, lambda group: group not in silent), arguments.get("bias"))


def _recurrence(state: _Pass, node: fx.Node, inputs: list[fx.Node], arguments: Mapping[str, Any]) -> Marks:
    """With weights and first state silent every candidate is tanh(0), so the state stays 0; layers read what is silent."""
    source = arguments["input"]
    state.counted |= {group for group in state.groups(source)[-1] if group in state.marked(source)}
    hx = arguments["hx"]
    states = hx if isinstance(hx, (list, tuple)) else [hx]
    spoiled = set[str]().union(*(state.marked(item) for item in states))
    return state.where(node, lambda group: group in spoiled or group in state.marked(source))


def _product(state: _Pass, node: fx.Node, factors: list[tuple[fx.Node, list[int]]], added: Any) -> Marks:
    """factors: for each dimension of a factor its place in the output, or a number below 0 shared with what it is summed with.
    Dimensions without a place (those of a window) carry no group.

    A place is silent where some factor is silent; a sum is exact where, in each of its terms, some factor is silent.
    """
    silent: dict[int, set[str]] = {}
    loud: dict[int, set[str]] = {}
    for item, places in factors:
        for dim, (place, found) in enumerate(zip(places, state.groups(item), strict=False)):
            for group in found:
                kind = loud if (dim, group) in state.marks.get(item, ()) else silent
                kind.setdefault(place, set()).add(group)
    for place in [place for place in loud if place < 0]:
        state.counted |= loud[place] - silent.get(place, set())
    marks = {
        (place, group)
        for place, found in enumerate(state.groups(node))
        for group in found
        if group not in silent.get(place, set())
    }
    return _with_bias(state, node, marks, added)


def _with_bias(state: _Pass, node: fx.Node, marks: Marks, bias: Any) -> Marks:
    if not isinstance(bias, fx.Node):
        return marks
    silent = state.carried(bias) - state.marked(bias)
    return marks | state.where(node, lambda group: group not in silent)


def _write_back(state: _Pass, node: fx.Node) -> None:
    """An operator in place changes its first operand, and what that one is a view of."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return
    target: Any = node.args[0]
    while isinstance(target, fx.Node) and target in state.marks:
        state.marks[target] = state.marks[target] | state.where(target, state.marked(node).__contains__)
        target = target.args[0] if target.op == "call_function" and target.args else None


_Family = Callable[[_Pass, fx.Node, list[fx.Node], Mapping[str, Any]], Marks]
_FAMILIES: tuple[tuple[_Family, set[str]], ...] = (
    (_passed, _PASSING),
    (_created, {"zeros", "zeros_like", "new_zeros"}),
    (_constant, {"ones", "ones_like", "new_ones", "full", "full_like", "new_full", "empty", "empty_like", "new_empty"}),
    (_added, {"add", "sub", "subtract"}),
    (_multiplied, {"mul", "multiply"}),
    (_divided, {"div", "divide", "true_divide"}),
    (_summed, _SUMS),
    (_averaged, {"mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "norm", "prod"}),
    (_normalized, _NORMS),
    (_softmax, {"softmax", "log_softmax"}),
    (_linear, {"linear"}),
    (_matmul, {"matmul", "mm", "bmm", "addmm", "baddbmm"}),
    (_einsum, {"einsum"}),
    (_attention, {"scaled_dot_product_attention"}),
    (_convolution, {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}),
    (_recurrence, {"lstm", "gru", "rnn_tanh", "rnn_relu"}),
)
