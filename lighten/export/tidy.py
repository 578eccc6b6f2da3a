"""Passes over an ONNX file that change no result, only what the runtime can recognise and what the file weighs.

* Source locations and other metadata of the exporter are dropped: they are a tenth of a small int8 file.
* Zero padding in front of a convolution becomes its `pads`: QDQ fusion does not look through a Pad.
* Zero points of convolution weights that are all zero are dropped: they are the default. (Gemm needs them spelled out.)
* The bias of an integer Gemm becomes int32 on the scale of the accumulator, as integer kernels add it.
* Weights that are stored in int8 but computed in float are written as Cast and Mul, which ONNX Runtime folds once at load; a
  DequantizeLinear would be computed again at every call.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def tidy(proto: "ModelProto") -> None:
    """Applies every pass in place."""
    strip(proto)
    fold_pads(proto.graph)
    drop_zero_points(proto.graph)
    fold_stored_weights(proto.graph)
    quantize_biases(proto.graph)
    drop_unused(proto.graph)


def name_outputs(graph: "GraphProto", names: Sequence[str]) -> None:
    """Gives the outputs their names; an inner tensor that had such a name already is renamed. (The exporter's own renaming
    makes two tensors of one name then.)
    """
    change = {name: f"{name}_inner" for name in names}
    change |= {output.name: name for output, name in zip(graph.output, names, strict=False)}
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [change.get(name, name) for name in tensors]
    for output in graph.output:
        output.name = change[output.name]
    for entry in (*graph.initializer, *graph.value_info):
        entry.name = change.get(entry.name, entry.name)


def strip(proto: "ModelProto") -> None:
    """Removes documentation, metadata and intermediate shapes."""
    del proto.metadata_props[:]
    proto.graph.doc_string = ""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    for item in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def fold_pads(graph: "GraphProto") -> None:
    """Pad(constant, 0) -> Conv becomes Conv with those pads added to its own."""
    producers, readers, constants = _index(graph)
    for node in list(graph.node):
        pad = producers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or len(readers[pad.output[0]]) > 1:
            continue
        amounts = _pad_amounts(pad, constants)
        if amounts is None or _attribute(node, "auto_pad") not in (None, b"NOTSET"):
            continue
        _add_pads(node, amounts)
        node.input[0] = pad.input[0]


def drop_zero_points(graph: "GraphProto") -> None:
    """DequantizeLinear(codes, scale, 0) -> DequantizeLinear(codes, scale) where only convolutions read the codes."""
    _, readers, constants = _index(graph)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in constants:
            zero = constants.get(node.input[2])
            only_convolutions = all(reader.op_type == "Conv" for reader in readers[node.output[0]])
            if zero is not None and not zero.any() and only_convolutions:
                del node.input[2]


def fold_stored_weights(graph: "GraphProto") -> None:
    """DequantizeLinear of an initializer that feeds float computation becomes Cast and Mul."""
    from onnx import TensorProto, helper, numpy_helper

    producers, readers, constants = _index(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        is_stored = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if not is_stored or any(_runs_in_integers(reader, producers) for reader in readers[node.output[0]]):
            nodes.append(node)
            continue
        codes, scale = constants[node.input[0]], constants[node.input[1]]
        shape = [1] * codes.ndim
        shape[_axis(node) if scale.size > 1 else 0] = scale.size
        name, scale_name = node.output[0], f"{node.output[0]}_scale"
        graph.initializer.append(numpy_helper.from_array(scale.reshape(shape).astype(np.float32), scale_name))
        nodes.append(helper.make_node("Cast", [node.input[0]], [f"{name}_float"], f"{name}_cast", to=TensorProto.FLOAT))
        zero = _zero_points(node, producers, constants)
        if zero.any():
            graph.initializer.append(numpy_helper.from_array(zero.reshape(shape), f"{name}_zero"))
            nodes.append(helper.make_node("Cast", [f"{name}_zero"], [f"{name}_zero_float"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Sub", [f"{name}_float", f"{name}_zero_float"], [f"{name}_steps"]))
        steps = f"{name}_steps" if zero.any() else f"{name}_float"
        nodes.append(helper.make_node("Mul", [steps, scale_name], [name], f"{name}_scaled"))
    del graph.node[:]
    graph.node.extend(nodes)


def quantize_biases(graph: "GraphProto") -> None:
    """The float bias of a Gemm between dequantized operands becomes DequantizeLinear of int32 codes: without it ONNX Runtime
    computes the Gemm in float. (A float bias of Conv it converts itself.)

    Rounds the bias to a step of input scale * weight scale: at most half an accumulator unit.
    """
    producers, _, constants = _index(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        operands = (
            [producers.get(name) for name in node.input[:2]] if node.op_type == "Gemm" and len(node.input) == 3 else [None]
        )
        if all(operand is not None and operand.op_type == "DequantizeLinear" for operand in operands):
            scales = [constants[operand.input[1]].astype(np.float32) for operand in operands if operand is not None]
            bias = constants[node.input[2]]
            nodes.append(_int32_bias(graph, node, bias, scales[0] * np.broadcast_to(scales[1], bias.shape)))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def drop_unused(graph: "GraphProto") -> None:
    """Removes nodes and initializers that nothing reads."""
    outputs = {output.name for output in graph.output}
    while True:
        read = outputs | {name for node in graph.node for name in node.input}
        dead = [node for node in graph.node if not any(name in read for name in node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _index(
    graph: "GraphProto",
) -> tuple[dict[str, "NodeProto"], dict[str, list["NodeProto"]], dict[str, np.ndarray]]:
    """By tensor name: the node that makes it, the nodes that read it, its value when it is an initializer."""
    from onnx import numpy_helper

    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return producers, readers, constants


def _zero_points(node: "NodeProto", producers: dict[str, "NodeProto"], constants: dict[str, np.ndarray]) -> np.ndarray:
    """Of a DequantizeLinear, int8; the exporter leaves the Cast of many of them in place."""
    name = node.input[2] if len(node.input) > 2 else ""
    while name in producers and name not in constants:
        name = producers[name].input[0]
    return constants[name].astype(np.int8) if name else np.zeros(1, np.int8)


def _attribute(node: "NodeProto", name: str) -> "int | bytes | list[int] | None":
    from onnx import helper

    found = [attribute for attribute in node.attribute if attribute.name == name]
    return helper.get_attribute_value(found[0]) if found else None


def _axis(node: "NodeProto") -> int:
    axis = _attribute(node, "axis")
    return axis if isinstance(axis, int) else 1


def _pad_amounts(pad: "NodeProto", constants: dict[str, np.ndarray]) -> list[int] | None:
    """[begin..., end...] over the spatial dimensions, None when the padding is not constant zeros there."""
    mode = _attribute(pad, "mode")
    value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    amounts = constants.get(pad.input[1])
    has_axes = len(pad.input) > 3 and bool(pad.input[3])
    if mode not in (None, b"constant") or value is None or value.any() or amounts is None or has_axes:
        return None
    begin, end = np.split(amounts, 2)
    if begin[:2].any() or end[:2].any() or (amounts < 0).any():
        return None
    return [int(amount) for amount in (*begin[2:], *end[2:])]


def _add_pads(conv: "NodeProto", amounts: list[int]) -> None:
    from onnx import helper

    old = _attribute(conv, "pads")
    total = [a + b for a, b in zip(old, amounts, strict=True)] if isinstance(old, list) else amounts
    kept = [attribute for attribute in conv.attribute if attribute.name not in ("pads", "auto_pad")]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute("pads", total)])


def _int32_bias(graph: "GraphProto", gemm: "NodeProto", bias: np.ndarray, scale: np.ndarray) -> "NodeProto":
    """Points the Gemm at the new bias and returns the node that dequantizes it."""
    from onnx import helper, numpy_helper

    name = f"{gemm.output[0]}_bias"
    limit = 2.0**31 - 129  # the largest float32 below 2^31, so that the cast cannot wrap
    codes = np.clip(np.rint(bias.astype(np.float64) / scale), -limit, limit).astype(np.int32)
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    gemm.input[2] = name
    return helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], name, axis=0)


def _runs_in_integers(reader: "NodeProto", producers: dict[str, "NodeProto"]) -> bool:
    """True when the reader's activation is dequantized too: then the runtime fuses both into an integer kernel."""
    source = producers.get(reader.input[0])
    return reader.op_type in ("Conv", "MatMul", "Gemm") and source is not None and source.op_type == "DequantizeLinear"
