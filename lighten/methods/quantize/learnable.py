"""The network that quantization-aware training trains: the quantized graph itself, its codes and steps made learnable.

Every pair of quantize and dequantize nodes becomes a `LearnedTensor`, every dequantized weight a `LearnedWeight`, the bias of a
layer that runs in integers a `LearnedBias`; all else stays as it is, so what trains is what the file will compute. Batch norms
were folded when the network was traced (Jacob et al. 2018, arXiv:1712.05877, section 3.2, without its batch statistics): the
folded weights and biases train, and a step for each channel takes the norm's place.

Dimension key: O output channels.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.graph import Graph
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.engine.quiet import quiet
from lighten.methods.quantize.learned import Knobs, Learned, LearnedBias, LearnedTensor, LearnedWeight
from lighten.methods.quantize.observe import fastest_layout
from lighten.ops.grids import Affine

aten, quantized = torch.ops.aten, torch.ops.quantized_decomposed
_QUANTIZE = quantized.quantize_per_tensor.default
_DEQUANTIZE_ROWS = quantized.dequantize_per_channel.default
_MOVES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int)
_CLIPPING = {
    **dict.fromkeys((aten.hardtanh.default, aten.hardtanh_.default), (-1.0, 1.0)),
    **dict.fromkeys((aten.clamp.default, aten.clamp_.default), (-math.inf, math.inf)),
    **dict.fromkeys((aten.relu6.default, aten.relu6_.default), (0.0, 6.0)),
}
_INSIDE = 0.49  # of a step around a code: where a weight starts so that it is rounded to it
_FOLDER = "learned_"


@dataclass(frozen=True)
class Learnable:
    """module: what trains. weights, biases: by parameter name. tensors: by the node that makes them and bits; one that is only
    a view of another shares its module.
    """

    module: fx.GraphModule
    weights: Mapping[str, LearnedWeight]
    tensors: Mapping[tuple[str, int], LearnedTensor]
    biases: Mapping[str, LearnedBias]

    def ranges(self) -> Iterator[Tensor]:
        """Of every tensor's grid, one once."""
        return (module.range() for module in dict.fromkeys(self.tensors.values()))

    @torch.no_grad()
    def masked(self, graph: Graph, names: Iterable[str]) -> list[str]:
        """Sets the weights to zero that are zero in the float graph, for the sparse parameters `names`; gives what they are
        called here. A solver of codes may have filled them.
        """
        for name in names:
            if name in self.weights:
                weight = self.weights[name].weight
                weight.masked_fill_(tensor_of(graph.module, name) == 0, 0.0)
        return [f"{_place(name)}.weight" if name in self.weights else name for name in names]

    def learned(self) -> Learned:
        """What the modules hold now."""
        rows = {name: (module.rows(), module.bits) for name, module in self.weights.items()}
        return Learned(rows, {key: module.grid() for key, module in self.tensors.items()})

    @torch.no_grad()
    def as_float(self, graph: Graph) -> Graph:
        """The float graph with everything that was trained, weights on their grids: the values that training computed with."""
        with quiet():
            module = copy.deepcopy(graph.module)
        for name, value in self.module.named_parameters():
            if not name.startswith(_FOLDER):
                rounded = self.biases[name](value) if name in self.biases else value
                set_tensor(module, name, rounded.detach().clone())
        for name, learned in self.weights.items():
            set_tensor(module, name, fastest_layout(learned().detach()))
        return Graph(module, graph.sites)


def learnable(start: fx.GraphModule, graph: Graph, plan: Plan, *, knobs: Knobs) -> Learnable:
    """The quantized network `start` of the plan as one that can be trained; it computes the same.

    graph: the float one, whose weights tell on which side of a code training starts.
    """
    with quiet():
        module = copy.deepcopy(start)
    bits = {name: _weight_bits(plan, site.name) for site in graph.sites for name in site.weights}
    weights = {
        str(node.args[0].target).removesuffix("_codes"): node for node in module.graph.nodes if node.target is _DEQUANTIZE_ROWS
    }
    learned = {name: _learned_weight(module, graph, name, node, (bits[name], knobs)) for name, node in weights.items()}
    made = _replace_tensors(module, knobs)
    biases = _round_biases(module, graph, learned)
    for site in graph.sites:
        for name in (*site.weights, *([site.bias] if site.bias else [])):
            _make_parameter(module, name)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unread(module)
    module.recompile()
    return Learnable(module, learned, made, biases)


def _place(name: str) -> str:
    return f"{_FOLDER}weight_{name.replace('.', '_')}"


def _weight_bits(plan: Plan, site: str) -> int:
    spec = plan.spec(site)
    return spec.weights or 8 if type(spec) is Quant else 8


def _learned_weight(module: fx.GraphModule, graph: Graph, name: str, node: fx.Node, how: tuple[int, Knobs]) -> LearnedWeight:
    """Replaces every node that dequantizes this weight."""
    codes, scale_O = (tensor_of(module, str(argument.target)) for argument in node.args[:2])  # type: ignore[union-attr]
    dim: int = node.args[3]  # type: ignore[assignment]
    shape = [1] * codes.dim()
    shape[dim] = -1
    weight = _beside(codes.float(), scale_O.reshape(shape), tensor_of(graph.module, name).detach(), bits=how[0])
    learned = LearnedWeight(fastest_layout(weight), scale_O, bits=how[0], dim=dim, knobs=how[1])
    place = _place(name)
    module.add_submodule(place, learned)
    same = [one for one in module.graph.nodes if one.target is _DEQUANTIZE_ROWS and one.args[0].target == node.args[0].target]  # type: ignore[union-attr]
    for one in same:
        with module.graph.inserting_before(one):
            one.replace_all_uses_with(module.graph.call_module(place))
        module.graph.erase_node(one)
    return learned


def _beside(codes: Tensor, scale: Tensor, weight: Tensor, *, bits: int) -> Tensor:
    """The float weight, moved no further than it takes to be rounded to its code; beyond the last codes it may lie anywhere."""
    low, high = -127 if bits == 8 else -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least = torch.where(codes == low, -torch.inf, (codes - _INSIDE) * scale)
    most = torch.where(codes == high, torch.inf, (codes + _INSIDE) * scale)
    return torch.minimum(torch.maximum(weight, least), most)


def _replace_tensors(module: fx.GraphModule, knobs: Knobs) -> dict[tuple[str, int], LearnedTensor]:
    found: dict[tuple[str, int], LearnedTensor] = {}
    made: dict[fx.Node, LearnedTensor] = {}  # by the node that calls it
    for node in [node for node in module.graph.nodes if node.target is _QUANTIZE]:
        value, scale, zero, low, high = node.args[:5]
        grid = Affine(scale, zero, low, high)
        source = _unmoved(value)
        key = (_producer(value, made).name, (high - low).bit_length())
        if key not in found:
            # a view of what lies on this very grid stays on it
            is_view = source in made and made[source].grid() == _rounded(grid)
            ends = _ends(_producer(value, made))
            found[key] = made[source] if is_view else LearnedTensor(grid, knobs=knobs, ends=ends)
        if source in made and made[source] is found[key]:
            written = value
        else:
            place = f"{_FOLDER}tensor_{key[0]}_{key[1]}"
            module.add_submodule(place, found[key])
            with module.graph.inserting_before(node):
                written = module.graph.call_module(place, (value,))
            made[written] = found[key]
        for read in list(node.users):
            read.replace_all_uses_with(written)
            module.graph.erase_node(read)
        module.graph.erase_node(node)
    return found


def _round_biases(module: fx.GraphModule, graph: Graph, weights: Mapping[str, LearnedWeight]) -> dict[str, LearnedBias]:
    """Of every site that integer kernels compute: products of more than two dimensions add theirs in float."""
    found: dict[str, LearnedBias] = {}
    nodes = {node.name: node for node in module.graph.nodes}
    for site in graph.sites:
        if site.bias is None or site.weights[0] not in weights:
            continue
        node = nodes[site.node]
        source, bias = _called(module, _unpadded(node.args[0])), node.args[2]
        if source is None or len(bias.users) > 1 or (site.kind == "linear" and node.meta["val"].dim() > 2):
            continue
        found[site.bias] = LearnedBias(weights[site.weights[0]], source)
        place = f"{_FOLDER}bias_{site.bias.replace('.', '_')}"
        module.add_submodule(place, found[site.bias])
        with module.graph.inserting_before(node):
            node.update_arg(2, module.graph.call_module(place, (bias,)))
    return found


def _called(module: fx.GraphModule, node: Any) -> LearnedTensor | None:
    """The module that rounds what this node gives, None where it stays in float."""
    called = module.get_submodule(node.target) if node.op == "call_module" else None
    return called if type(called) is LearnedTensor else None


def _unpadded(node: Any) -> Any:
    """Zeros around a tensor are on its grid."""
    while node.op == "call_function" and node.target in (aten.pad.default, aten.constant_pad_nd.default, *_MOVES):
        node = node.args[0]
    return node


def _rounded(grid: Affine) -> Affine:
    """With its scale in float32, as a `LearnedTensor` holds it."""
    return Affine(float(torch.tensor(grid.scale, dtype=torch.float32)), grid.zero, grid.low, grid.high)


def _unmoved(node: fx.Node) -> fx.Node:
    while node.target in _MOVES:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _producer(node: fx.Node, made: Mapping[fx.Node, LearnedTensor]) -> fx.Node:
    """What makes the tensor, before it was rounded to more bits."""
    while node in made:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _ends(node: fx.Node) -> tuple[float, float]:
    """Between which the node's values lie; relu needs none, since a grid that begins at zero does the same."""
    if node.target not in _CLIPPING:
        return (-math.inf, math.inf)
    given = [node.kwargs.get(name, value) for name, value in zip(("min", "max"), (*node.args[1:3], None, None), strict=False)]
    low, high = (end if value is None else value for value, end in zip(given, _CLIPPING[node.target], strict=True))
    return (low, high)  # type: ignore[return-value]


def _make_parameter(module: fx.GraphModule, name: str) -> None:
    """What training moves and tracing left as a buffer. Weights that became codes are no longer there."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return
    value = getattr(owner, leaf, None)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point():
        delattr(owner, leaf)
        owner.register_parameter(leaf, nn.Parameter(value.detach().clone()))


def _drop_unread(module: fx.GraphModule) -> None:
    """Codes and float weights that no node reads any more: they would be kept in every checkpoint."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    for name in names:
        if not name.startswith(_FOLDER) and name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
