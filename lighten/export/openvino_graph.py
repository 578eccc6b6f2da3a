"""What is changed and read on OpenVINO's own graphs.

Weights are stored in the narrowest type that has kernels: int4 codes as i4, or as u4 where they have zero points. A grouped
weight reaches OpenVINO as rows of one group each; its kernels want the groups as a dimension of their own, O x G x M.

Dimension key: O output channels, G groups of a row, M columns of a group.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from lighten.ops.packing import pack

_BITS, _LOW = 4, -8
_FEWEST = 64  # codes; below, a conversion costs more bytes than it saves
_CAST = "_cast"  # how tidy.py names the conversion of weights that are only stored in integers
_NAMES = {"Convolution": "Conv", "GroupConvolution": "Conv", "Deconvolution": "ConvTranspose", "FullyConnected": "MatMul"}
_NAMES |= {"FakeQuantize": "QuantizeLinear"}
_WITHOUT_WORK = ("Input", "Output", "Const", "Reorder")
_PRODUCTS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
_FEW_BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8}


def narrow_weights(model: Any) -> None:
    """Stores the codes of weights in four bits where they fit, and groups as the kernels want them, in place; nothing is
    rounded.
    """
    for constant in [node for node in model.get_ordered_ops() if _is_codes(node)]:
        converts = _readers(constant)
        if all(one.get_type_name() == "Convert" and one.get_friendly_name().endswith(_CAST) for one in converts):
            for convert in converts:
                _store_weight(constant, convert)
        else:
            _store_only(constant)
    model.validate_nodes_and_infer_types()


def name_by_place(model: Any) -> None:
    """Nodes without a name of their own have one with the number of nodes that the process has made so far: the same network
    would give another file each time. Changed in place.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        kind, _, number = node.get_friendly_name().rpartition("_")
        if kind == node.get_type_name() and number.isdigit():
            node.set_friendly_name(f"{kind}.{place}")


def weight_products(model: Any) -> dict[str, str]:
    """Names of the weights that are codes, by that of the layer whose product reads them."""
    found: dict[str, str] = {}
    for constant in [node for node in model.get_ordered_ops() if _is_codes(node, kinds=("i8", "i4", "u4"))]:
        name = constant.get_friendly_name().removesuffix("_transposed")
        if name.endswith("_codes"):  # zero points are integers too
            weight = name.removesuffix("_codes")
            found |= {product: weight for convert in _readers(constant) for product in _products(convert)}
    return found


def computed_weights(compiled: Any, products: Mapping[str, str]) -> frozenset[str]:
    """Names of the weights that products read in the few bits they are stored in. products: as `weight_products` gives them."""
    names: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        weight = _weight_of(node)
        if weight is not None and not _is_integer(node) and _fact(weight, "runtimePrecision") in _FEW_BITS:
            sources = _fact(node, "originalLayersNames").split(",")
            names |= {products[_layer(name)] for name in sources if _layer(name) in products}
    return frozenset(names)


def count(compiled: Any) -> dict[str, int]:
    """Executed nodes by operator and number format: int8 where both sides are integers; the bits of the weight where they are
    read as they are stored.
    """
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = _fact(node, "layerType")
        name = _NAMES.get(kind, kind)
        if kind in _WITHOUT_WORK or _is_constant(node):
            continue
        if name == "QuantizeLinear":
            counts[name] += 1
        else:
            counts[f"{name}:{_format(node, kind)}"] += 1
    return dict(sorted(counts.items()))


def _format(node: Any, kind: str) -> str:
    if _is_integer(node):
        return "int8"
    weight = _weight_of(node)
    if weight is not None and _fact(weight, "runtimePrecision") in _FEW_BITS:
        return f"int{_FEW_BITS[_fact(weight, 'runtimePrecision')]}"
    precision = _fact(node, "runtimePrecision")
    return {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}.get(precision, precision)


def _is_integer(node: Any) -> bool:
    """Kernels of integer products say so in their names: brgemm_avx512_I8."""
    return _fact(node, "layerType") in _PRODUCTS and _fact(node, "primitiveType").endswith(("_I8", "_i8", "_u8"))


def _weight_of(node: Any) -> Any:
    """The constant on the right side of a linear layer's product, else None."""
    if _fact(node, "layerType") != "FullyConnected":
        return None
    weight = node.input_values()[1].get_node()
    while _fact(weight, "layerType") in ("Transpose", "Reorder"):
        weight = weight.input_values()[0].get_node()
    return weight if _fact(weight, "layerType") == "Const" else None


def _is_constant(node: Any) -> bool:
    """True where all that flows in is constant: computed once, at load."""
    sources = [value.get_node() for value in node.input_values()]
    return bool(sources) and all(_fact(source, "layerType") == "Const" or _is_constant(source) for source in sources)


def _fact(node: Any, key: str) -> str:
    facts = node.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""


def _is_codes(node: Any, *, kinds: tuple[str, ...] = ("i8",)) -> bool:
    is_constant = node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in kinds
    return is_constant and len(node.shape) > 1 and math.prod(node.shape) >= _FEWEST


def _readers(node: Any) -> list[Any]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]


def _layer(name: str) -> str:
    """Of "node_addmm/WithoutBiases" the first part: OpenVINO's own pieces of one ONNX node."""
    return name.partition("/")[0]


def _sums(node: Any) -> list[Any]:
    """The sum with the bias behind a product, which Gemm multiplies by one first."""
    found = []
    for one in _readers(node):
        kind = one.get_type_name()
        found += [one] if kind == "Add" else _sums(one) if kind == "Multiply" else []
    return found


def _products(node: Any) -> list[str]:
    """Names of the products that read what is made of a weight; one with a bias has the name of the sum."""
    if node.get_type_name() == "MatMul":
        return [_layer(one.get_friendly_name()) for one in (node, *_sums(node))]
    passed = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
    return [name for one in _readers(node) if one.get_type_name() in (*passed, "MatMul") for name in _products(one)]


def _store_only(constant: Any) -> None:
    """Converted back to int8, which OpenVINO does once at load."""
    from openvino import Type, opset13

    if not _fits(constant.data):
        return
    narrow = _four_bits(constant.data, Type.i4, name=f"{constant.get_friendly_name()}_int4")
    readers = constant.output(0).get_target_inputs()
    wide = opset13.convert(narrow, Type.i8, name=f"{constant.get_friendly_name()}_int8")
    for reader in readers:
        reader.replace_source_output(wide.output(0))


def _store_weight(constant: Any, convert: Any) -> None:
    """The codes of a weight that is dequantized and read by a product in float."""
    from openvino import Type

    pattern = _scaled(convert)
    if pattern is None:
        return
    scaled, scale, zeros = pattern
    shape = _grouped_shape(constant, scaled, scale.constant)
    parts = [_Part(convert.input(0), constant), *zeros]
    four_bits = (Type.u4 if zeros else Type.i4) if all(_fits(part.constant.data) for part in parts) else None
    for part in parts:
        part.replace(shape, four_bits)
    scale.replace(shape, None)


class _Part(NamedTuple):
    """A constant and the place that reads it."""

    port: Any
    constant: Any

    def replace(self, shape: tuple[int, int, int] | None, kind: Any) -> None:
        """With groups as a dimension, where there is a shape, and in four bits, where there is a kind."""
        if shape is None and kind is None:
            return
        values, name = self.constant.data, self.constant.get_friendly_name()
        values = values if shape is None else values.reshape(*shape[:2], -1)
        made = _constant(values, name) if kind is None else _four_bits(values, kind, name=name)
        self.port.replace_source_output(made.output(0))


def _scaled(convert: Any) -> tuple[Any, _Part, tuple[_Part, ...]] | None:
    """The Multiply behind the codes, its scale, and the zero points where there are any; None where the pattern is another."""
    reader, zeros = _only_reader(convert), []
    if reader is not None and reader.get_type_name() == "Subtract":
        zeros = [_part(reader)]
        reader = _only_reader(reader)
    if reader is None or reader.get_type_name() != "Multiply":
        return None
    scale = _part(reader)
    return None if scale is None or None in zeros else (reader, scale, tuple(zero for zero in zeros if zero is not None))


def _part(node: Any) -> _Part | None:
    """The constant on the right side, behind a conversion where there is one."""
    port = node.input(1)
    if port.get_source_output().get_node().get_type_name() == "Convert":
        port = port.get_source_output().get_node().input(0)
    constant = port.get_source_output().get_node()
    return _Part(port, constant) if constant.get_type_name() == "Constant" else None


def _only_reader(node: Any) -> Any:
    readers = _readers(node)
    return readers[0] if len(readers) == 1 else None


def _grouped_shape(constant: Any, scaled: Any, scale: Any) -> tuple[int, int, int] | None:
    """O, G, M of a weight whose rows are groups and are put together behind the scale; None where each row has one scale."""
    reader = _only_reader(scaled)
    is_reshaped = reader is not None and reader.get_type_name() == "Reshape"
    if not is_reshaped or constant.data.ndim != 2 or scale.data.size != constant.data.shape[0]:
        return None
    rows, columns = constant.data.shape
    outputs = reader.output(0).partial_shape[0]
    if outputs.is_dynamic or rows % outputs.get_length():
        return None
    return outputs.get_length(), rows // outputs.get_length(), columns


def _fits(codes: np.ndarray) -> bool:
    return bool(codes.dtype == np.int8 and codes.min() >= _LOW and codes.max() < _LOW + 2**_BITS)


def _constant(values: np.ndarray, name: str) -> Any:
    from openvino import op

    made = op.Constant(np.ascontiguousarray(values))
    made.set_friendly_name(name)
    return made


def _four_bits(codes: np.ndarray, kind: Any, *, name: str) -> Any:
    """i4 holds two's complement, u4 the codes 8 higher; zero points move along."""
    from openvino import Shape, Tensor, Type, op

    values = torch.from_numpy(np.ascontiguousarray(codes))
    raw = pack(values, _BITS, low=_LOW) if kind == Type.u4 else pack(values.to(torch.int16) & 15, _BITS)
    made = op.Constant(Tensor(raw.numpy(), Shape(list(codes.shape)), kind), shared_memory=False)
    made.set_friendly_name(name)
    return made
