"""Weights that ONNX Runtime computes with as they are stored, and tables that it turns into floats at load.

* A linear layer in float with codes of at most 4 bits, in groups of 16 to 256 columns or whole rows, becomes MatMulNBits
  (com.microsoft). Its accuracy level 4 rounds each group of the input to 8 bits: measured 0.5 to 0.65 % of the output, 45 dB,
  where the rounding of 4-bit weights leaves 20; never slower than float32 on groups of 64 and more, up to five times as fast.
* An embedding whose rows have groups that are a power of two, 16 or more, becomes GatherBlockQuantized, exact.
* A table of values (floating formats, codebooks) reaches the file as `LookUp` and becomes Cast and GatherElements once the
  exporter's optimizer is through, which would have written small weights out as floats; a weight in half precision goes through
  `Half`, lest it be transposed and renamed. ONNX Runtime folds what is left of them at load.

Everything else in few bits is stored: Cast, Sub and Mul, folded at load, computed in float32.

Dimension key: O output channels, K input columns, G groups of a row, M columns of a group, B packed bytes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.ops.packing import pack, unpack

if TYPE_CHECKING:
    from onnx import ModelProto

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
SUFFIX = "_packed"
HALF_SUFFIX = "_half"
DOMAIN, LOOK_UP, HALF = "lighten", "LookUp", "Half"
_MICROSOFT = "com.microsoft"
_GROUPS = (16, 32, 64, 128, 256)
_ROW_GROUP = 128  # of a whole row's copies of its scale; the fastest of the kernels' sizes
_ACCURACY_LEVEL = 4
_INT64 = 7  # TensorProto.INT64


class _Codes(NamedTuple):
    """codes_OGM, zero_OG1: int8. scale_OG1: float32."""

    codes_OGM: Tensor
    scale_OG1: Tensor
    zero_OG1: Tensor


def pack_weights(module: fx.GraphModule, *, plain: bool = False) -> None:
    """Rewrites every linear layer, embedding and table that one of these operators fits, in place. plain: tables alone."""
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default and not plain:
            _pack_linear(module, node)
        elif node.target is aten.flatten.using_ints and not plain:
            _pack_embedding(module, node)
        elif node.target is aten.gather.default and _is_table(node):
            with module.graph.inserting_before(node):
                parts = (node.args[0], node.args[2].args[0])
                found = module.graph.call_function(torch.ops.lighten.look_up.default, parts)
            node.replace_all_uses_with(found)
        elif node.op == "get_attr" and node.target.endswith(HALF_SUFFIX):
            with module.graph.inserting_after(node):
                kept = module.graph.call_function(torch.ops.lighten.half.default, (node,))
            node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)


def read_packed(proto: "ModelProto") -> frozenset[str]:
    """Names of the weights that operators read in few bits."""
    places = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
    names = {node.input[places[node.op_type]] for node in proto.graph.node if node.op_type in places}
    return frozenset(name.removesuffix(SUFFIX) for name in names)


def expand_tables(proto: "ModelProto") -> None:
    """LookUp(values, codes) becomes GatherElements(values, Cast(codes)), Half goes, in place."""
    from onnx import helper

    nodes, change = [], {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == HALF}
    for node in proto.graph.node:
        node.input[:] = [change.get(name, name) for name in node.input]
        if node.op_type not in (LOOK_UP, HALF):
            nodes.append(node)
        if node.op_type != LOOK_UP:
            continue
        values, codes = node.input
        name = node.output[0]
        nodes.append(helper.make_node("Cast", [codes], [f"{name}_places"], f"{name}_cast", to=_INT64))
        nodes.append(helper.make_node("GatherElements", [values, f"{name}_places"], [name], f"{name}_look_up", axis=1))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def translations() -> dict[Any, Any]:
    """As `lower.translations`."""
    multiply = _operator(_MICROSOFT, "MatMulNBits", 4, ("K", "N", "bits", "block_size", "accuracy_level"))
    gather = _operator(_MICROSOFT, "GatherBlockQuantized", 4, ("gather_axis", "quantize_axis", "block_size", "bits"))
    table, rounded = _operator(DOMAIN, LOOK_UP, 2, ()), _operator(DOMAIN, HALF, 1, ())

    def packed_linear(x: Any, packed: Any, scale: Any, zero: Any, layout: Sequence[int]) -> Any:
        columns, group, bits = layout
        inputs = (x, packed, scale) if zero is None else (x, packed, scale, zero)
        facts = {"K": columns, "N": packed.shape[0], "bits": bits, "block_size": group, "accuracy_level": _ACCURACY_LEVEL}
        return multiply(*inputs, **facts)

    def packed_embedding(packed: Any, ids: Any, scale: Any, zero: Any, layout: Sequence[int]) -> Any:
        group, bits = layout
        inputs = (packed, ids, scale) if zero is None else (packed, ids, scale, zero)
        return gather(*inputs, gather_axis=0, quantize_axis=1, block_size=group, bits=bits)

    def look_up(values: Any, codes: Any) -> Any:
        return table(values, codes)

    def half(value: Any) -> Any:
        return rounded(value)

    return {
        torch.ops.lighten.half.default: half,
        torch.ops.lighten.packed_linear.default: packed_linear,
        torch.ops.lighten.packed_embedding.default: packed_embedding,
        torch.ops.lighten.look_up.default: look_up,
    }


def _operator(domain: str, name: str, num_inputs: int, attributes: tuple[str, ...]) -> Any:
    """An operator that ONNX itself does not know: any tensors in (the last may be left out), one out, attributes all int."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kind, every = OpSchema.FormalParameterOption, [f"tensor({name})" for name in ("float", "uint8", "int64", "int32")]
    places = [f"input_{place}" for place in range(num_inputs)]
    option = dict.fromkeys(places, kind.Single) | ({places[-1]: kind.Optional} if num_inputs > 2 else {})
    schema = OpSchema(
        name,
        domain,
        1,
        inputs=[OpSchema.FormalParameter(place, f"T_{place}", param_option=option[place]) for place in places],
        outputs=[OpSchema.FormalParameter("output", "T_output")],
        type_constraints=[(f"T_{place}", every, "") for place in (*places, "output")],
        attributes=[OpSchema.Attribute(attribute, OpSchema.AttrType.INT) for attribute in attributes],
    )
    return Op(Opset(domain, 1), name, schema)


def _pack_linear(module: fx.GraphModule, node: fx.Node) -> None:
    source, found = node.args[0], _codes_of(module, node.args[1])
    is_integer = "dequantize" in str(source.target)  # type: ignore[union-attr]
    if found is None or is_integer:
        return
    name, codes = found
    columns = codes.codes_OGM[0].numel()
    blocks = _in_blocks(codes)
    bits = None if blocks is None else _bits(blocks, (2, 4))
    # two bits in groups of 16 have no fast kernel
    if blocks is None or bits is None or (bits == 2 and blocks.codes_OGM.shape[2] == _GROUPS[0]):
        return
    with module.graph.inserting_before(node):
        facts = (*_write(module, name, blocks, bits), [columns, blocks.codes_OGM.shape[2], bits])
        value = module.graph.call_function(torch.ops.lighten.packed_linear.default, (source, *facts))
        if len(node.args) > 2 and node.args[2] is not None:
            value = module.graph.call_function(aten.add.Tensor, (value, node.args[2]))
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)


def _pack_embedding(module: fx.GraphModule, node: fx.Node) -> None:
    """flatten((to(codes[ids]) - to(zero[ids])) * scale[ids]), with or without a zero point."""
    product: Any = node.args[0]
    if product.target is not aten.mul.Tensor:
        return
    steps, scale = product.args[:2]
    is_affine = steps.target is aten.sub.Tensor
    names = [_looked_up(part) for part in ((*steps.args[:2], scale) if is_affine else (steps, scale))]
    if any(found is None for found in names):
        return
    codes_OGM, *zeros, scale_OG1 = (tensor_of(module, found.name) for found in names if found is not None)
    codes = _Codes(codes_OGM, scale_OG1, zeros[0] if zeros else torch.zeros_like(scale_OG1, dtype=torch.int8))
    bits = _bits(codes, (2, 4, 8))
    first = names[0]
    if codes_OGM.shape[2] not in _GROUPS or bits is None or first is None:
        return
    name, ids = first.name.removesuffix("_rows_codes"), first.ids
    with module.graph.inserting_before(node):
        packed, *others = _write(module, name, codes, bits, flat=True)
        facts = (packed, ids, *others, [codes_OGM.shape[2], bits])
        value = module.graph.call_function(torch.ops.lighten.packed_embedding.default, facts)
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)


class _Row(NamedTuple):
    name: str
    ids: fx.Node


def _looked_up(node: Any) -> _Row | None:
    """The tensor and the rows of it that an indexing, or a conversion of one, reads."""
    if getattr(node, "target", None) is aten.to.dtype:
        node = node.args[0]
    is_row = getattr(node, "target", None) is aten.index.Tensor and node.args[0].op == "get_attr"
    return _Row(str(node.args[0].target), node.args[1][0]) if is_row else None


def _codes_of(module: fx.GraphModule, node: Any) -> tuple[str, _Codes] | None:
    """The name and the codes of a weight that is dequantized by row or by group."""
    rows = None
    if node.target is aten.reshape.default:
        rows, node = node.args[1][0], node.args[0]
    if node.target is not quantized.dequantize_per_channel.default or node.args[3] != 0:
        return None
    codes, scale, zero = (tensor_of(module, str(argument.target)) for argument in node.args[:3])
    rows = len(codes) if rows is None else rows
    zero_OG1 = zero.to(torch.int8).reshape(rows, -1, 1)
    name = str(node.args[0].target).removesuffix("_codes")
    return name, _Codes(codes.reshape(rows, zero_OG1.shape[1], -1), scale.reshape(rows, -1, 1), zero_OG1)


def _in_blocks(codes: _Codes) -> _Codes | None:
    """In groups that the kernels know. A whole row is split into such groups, each with a copy of its scale; what the last one
    lacks is filled with zeros. None where the groups have another size.
    """
    rows, groups, columns = codes.codes_OGM.shape
    if columns in _GROUPS:
        return codes
    if groups > 1:
        return None
    size = next((group for group in _GROUPS[:-1] if columns <= group), _ROW_GROUP)
    filled_OK = pad(codes.codes_OGM[:, 0] - codes.zero_OG1[:, 0], (0, -columns % size)) + codes.zero_OG1[:, 0]
    codes_OGM = filled_OK.reshape(rows, -1, size)
    return _Codes(codes_OGM, *(value.expand(-1, codes_OGM.shape[1], -1) for value in codes[1:]))


def _bits(codes: _Codes, widths: tuple[int, ...]) -> int | None:
    """The narrowest width that holds codes and zero points."""
    ends = [int(end) for value in (codes.codes_OGM, codes.zero_OG1) for end in torch.aminmax(value)]
    return next((bits for bits in widths if -(2 ** (bits - 1)) <= min(ends) and max(ends) < 2 ** (bits - 1)), None)


def _write(
    module: fx.GraphModule, name: str, codes: _Codes, bits: int, *, flat: bool = False
) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Packed codes O x G x B (flat: O x G B), scales O x G, and packed zero points O x B where there are any."""
    low = -(2 ** (bits - 1))
    rows, groups = codes.scale_OG1.shape[:2]
    packed = pack(codes.codes_OGM, bits, low=low).reshape(rows, groups, -1)
    parts = {SUFFIX: packed.flatten(1) if flat else packed, f"{SUFFIX}_scale": codes.scale_OG1[..., 0].contiguous()}
    if codes.zero_OG1.any():
        zero_OG = pad(codes.zero_OG1[..., 0], (0, -groups % (8 // bits)), value=low)
        parts[f"{SUFFIX}_zero"] = pack(zero_OG, bits, low=low).reshape(rows, -1)
    for suffix, value in parts.items():
        set_tensor(module, f"{name}{suffix}", value)
    written = [module.graph.get_attr(f"{name}{suffix}") for suffix in parts]
    return written[0], written[1], written[2] if len(written) > 2 else None


def _is_table(node: fx.Node) -> bool:
    values, codes = node.args[0], node.args[2]
    return values.op == "get_attr" and codes.target is aten.to.dtype and codes.args[0].op == "get_attr"  # type: ignore[union-attr]


def _unpacked(packed: Tensor, scale_OG: Tensor, zero: Tensor | None, group: int, bits: int) -> Tensor:
    """The weight in float, O x G M."""
    low, (rows, groups) = -(2 ** (bits - 1)), scale_OG.shape
    codes_OGM = unpack(packed, bits, num_codes=rows * groups * group, low=low).reshape(rows, groups, group)
    steps_OGM = codes_OGM.float()
    if zero is not None:
        each = zero.shape[1] * 8 // bits
        zero_OG = unpack(zero, bits, num_codes=rows * each, low=low).reshape(rows, each)[:, :groups]
        steps_OGM = steps_OGM - zero_OG.float()[..., None]
    return (steps_OGM * scale_OG[..., None]).flatten(1)


@torch.library.custom_op("lighten::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, layout: Sequence[int]) -> Tensor:
    """x @ W^T with the packed W, in float. layout: columns, columns of a group, bits."""
    columns, group, bits = layout
    return torch.matmul(x, _unpacked(packed, scale, zero, group, bits)[:, :columns].T)


@_packed_linear.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, layout: Sequence[int]) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@torch.library.custom_op("lighten::packed_embedding", mutates_args=())
def _packed_embedding(packed: Tensor, ids: Tensor, scale: Tensor, zero: Tensor | None, layout: Sequence[int]) -> Tensor:
    """The rows `ids` of the packed table, in float. layout: columns of a group, bits."""
    return _unpacked(packed, scale, zero, *layout)[ids]


@_packed_embedding.register_fake
def _(packed: Tensor, ids: Tensor, scale: Tensor, zero: Tensor | None, layout: Sequence[int]) -> Tensor:
    return scale.new_empty(*ids.shape, scale.shape[1] * layout[0])


@torch.library.custom_op("lighten::look_up", mutates_args=())
def _look_up(values: Tensor, codes: Tensor) -> Tensor:
    """values_PV[p, codes_PN[p, n]]."""
    return torch.gather(values, 1, codes.to(torch.int64))


@torch.library.custom_op("lighten::half", mutates_args=())
def _half(value: Tensor) -> Tensor:
    """The weight as it is: nothing of it may be folded before it is narrow."""
    return value.clone()


@_half.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


@_look_up.register_fake
def _(values: Tensor, codes: Tensor) -> Tensor:
    return values.new_empty(codes.shape)
