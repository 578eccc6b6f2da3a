"""Rewrites of the quantized torch graph for runtimes whose integer kernels read int8 and give int8: those of XNNPACK, in
ExecuTorch and in LiteRT. None changes a number but the first, which rounds a float result to 8 bits over its calibrated range.

* What an integer product leaves in float is rounded: there is no kernel that reads integers and gives floats.
* Operators that leave values on their grid (padding, maxima, shapes) give codes of that grid, and what is joined is brought to
  the grid of the whole before, as the kernels want it.
* The mean of an image keeps its dimensions, the only form there is a kernel for.
* Activations of fewer than 8 bits are clipped before they are rounded: a kernel knows a scale and a zero point, no ends.
* uint8 codes become int8 codes, all 128 lower.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx
from torch.fx.node import map_arg

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.export.lower import clips_no_more

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default
DEQUANTIZE_ROWS = quantized.dequantize_per_channel.default
PRODUCTS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.matmul.default, aten.bmm.default,
)  # fmt: skip
_KEEPS_GRID = (
    aten.pad.default, aten.constant_pad_nd.default, aten.max_pool1d.default, aten.max_pool2d.default,
    aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.unsqueeze.default, aten.slice.Tensor, aten.select.int, aten.contiguous.default,
)  # fmt: skip
_DYNAMIC = (quantized.quantize_per_tensor.tensor, quantized.dequantize_per_tensor.tensor)
_OFFSET, _MOST_CODE, _MOST_SIGNED = 128, 255, 127


def to_signed(module: fx.GraphModule, outputs: Mapping[str, tuple[float, int]]) -> fx.GraphModule:
    """The same function in int8 (see above); changes `module` in place and returns it. outputs: as of
    core.method.Compressed.
    """
    for node in list(module.graph.nodes):
        if node.name in outputs:
            scale, zero = outputs[node.name]
            _round(module, node, (scale, zero, 0, _MOST_CODE, torch.uint8))
        elif node.target in _KEEPS_GRID and node.args[0].target is DEQUANTIZE:
            _keep_grid(module, node)
        elif node.target is aten.cat.default:
            _join_on_one_grid(module, node)
        elif node.target is aten.mean.dim:
            _keep_dimensions(module, node)
    for node in list(module.graph.nodes):
        if node.target is QUANTIZE and node.args[4] - node.args[3] < _MOST_CODE:
            _clip(module, node)
    for node in module.graph.nodes:
        _shift(node)
    drop_unused(module)
    return module


def is_integer(node: fx.Node) -> bool:
    """True for a product whose operands are dequantized: integer kernels compute it."""
    sources = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
    return node.target in PRODUCTS and all("dequantize" in str(source.target) for source in sources)


def is_dynamic(node: fx.Node) -> bool:
    """True for such a product whose activations take their range from each input."""
    return is_integer(node) and node.args[0].target is _DYNAMIC[1]  # type: ignore[union-attr]


def drop_dynamic(module: fx.GraphModule) -> list[str]:
    """Takes the rounding of dynamic activations away, in place, and gives the names of the weights they meet: for runtimes
    whose kernels read floats and round them by themselves.
    """
    products = [node for node in module.graph.nodes if is_dynamic(node)]
    for node in products:
        value: Any = node.args[0]
        node.replace_input_with(value, value.args[0].args[0])
    module.graph.eliminate_dead_code()
    return [str(node.args[1].args[0].target).removesuffix("_codes") for node in products]


def fold_constants(module: fx.GraphModule, *, keeps: Callable[[fx.Node], bool]) -> None:
    """What is computed from weights alone becomes a tensor, in place, but the nodes that `keeps` wants and what they read."""
    kept = {source for node in module.graph.nodes if keeps(node) for source in (node, *node.all_input_nodes)}
    known: dict[fx.Node, Tensor] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and node not in kept:
            known[node] = tensor_of(module, str(node.target)).detach()
        elif node.op == "call_function" and node.all_input_nodes and all(one in known for one in node.all_input_nodes):
            arguments, named = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*arguments, **named)
    for node, value in known.items():
        if node.op == "call_function" and any(user not in known for user in node.users):
            name = f"{node.name}_folded"
            set_tensor(module, name, value.contiguous())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name))
    drop_unused(module)


def drop_unused(module: fx.GraphModule) -> None:
    """Removes nodes that nothing reads and tensors that no node reads, which an export would keep."""
    module.graph.eliminate_dead_code()
    module.recompile()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in read]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)


def _round(module: fx.GraphModule, node: fx.Node, facts: tuple[Any, ...]) -> None:
    """All that read the node read its value on the grid."""
    readers = list(node.users)
    with module.graph.inserting_after(node):
        codes = module.graph.call_function(QUANTIZE, (node, *facts))
    with module.graph.inserting_after(codes):
        value = module.graph.call_function(DEQUANTIZE, (codes, *facts))
    for reader in readers:
        reader.replace_input_with(node, value)


def _keep_grid(module: fx.GraphModule, node: fx.Node) -> None:
    source: Any = node.args[0]
    facts = source.args[1:]
    reads_integers = [user for user in node.users if user.target is QUANTIZE or user.target in PRODUCTS]
    if reads_integers and not all(user.target is QUANTIZE and user.args[1:] == facts for user in node.users):
        _round(module, node, facts)


def _join_on_one_grid(module: fx.GraphModule, node: fx.Node) -> None:
    users, parts = list(node.users), list(node.args[0])  # type: ignore[arg-type]
    if len(users) != 1 or users[0].target is not QUANTIZE or any(part.target is not DEQUANTIZE for part in parts):
        return
    facts, joined = users[0].args[1:], []
    for part in parts:
        with module.graph.inserting_before(node):
            codes = module.graph.call_function(QUANTIZE, (part, *facts))
            joined.append(part if part.args[1:] == facts else module.graph.call_function(DEQUANTIZE, (codes, *facts)))
    node.args = (joined, *node.args[1:])


def _keep_dimensions(module: fx.GraphModule, node: fx.Node) -> None:
    """mean(x, (2, 3)) becomes flatten(mean(x, (2, 3), keepdim=True))."""
    arguments: Any = node.args
    value, dims, *rest = arguments
    result = node.meta.get("val")  # of the node itself: quantize nodes, which may be its input, know no shape
    is_image = result is not None and result.dim() + len(dims) == 4
    if not is_image or sorted(dim % 4 for dim in dims) != [2, 3] or any(rest):
        return
    node.args = (value, list(dims), True)
    readers = list(node.users)
    with module.graph.inserting_after(node):
        flat = module.graph.call_function(aten.flatten.using_ints, (node, 1))
    for reader in readers:
        reader.replace_input_with(node, flat)
    facts = {reader.args[1:] if reader.target is QUANTIZE else None for reader in readers}
    if len(facts) == 1 and None not in facts:
        _round(module, node, *facts)  # type: ignore[arg-type]


def _clip(module: fx.GraphModule, node: fx.Node) -> None:
    """clip(x) to what the codes reach, in place of an activation that cuts no more off."""
    arguments: Any = node.args
    value, scale, zero, low, high = arguments[:5]
    ends = ((low - zero) * scale, (high - zero) * scale)
    if len(value.users) == 1 and clips_no_more(value, low=ends[0], high=ends[1]):
        value = value.args[0]
    with module.graph.inserting_before(node):
        clipped = module.graph.call_function(aten.hardtanh.default, (value, *ends))
    node.args = (clipped, *arguments[1:])


def _shift(node: fx.Node) -> None:
    arguments: Any = node.args
    if node.target in (QUANTIZE, DEQUANTIZE) and arguments[-1] is torch.uint8:
        value, scale, zero = arguments[:3]
        # the ends were seen to by `_clip`, and a kernel takes those of the type
        node.args = (value, scale, zero - _OFFSET, -_OFFSET, _MOST_SIGNED, torch.int8)
    elif node.target in _DYNAMIC and arguments[-1] is torch.uint8:
        node.args = (*arguments[:3], -_OFFSET, _MOST_SIGNED, torch.int8)
    elif node.target is quantized.choose_qparams.tensor and arguments[-1] is torch.uint8:
        node.args = (arguments[0], -_OFFSET, _MOST_SIGNED, arguments[3], torch.int8)
