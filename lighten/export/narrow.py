"""What fits into fewer bits is stored in fewer bits, and widened again by nodes that ONNX Runtime folds once, at load.

* int8 and uint8 codes become 4-bit and 2-bit tensors behind a Cast. ONNX Runtime has integer kernels for int8 only: the file
  holds 4 or 2 bits a weight, and the same int8 kernels compute. ONNX has no types of 3 or 5 to 7 bits; such codes take the
  next wider one.
* Scales, tables and half-precision weights that float16 or bfloat16 holds without loss are stored in it; scales that are all
  powers of two (OCP MX), as int8 exponents behind Cast and Pow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# element type, least and greatest code, and the first versions of ONNX and its file format that know the type
_TYPES = {
    "INT8": (("INT2", -2, 1, 25, 13), ("INT4", -8, 7, 21, 10)),
    "UINT8": (("UINT2", 0, 3, 25, 13), ("UINT4", 0, 15, 21, 10)),
}
_HALVES = ("FLOAT16", "BFLOAT16")
_FEWEST_VALUES = 64  # below, a node costs more bytes than it saves
_OURS = ("_scale", "_values", "_half")  # names of what we wrote; whatever else is float stays as its owner has it


def narrow_codes(proto: "ModelProto") -> None:
    """Stores every weight of integers in the narrowest type that holds its codes, in place. No result changes."""
    from onnx import TensorProto

    for tensor in [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1 and _is_large(tensor)]:
        kind = TensorProto.DataType.Name(tensor.data_type)
        if kind in _TYPES:
            _narrow(proto, tensor, kind)


def narrow_floats(proto: "ModelProto") -> None:
    """Stores scales, tables and rounded weights in the narrowest type that holds each value, in place. No result changes."""
    from onnx import TensorProto, numpy_helper

    # a fused integer kernel wants its scales as they are
    fused = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name.endswith(_OURS) and _is_large(tensor)]:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in fused:
            _narrow_float(proto, tensor, numpy_helper.to_array(tensor))


def _is_large(tensor: "TensorProto") -> bool:
    return int(np.prod(tensor.dims)) >= _FEWEST_VALUES


def _narrow(proto: "ModelProto", tensor: "TensorProto", kind: str) -> None:
    from onnx import TensorProto, helper, numpy_helper

    codes = numpy_helper.to_array(tensor)
    for narrow, least, greatest, opset, file_format in _TYPES[kind]:
        if least <= codes.min() and codes.max() <= greatest:
            name, short = tensor.name, f"{tensor.name}_{narrow.lower()}"
            dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(narrow))
            tensor.CopyFrom(numpy_helper.from_array(codes.astype(dtype), short))
            _put_first(
                proto.graph, [helper.make_node("Cast", [short], [name], f"{name}_cast", to=TensorProto.DataType.Value(kind))]
            )
            _require(proto, opset, file_format)
            return


def _narrow_float(proto: "ModelProto", tensor: "TensorProto", values: np.ndarray) -> None:
    from onnx import TensorProto, helper, numpy_helper

    name, short = tensor.name, f"{tensor.name}_short"
    fractions, exponents = np.frexp(values)
    if (fractions == 0.5).all() and np.abs(exponents - 1).max() < 128:
        tensor.CopyFrom(numpy_helper.from_array((exponents - 1).astype(np.int8), short))
        proto.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), f"{name}_two"))
        cast = helper.make_node("Cast", [short], [f"{name}_exponents"], f"{name}_cast", to=TensorProto.FLOAT)
        _put_first(proto.graph, [cast, helper.make_node("Pow", [f"{name}_two", f"{name}_exponents"], [name], f"{name}_power")])
        return
    for kind in _HALVES:
        half = values.astype(helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind)))
        if np.array_equal(half.astype(np.float32), values):
            tensor.CopyFrom(numpy_helper.from_array(half, short))
            _put_first(proto.graph, [helper.make_node("Cast", [short], [name], f"{name}_cast", to=TensorProto.FLOAT)])
            return


def _put_first(graph: "GraphProto", first: "Sequence[NodeProto]") -> None:
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _require(proto: "ModelProto", opset: int, file_format: int) -> None:
    """Later versions of the operators we write only allow more types."""
    proto.ir_version = max(proto.ir_version, file_format)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, opset)
