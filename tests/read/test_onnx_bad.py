"""Damaged and hostile ONNX files: one clear error, without the memory or the time that they ask for."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_files import network, save

import lighten
from lighten.core.errors import InputError, LightenError
from lighten.read import onnx_build, onnx_graph, onnx_normalize

NODE = helper.make_node
INPUTS = {"x": ("float32", ["n", 3, 8, 8])}
WEIGHT = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
NODES = [
    NODE("Conv", ["x", "w"], ["h"]),
    NODE("Relu", ["h"], ["r"]),
    NODE("GlobalAveragePool", ["r"], ["p"]),
    NODE("Reshape", ["p", "s"], ["y"]),
]
CONSTANTS = {"w": WEIGHT, "s": np.array([0, -1])}


def small():
    return network(NODES, INPUTS, CONSTANTS)


def refuses(proto, folder, message) -> None:
    with pytest.raises(LightenError, match=message):
        lighten.load(save(proto, folder))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a\x3a\xff\xff\xff\xff\x0f", b"\x00" * 100])
def test_a_file_of_something_else_is_refused(content, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx (is not an ONNX file|holds no network)"):
        lighten.load(path)


def test_a_truncated_file_is_refused(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small().SerializeToString()[:-60])
    with pytest.raises(InputError, match="is not an ONNX file, or is damaged"):
        lighten.load(path)


def test_a_tensor_that_is_larger_than_its_data_is_refused_before_memory_is_taken(tmp_path) -> None:
    proto = small()
    proto.graph.initializer[0].dims[0] = 10**9
    refuses(proto, tmp_path, "tensor 'w' has 432 bytes for 27,000,000,000 values|says that it has")
    proto.graph.initializer[0].dims[0] = 8
    refuses(proto, tmp_path, "tensor 'w' has 432 bytes for 216 values. The file is damaged.")
    proto.graph.initializer[0].dims[0] = -4
    refuses(proto, tmp_path, "negative size")


def test_values_that_are_missing_are_counted(tmp_path) -> None:
    proto = small()
    proto.graph.initializer[1].CopyFrom(helper.make_tensor("s", TensorProto.INT64, [2], [0, -1]))
    proto.graph.initializer[1].dims[0] = 2000
    refuses(proto, tmp_path, "tensor 's' has 2 of 2,000 values")


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([NODE("ConstantOfShape", ["big"], ["h"]), NODE("Add", ["x", "h"], ["y"])], {"big": np.array([10**6, 10**6])}),
        ([NODE("Expand", ["x", "big"], ["y"])], {"big": np.array([10**6, 10**6, 1, 1, 8, 8])}),
        ([NODE("Tile", ["x", "big"], ["y"])], {"big": np.array([1, 10**4, 10**4, 100])}),
        ([NODE("Pad", ["x", "big"], ["y"])], {"big": np.array([0, 0, 0, 0, 0, 10**5, 10**5, 0])}),
        ([NODE("Resize", ["x", "", "big"], ["y"])], {"big": np.array([1, 1, 1e6, 1e6], dtype=np.float32)}),
        ([NODE("Range", ["zero", "big", "one"], ["h"]), NODE("Gather", ["x", "h"], ["y"])],
         {"zero": np.array(0), "big": np.array(10**12), "one": np.array(1)}),
    ],
    ids=["constant", "expand", "tile", "pad", "resize", "range"],
)  # fmt: skip
def test_a_few_bytes_that_ask_for_terabytes_are_refused(nodes, constants, tmp_path) -> None:
    started = time.monotonic()
    refuses(network(nodes, INPUTS, constants), tmp_path, "would have the shape|cannot|[Oo]ut of|memory|too large")
    assert time.monotonic() - started < 10


def test_products_of_constants_that_grow_are_refused(tmp_path) -> None:
    """Each doubling is small; together they would take 4 TB."""
    nodes = [NODE("Concat", [f"h{number}", f"h{number}"], [f"h{number + 1}"], axis=0) for number in range(40)]
    nodes.append(NODE("Add", ["x", "h40"], ["y"]))
    refuses(network(nodes, INPUTS, {"h0": np.zeros(100, dtype=np.float32)}), tmp_path, r"would have the shape \(\d+,\)")


def test_an_input_of_terabytes_is_refused(tmp_path) -> None:
    refuses(network([NODE("Relu", ["x"], ["y"])], {"x": ("float32", [10**6, 10**6])}), tmp_path, "would have the shape")


def test_a_cycle_is_named(tmp_path) -> None:
    nodes = [NODE("Add", ["x", "b"], ["a"], name="first"), NODE("Relu", ["a"], ["b"]), NODE("Relu", ["b"], ["y"])]
    refuses(network(nodes, INPUTS), tmp_path, "The nodes around 'first' form a cycle")


def test_a_missing_initializer_is_named(tmp_path) -> None:
    refuses(network(NODES, INPUTS, {"s": CONSTANTS["s"]}), tmp_path, "Nothing in the file gives 'w'")


def test_a_missing_output_is_named(tmp_path) -> None:
    refuses(network(NODES[:2], INPUTS, {"w": WEIGHT}, ["y"]), tmp_path, "Nothing in the file gives the output 'y'")


def test_a_name_made_twice_is_refused(tmp_path) -> None:
    refuses(network([NODE("Relu", ["x"], ["y"]), NODE("Neg", ["x"], ["y"])], INPUTS), tmp_path, "'y' is made twice")


def test_shapes_that_do_not_fit_name_the_node(tmp_path) -> None:
    nodes = [NODE("Conv", ["x", "w"], ["y"], name="stem", group=2)]
    refuses(network(nodes, INPUTS, {"w": WEIGHT}), tmp_path, "Conv 'stem': ")


@pytest.mark.parametrize("attributes", [{"strides": [0, 1]}, {"pads": [1, 2]}, {"kernel_shape": [5, 5]}, {"dilations": [1]}])
def test_attributes_that_cannot_be_are_refused(attributes, tmp_path) -> None:
    refuses(network([NODE("Conv", ["x", "w"], ["y"], **attributes)], INPUTS, {"w": WEIGHT}), tmp_path, "Conv 'y': ")


def test_operators_of_the_future_are_refused(tmp_path) -> None:
    proto = small()
    proto.opset_import[0].version = 999
    refuses(proto, tmp_path, "uses version 999 of ONNX's operators")


def external(proto, location):
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(location)), ("offset", "0"), ("length", str(WEIGHT.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return proto


def test_external_data_beside_the_file_are_read(tmp_path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    model = lighten.load(save(external(small(), "weights.bin"), tmp_path))
    assert torch.equal(next(model.module.parameters()), torch.from_numpy(WEIGHT))


@pytest.mark.parametrize("way", ["up", "absolute", "link"])
def test_external_data_elsewhere_are_not_read(way, tmp_path) -> None:
    secret, folder = tmp_path / "secret.bin", tmp_path / "model"
    folder.mkdir()
    secret.write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(secret)
    location = {"up": "../secret.bin", "absolute": secret, "link": "link.bin"}[way]
    refuses(external(small(), location), folder, "outside the model's folder")


def test_external_data_that_are_missing_or_short_are_named(tmp_path) -> None:
    proto = external(small(), "weights.bin")
    refuses(proto, tmp_path, r"weights\.bin, which holds the tensor 'w', does not exist")
    (tmp_path / "weights.bin").write_bytes(b"1234")
    refuses(proto, tmp_path, r"weights\.bin is too short")


def test_branches_that_are_nested_too_deep_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_graph, "MAX_DEPTH", 2)
    node = NODE("Relu", ["x"], ["y"])
    for _ in range(4):
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, None)])
        node = NODE("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    refuses(network([node], INPUTS, {"c": np.array(True)}), tmp_path, "more than 2 deep")


def test_a_loop_without_end_is_refused(tmp_path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [NODE("Identity", ["going"], ["still"]), NODE("Neg", ["state"], ["new"])],
        "body",
        [info("number", 7, []), info("going", 9, []), info("state", 1, None)],
        [info("still", 9, []), info("new", 1, None)],
    )
    proto = network([NODE("Loop", ["times", "", "x"], ["y"], body=body)], INPUTS, {"times": np.array(2**60)})
    refuses(proto, tmp_path, "more than 256 rounds")


def test_too_many_nodes_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_normalize, "MAX_NODES", 3)
    refuses(small(), tmp_path, "has 4 nodes; 3 are read")


def test_functions_that_call_each_other_are_refused(tmp_path) -> None:
    """The inliner would never end."""
    proto = network([NODE("F", ["x"], ["y"], domain="own")], INPUTS)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for name, other in (("F", "G"), ("G", "F")):
        proto.functions.append(
            helper.make_function("own", name, ["a"], ["b"], [NODE(other, ["a"], ["b"], domain="own")], opsets)
        )
    refuses(proto, tmp_path, "call each other|cannot be inlined")


def test_functions_are_inlined(tmp_path) -> None:
    proto = network([NODE("F", ["x"], ["y"], domain="own")], INPUTS)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    body = [NODE("Neg", ["a"], ["t"]), NODE("Exp", ["t"], ["b"])]
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(lighten.load(save(proto, tmp_path)).module(x), torch.exp(-x))


def test_numbers_that_are_not_finite_are_refused(tmp_path) -> None:
    weight = WEIGHT.copy()
    weight[0] = np.nan
    proto = network(NODES, INPUTS, {**CONSTANTS, "w": weight})
    refuses(proto, tmp_path, "The weights hold NaN or infinity")


def test_names_that_python_cannot_say_do_no_harm(tmp_path) -> None:
    names = {"x": "forward(self): import os #", "w": "__class__.graph", "h": "../../etc", "y": "a\nb"}
    nodes = [NODE("Conv", [names["x"], names["w"]], [names["h"]], name="train"), NODE("Relu", [names["h"]], [names["y"]])]
    path = save(network(nodes, {names["x"]: INPUTS["x"][:2]}, {names["w"]: WEIGHT}, [names["y"]]), tmp_path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(lighten.load(path).module(x), torch.conv2d(x, torch.from_numpy(WEIGHT)).relu(), atol=1e-6)


ORIGINAL = small().SerializeToString()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, len(ORIGINAL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_read_or_refused(changes, tmp_path) -> None:
    content = bytearray(ORIGINAL)
    for place, value in changes:
        content[place] = value
    path = Path(tmp_path) / "model.onnx"
    path.write_bytes(content)
    try:
        lighten.load(path)
    except LightenError as error:
        assert str(error)  # noqa: PT017


def test_limits_are_those_that_the_documentation_names() -> None:
    assert onnx_build.MAX_ELEMENTS == 2**28
    assert onnx_normalize.MAX_FILE_BYTES == 2**31
    assert numpy_helper.to_array(small().graph.initializer[0]).shape == (4, 3, 3, 3)
