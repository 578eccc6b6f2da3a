"""Codes of 4 and 2 bits: stored in as many, computed by the int8 kernels, and the same numbers come out."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lighten.export.narrow import narrow_codes

ort = pytest.importorskip("onnxruntime")
SIZE = 64


def network(codes_OI: np.ndarray) -> onnx.ModelProto:
    """A quantized convolution of one pixel: x -> uint8 -> codes -> uint8 -> y."""
    named = {
        **{"scale": np.float32(0.02), "zero": np.uint8(128), "wide": np.float32(0.2)},
        **{"w": codes_OI.astype(np.int8)[..., None, None], "w_scale": np.full(len(codes_OI), 0.01, np.float32)},
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("DequantizeLinear", ["w", "w_scale"], ["v"], axis=0),
        node("Conv", ["d", "v"], ["c"]),
        node("QuantizeLinear", ["c", "wide", "zero"], ["e"]),
        node("DequantizeLinear", ["e", "wide", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, codes_OI.shape[1], 4, 4])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in named.items()]
    graph = helper.make_graph(nodes, "one", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(proto: onnx.ModelProto) -> np.ndarray:
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(1, SIZE, 4, 4)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(("low", "high", "bits"), [(-8, 7, 4), (-7, 7, 4), (-4, 3, 4), (-2, 1, 2), (-1, 1, 2), (-9, 7, 8)])
def test_the_file_holds_the_fewest_bits_and_gives_the_same_numbers(low: int, high: int, bits: int) -> None:
    codes_OI = np.random.default_rng(1).integers(low, high, size=(SIZE, SIZE), endpoint=True)
    codes_OI.flat[0], codes_OI.flat[1] = low, high
    wide, narrow = network(codes_OI), network(codes_OI)
    narrow_codes(narrow)
    np.testing.assert_array_equal(answer(narrow), answer(wide))
    saved = len(wide.SerializeToString()) - len(narrow.SerializeToString())
    # a Cast node and two names take the rest
    assert 0 <= SIZE * SIZE * (8 - bits) // 8 - saved < 100


def test_biases_scalars_and_tiny_weights_stay_as_they_are() -> None:
    proto = network(np.ones((4, 4)))
    before = proto.SerializeToString()
    narrow_codes(proto)
    assert proto.SerializeToString() == before


def test_the_integer_kernel_still_computes(tmp_path: Any) -> None:
    proto = network(np.random.default_rng(1).integers(-7, 8, size=(SIZE, SIZE)))
    narrow_codes(proto)
    options: Any = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in kinds
    assert "Cast" not in kinds
