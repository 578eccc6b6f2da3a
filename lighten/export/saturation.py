"""Processors that add two 8-bit products in 16 bits lose what does not fit; whether this one does is asked, not assumed.

On x86 without VNNI the fastest kernels multiply uint8 activations with int8 weights by `vpmaddubsw`, whose 16-bit sums
saturate: 255 * 127 * 2 is twice the largest int16. Weights within +-64 cannot saturate (255 * 64 * 2 = 32640), nor can uint8
weights, which run on slower kernels.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lighten.engine.onnx_session import onnx_runtime

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

NARROW_BITS, FULL_BITS = 7, 8
_MOST_NARROW = 64  # 255 * 64 * 2 < 2^15
_OFFSET = 128
_SIZE = 64


@cache
def saturates() -> bool:
    """True when ONNX Runtime's product of uint8 and int8 loses sums on this machine."""
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime = onnx_runtime()

    codes_KO = np.full((_SIZE, _SIZE), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.UINT8, [_SIZE, _SIZE])
    result = helper.make_tensor_value_info("y", TensorProto.INT32, [_SIZE, _SIZE])
    graph = helper.make_graph([node], "probe", [value], [result], [numpy_helper.from_array(codes_KO, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.full((_SIZE, _SIZE), 255, np.uint8)})
    return bool((sums != 255 * 127 * _SIZE).any())


def make_exact(proto: "ModelProto") -> None:
    """Int8 weights that could saturate become uint8 around 128, in place: the same numbers, on kernels that keep them."""
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    wide: dict[str, np.ndarray] = {}
    for node in graph.node:
        name = node.input[1] if node.op_type == "MatMulInteger" else node.input[0] if node.op_type == "DequantizeLinear" else ""
        codes = _codes(initializers.get(name))
        if codes is not None and np.abs(codes.astype(np.int16)).max() > _MOST_NARROW:
            wide[name] = codes
            _point_at_zero(graph, node, name, codes)
    for name, codes in wide.items():
        _replace(initializers[name], (codes.astype(np.int16) + _OFFSET).astype(np.uint8))


def _codes(tensor: Any) -> "np.ndarray | None":
    """The int8 values of a weight (a scalar is no weight), else None."""
    from onnx import TensorProto, numpy_helper

    if tensor is None or tensor.data_type != TensorProto.INT8 or len(tensor.dims) < 2:
        return None
    return numpy_helper.to_array(tensor)


def _point_at_zero(graph: "GraphProto", node: Any, name: str, codes: np.ndarray) -> None:
    """Gives the node zero points of 128: one for MatMulInteger, as many as there are scales for DequantizeLinear."""
    from onnx import numpy_helper

    inputs = list(node.input)
    if node.op_type == "MatMulInteger":
        zero = np.array(_OFFSET, np.uint8)
        inputs = [*inputs[:3], *[""] * (3 - len(inputs)), f"{name}_zero_128"]
    else:
        scale = next(tensor for tensor in graph.initializer if tensor.name == inputs[1])
        zero = np.full(tuple(scale.dims), _OFFSET, np.uint8)
        inputs = [*inputs[:2], f"{name}_zero_128"]
    if all(tensor.name != f"{name}_zero_128" for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(zero, f"{name}_zero_128"))
    del node.input[:]
    node.input.extend(inputs)


def _replace(tensor: Any, values: np.ndarray) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
