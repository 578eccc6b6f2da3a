"""Codes of few bits are stored in few bits: 4-bit and 2-bit integer tensors behind a Cast to int8.

ONNX Runtime has integer kernels for int8 only. It folds the Cast of a constant once, at load: the file holds 4 or 2 bits a
weight, and the same int8 kernels compute. ONNX has no types of 3 or 5 to 7 bits; such codes take the next wider one.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# element type, least and greatest code, and the first versions of ONNX and its file format that know the type
_TYPES = (("INT2", -2, 1, 25, 13), ("INT4", -8, 7, 21, 10))
_FEWEST_VALUES = 64  # below, a node costs more bytes than it saves


def narrow_codes(proto: "ModelProto") -> None:
    """Stores every int8 weight in the narrowest type that holds its codes, in place. No result changes."""
    for tensor in [tensor for tensor in proto.graph.initializer if _is_weight(tensor)]:
        _narrow(proto, tensor)


def _is_weight(tensor: "TensorProto") -> bool:
    from onnx import TensorProto

    return tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1 and int(np.prod(tensor.dims)) >= _FEWEST_VALUES


def _narrow(proto: "ModelProto", tensor: "TensorProto") -> None:
    from onnx import TensorProto, helper, numpy_helper

    codes = numpy_helper.to_array(tensor)
    for kind, least, greatest, opset, file_format in _TYPES:
        if least <= codes.min() and codes.max() <= greatest:
            name, short = tensor.name, f"{tensor.name}_{kind.lower()}"
            dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
            tensor.CopyFrom(numpy_helper.from_array(codes.astype(dtype), short))
            _put_first(proto.graph, helper.make_node("Cast", [short], [name], f"{name}_cast", to=TensorProto.INT8))
            _require(proto, opset, file_format)
            return


def _put_first(graph: "GraphProto", node: "NodeProto") -> None:
    nodes = [node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _require(proto: "ModelProto", opset: int, file_format: int) -> None:
    """Later versions of the operators we write only allow more types."""
    proto.ir_version = max(proto.ir_version, file_format)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, opset)
