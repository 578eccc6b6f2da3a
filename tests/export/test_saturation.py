"""Weights that would saturate are written so that they do not, whatever the machine of the test."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lighten.core.graph import Site
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.export.saturation import make_exact
from lighten.search.narrow import narrowed

K, COLUMNS = 32, 8


def dynamic_product(codes_KO):
    """MatMulInteger of uint8 x with int8 codes, zero points left out."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    return model([node], [numpy_helper.from_array(codes_KO, "w")], TensorProto.INT32)


def static_product(codes_KO):
    """Dequantized x times dequantized weights: what the runtime fuses into one integer product."""
    scales = {"xs": np.float32(1), "ws": np.ones(COLUMNS, np.float32), "wz": np.zeros(COLUMNS, np.int8), "xz": np.uint8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in scales.items()]
    return model(nodes, [numpy_helper.from_array(codes_KO, "w"), *constants], TensorProto.FLOAT)


def model(nodes, constants, kind):
    value = helper.make_tensor_value_info("x", TensorProto.UINT8, [4, K])
    result = helper.make_tensor_value_info("y", kind, [4, COLUMNS])
    graph = helper.make_graph(nodes, "product", [value], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("product", [dynamic_product, static_product])
def test_products_of_the_largest_codes_are_exact(product):
    proto = product(np.full((K, COLUMNS), 127, np.int8))
    make_exact(proto)
    onnx.checker.check_model(proto)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.full((K, COLUMNS), 255, np.uint8))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.full((4, K), 255, np.uint8)})
    np.testing.assert_array_equal(sums, np.full((4, COLUMNS), 255 * 127 * K))


def test_weights_within_64_stay_as_they_are():
    proto = dynamic_product(np.full((K, COLUMNS), -64, np.int8))
    before = proto.SerializeToString()
    make_exact(proto)
    assert proto.SerializeToString() == before


def test_seven_bits_go_to_all_but_depthwise_and_stored_weights():
    plan = Plan({"a": Quant(), "b": Quant(), "c": Quant(activations=None), "d": Quant(weights=None), "e": Quant(dynamic=True)})
    found = narrowed(plan, [Site(name, "conv2d", name, depthwise=name == "b") for name in plan])
    assert {name: spec.weights for name, spec in found.items()} == {"a": 7, "b": 8, "c": 8, "d": None, "e": 7}
