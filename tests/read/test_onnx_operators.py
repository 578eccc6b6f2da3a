"""Families of ONNX operators against ONNX Runtime, with random numbers: every case is a file that both load and run."""

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_files import differ, network, save

RANDOM = np.random.default_rng(0)
X = [2, 3, 8, 7]
Y = ["y"]


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def node(op_type, inputs="x", outputs=1, **attributes):
    return helper.make_node(
        op_type, inputs.split(), [f"y{number}" for number in range(outputs)] if outputs > 1 else Y, **attributes
    )


W, B = normal(6, 3, 3, 3), normal(6)
W1 = normal(6, 1, 3, 3)
CONVOLUTIONS = {
    "plain": (node("Conv", "x w b"), {"w": W, "b": B}),
    "strided, uneven pads": (node("Conv", "x w", pads=[0, 1, 2, 1], strides=[2, 1]), {"w": W}),
    "same upper": (node("Conv", "x w b", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": W, "b": B}),
    "same lower": (node("Conv", "x w b", auto_pad="SAME_LOWER", strides=[2, 2]), {"w": W, "b": B}),
    "valid, dilated": (node("Conv", "x w b", auto_pad="VALID", dilations=[2, 1]), {"w": W, "b": B}),
    "depthwise": (node("Conv", "x w", group=3, pads=[1] * 4), {"w": W1}),
    "transposed": (node("ConvTranspose", "x w", strides=[2, 3], pads=[1, 0, 1, 0]), {"w": normal(3, 4, 3, 3)}),
    "transposed, output padding": (
        node("ConvTranspose", "x w", strides=[2, 2], output_padding=[1, 1], pads=[1] * 4),
        {"w": normal(3, 4, 3, 3)},
    ),
    "transposed, uneven": (
        node("ConvTranspose", "x w b", strides=[2, 2], pads=[0, 1, 1, 0]),
        {"w": normal(3, 6, 3, 3), "b": B},
    ),
    "transposed, same": (node("ConvTranspose", "x w", strides=[2, 2], auto_pad="SAME_UPPER"), {"w": normal(3, 6, 3, 3)}),
    "transposed, groups": (node("ConvTranspose", "x w", group=3), {"w": normal(3, 2, 3, 3)}),
}
POOLS = {
    "max": node("MaxPool", kernel_shape=[3, 2], strides=[2, 1]),
    "max, ceil": node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max, uneven pads": node("MaxPool", kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
    "max, same, dilated": node("MaxPool", kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[2, 2]),
    "max, places": node("MaxPool", outputs=2, kernel_shape=[2, 2], strides=[2, 2]),
    "mean": node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "mean, padding counted": node("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "mean, ceil": node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "mean, ceil, padding counted": node(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1] * 4, count_include_pad=1
    ),
    "mean, same": node("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    "norm": node("LpPool", kernel_shape=[2, 2], p=2),
    "all, mean": node("GlobalAveragePool"),
    "all, max": node("GlobalMaxPool"),
}
ACTIVATIONS = [
    *("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Softplus", "Softsign", "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid"),
    *("HardSwish", "Mish", "Gelu", "ThresholdedRelu", "Shrink", "Sin", "Cos", "Tan", "Atan", "Sinh", "Asinh", "Abs", "Neg"),
    *("Ceil", "Floor", "Round", "Sign", "Reciprocal", "LogSoftmax", "Softmax", "Identity"),
]
NORMS = {
    "layer": (node("LayerNormalization", "x s b", axis=-1, epsilon=1e-3), {"s": normal(7), "b": normal(7)}),
    "layer, two dimensions": (node("LayerNormalization", "x s", axis=2), {"s": normal(8, 7)}),
    "instance": (node("InstanceNormalization", "x s b"), {"s": normal(3), "b": normal(3)}),
    "local response": (node("LRN", size=3, alpha=0.1, beta=0.7, bias=1.2), {}),
    "length": (node("LpNormalization", axis=1, p=2), {}),
    "mean and variance": (node("MeanVarianceNormalization", axes=[0, 2, 3]), {}),
    "groups": (node("GroupNormalization", "x s b", num_groups=3), {"s": normal(3), "b": normal(3)}),
}
INDICES = np.array([[0, 2], [-1, 1]])
PLACES = {
    "gather": (node("Gather", "x i", axis=2), {"i": INDICES}),
    "gather, one": (node("Gather", "x i", axis=-1), {"i": np.array(-2)}),
    "gather elements": (node("GatherElements", "x i", axis=3), {"i": RANDOM.integers(-7, 7, (2, 3, 8, 4))}),
    "gather nd": (node("GatherND", "x i"), {"i": np.array([[0, 1], [1, -1]])}),
    "gather nd, batches": (node("GatherND", "x i", batch_dims=1), {"i": np.array([[0], [2]])}),
    "scatter elements": (
        node("ScatterElements", "x i u", axis=1, reduction="add"),
        {"i": np.zeros((1, 2, 3, 3), dtype=np.int64), "u": normal(1, 2, 3, 3)},
    ),
    "scatter nd": (node("ScatterND", "x i u"), {"i": np.array([[0, 2], [1, -1]]), "u": normal(2, 8, 7)}),
    "scatter nd, max": (node("ScatterND", "x i u", reduction="max"), {"i": np.array([[0], [0]]), "u": normal(2, 3, 8, 7)}),
    "slice": (
        node("Slice", "x b e a t"),
        {"b": np.array([1, -1]), "e": np.array([2**62, -(2**62)]), "a": np.array([1, 3]), "t": np.array([1, -2])},
    ),
    "largest": (node("TopK", "x k", outputs=2, axis=3), {"k": np.array([3])}),
    "smallest": (node("TopK", "x k", outputs=2, axis=1, largest=0), {"k": np.array([2])}),
    "split": (node("Split", "x s", outputs=2, axis=2), {"s": np.array([3, 5])}),
    "split, equal": (node("Split", outputs=3, axis=3, num_outputs=3), {}),
    "cumulative": (node("CumSum", "x a", exclusive=1, reverse=1), {"a": np.array(2)}),
    "triangle": (node("Trilu", "x k", upper=0), {"k": np.array(-1)}),
    "pad": (node("Pad", "x p v"), {"p": np.array([0, 0, 1, 2, 0, 1, 0, -1]), "v": np.float32(2)}),
    "pad, mirrored": (node("Pad", "x p", mode="reflect"), {"p": np.array([0, 1, 1, 2, 0, 0, 0, 3])}),
    "pad, edges": (helper.make_node("Pad", ["x", "p", "", "a"], Y, mode="edge"), {"p": np.array([2, 1]), "a": np.array([2])}),
    "tile": (node("Tile", "x r"), {"r": np.array([1, 2, 1, 3])}),
    "expand": (node("Expand", "x s"), {"s": np.array([4, 1, 3, 8, 1])}),
    "space to depth": (node("SpaceToDepth", "z", blocksize=2), {"z": normal(2, 3, 8, 6)}),
    "where": (node("Where", "c x o"), {"c": RANDOM.random((8, 7)) > 0.5, "o": normal(7)}),
    "place of the largest": (node("ArgMax", axis=2, keepdims=0, select_last_index=1), {}),
    "reverse": (node("ReverseSequence", "x l", batch_axis=0, time_axis=1), {"l": np.array([3, 2])}),
    "flatten": (node("Flatten", axis=2), {}),
    "transpose": (node("Transpose", perm=[2, 0, 3, 1]), {}),
}
REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]
RESIZES = {
    "nearest, twice": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "nearest, as ONNX does by itself": {"mode": "nearest"},
    "linear": {"mode": "linear"},
    "linear, corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    "linear, asymmetric": {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    "cubic": {"mode": "cubic"},
    "cubic, other kernel": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
}


def check(case, tmp_path, constants=None, close=1e-5, opset=20, shape=X):
    constants = dict(constants or {})
    for name in [name for name in constants if name == "z"]:
        return _check_alone(case, tmp_path, constants.pop(name))
    inputs = {"x": ("float32", shape)}
    path = save(network([case], inputs, constants, list(case.output), opset), tmp_path)
    generator = torch.Generator().manual_seed(0)
    assert differ(path, torch.randn(shape, generator=generator)) < close
    return None


def _check_alone(case, tmp_path, value):
    path = save(network([case], {"z": ("float32", value.shape)}, {}, list(case.output)), tmp_path)
    assert differ(path, torch.from_numpy(value)) == 0


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, tmp_path) -> None:
    case, constants = CONVOLUTIONS[name]
    check(case, tmp_path, constants, close=2e-5)


@pytest.mark.parametrize("name", POOLS)
def test_pools(name, tmp_path) -> None:
    check(POOLS[name], tmp_path)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, tmp_path) -> None:
    # 1 / x and tan x are as steep as they like: their rounding is relative
    check(node(name), tmp_path, close=1e-3 if name in ("Reciprocal", "Tan", "Sinh", "Exp") else 1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_normalizations(name, tmp_path) -> None:
    case, constants = NORMS[name]
    check(case, tmp_path, constants, close=5e-5, opset=18 if name == "groups" else 20)


@pytest.mark.parametrize("name", PLACES)
def test_elements_are_moved_exactly(name, tmp_path) -> None:
    case, constants = PLACES[name]
    check(case, tmp_path, constants, close=1e-5)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(name, keep, tmp_path) -> None:
    check(node(f"Reduce{name}", "x a", keepdims=keep), tmp_path, {"a": np.array([1, -1])}, close=1e-4)


def test_a_reduction_of_an_old_file_has_its_axes_as_an_attribute(tmp_path) -> None:
    check(node("ReduceMean", axes=[2, 3], keepdims=0), tmp_path, opset=13)


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("scales", [(2.0, 3.0), (0.6, 1.7)])
def test_resizing(name, scales, tmp_path) -> None:
    case = helper.make_node("Resize", ["x", "", "s"], Y, **RESIZES[name])
    check(case, tmp_path, {"s": np.array([1, 1, *scales], dtype=np.float32)}, close=1e-4)


@pytest.mark.parametrize("name", RESIZES)
def test_resizing_to_a_size(name, tmp_path) -> None:
    case = helper.make_node("Resize", ["x", "", "", "t"], Y, **RESIZES[name])
    check(case, tmp_path, {"t": np.array([2, 3, 11, 5])}, close=1e-4)


@pytest.mark.parametrize("equation", ["bchw,cd->bdhw", "bchw,wk->bchk", "bchw->bw"])
def test_einstein_summation(equation, tmp_path) -> None:
    sizes = {"bchw,cd->bdhw": (3, 5), "bchw,wk->bchk": (7, 4)}
    constants = {"w": normal(*sizes[equation])} if equation in sizes else {}
    check(node("Einsum", "x w" if constants else "x", equation=equation), tmp_path, constants, close=1e-4)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("plain", [True, False], ids=["torch's layer", "step by step"])
def test_recurrent_layers(kind, direction, plain, tmp_path) -> None:
    """Not plain: lengths of the sequences, and the GRU whose reset comes before the product."""
    directions, hidden, rows = 1 + (direction == "bidirectional"), 5, 5 * GATES[kind]
    constants = {"w": normal(directions, rows, 4), "r": normal(directions, rows, hidden), "b": normal(directions, 2 * rows)}
    extra = {"linear_before_reset": int(plain)} if kind == "GRU" else {}
    if not plain:
        constants["l"] = np.array([6, 3], dtype=np.int32)
    inputs = ["x", "w", "r", "b", "" if plain else "l"]
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["y", "h"]
    case = helper.make_node(kind, inputs, outputs, hidden_size=hidden, direction=direction, **extra)
    check(case, tmp_path, constants, shape=[6, 2, 4], close=1e-5)


def test_a_recurrent_layer_from_an_initial_state(tmp_path) -> None:
    constants = {"w": normal(1, 20, 4), "r": normal(1, 20, 5), "h": normal(1, 2, 5), "c": normal(1, 2, 5)}
    case = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y", "", "n"], hidden_size=5)
    inputs = {"x": ("float32", [6, 2, 4])}
    path = save(network([case], inputs, constants, ["y", "n"]), tmp_path)
    assert differ(path, torch.randn(6, 2, 4)) < 1e-5


def test_products_of_integers_are_exact(tmp_path) -> None:
    codes = RANDOM.integers(-128, 128, (6, 5)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float"], to=1),
        helper.make_node("Mul", ["float", "s"], ["y"]),
    ]
    path = save(network(nodes, {"x": ("float32", [3, 6])}, {"w": codes}), tmp_path)
    assert differ(path, torch.randn(3, 6)) < 1e-4


def test_a_loop_of_fixed_length_is_unrolled(tmp_path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "x"], ["new"]),
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["new"], ["row"]),
        ],
        "body",
        [info("number", 7, []), info("going", 9, []), info("state", 1, None)],
        [info("still", 9, []), info("new", 1, None), info("row", 1, None)],
    )
    case = helper.make_node("Loop", ["times", "", "x"], ["y", "rows"], body=body)
    path = save(network([case], {"x": ("float32", [2, 3])}, {"times": np.array(4)}, ["y", "rows"]), tmp_path)
    assert differ(path, torch.randn(2, 3)) < 1e-6
