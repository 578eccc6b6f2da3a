"""ONNX files become networks of real layers, which give the file's numbers, train, and are written again."""

import numpy as np
import pytest
import torch
from networks import encoder, frames, images, recurrent, residual, sentences
from onnx import helper, numpy_helper
from onnx_files import differ, network, save
from torch import nn

import lighten
from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize
from lighten.methods.sparsify.sparsify import Sparsify

CASES = [(residual, images), (encoder, sentences), (recurrent, frames)]
NODE = helper.make_node
# float32 rounding over a few hundred additions
CLOSE = 1e-5


def written(make, tmp_path):
    return OnnxExporter().write_float(make(), tmp_path / f"{make.__name__}.onnx").path


@pytest.mark.parametrize(("make", "data"), CASES)
def test_what_we_write_we_read_again(make, data, tmp_path) -> None:
    path, original, inputs = written(make, tmp_path), make(), data().test.inputs
    model = lighten.load(path)
    assert (model.module(*inputs) - original.module(*inputs)).abs().max() < CLOSE
    assert model.input_names == original.input_names
    assert model.output_names == original.output_names
    assert model.origin.kind == "onnx"
    assert [sorted(dims) for dims in model.origin.dynamic] == [sorted(dims) for dims in original.origin.dynamic]
    assert [site.kind for site in trace(model).sites] == [site.kind for site in trace(original).sites]


@pytest.mark.parametrize(("make", "data"), CASES)
def test_it_is_written_again_in_float_and_in_int8(make, data, tmp_path) -> None:
    model, inputs = lighten.load(written(make, tmp_path)), data().test.inputs
    exporter = OnnxExporter()
    again = exporter.write_float(model, tmp_path / "again.onnx").path
    expected = model.module(*inputs)
    assert (exporter.open(again, Target())(*inputs) - expected).abs().max() < CLOSE
    prepared = Quantize().prepare(model, trace(model), data=data(), run=Run())
    int8 = exporter.write(prepared.realize(prepared.proposals()[0]), tmp_path / "int8.onnx").path
    found = exporter.open(int8, Target())(*inputs)
    assert (found - expected).abs().max() < 0.1 * (expected.max() - expected.min())


def test_layers_have_the_files_names(tmp_path) -> None:
    layers = dict(lighten.load(written(encoder, tmp_path)).module.named_modules())
    assert isinstance(layers["table"], nn.Embedding)
    assert isinstance(layers["norm"], nn.LayerNorm)


def test_a_step_of_training_changes_every_weight(tmp_path) -> None:
    model = lighten.load(written(residual, tmp_path))
    before = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    model.module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert [name for name, value in model.module.named_parameters() if torch.equal(value, before[name])] == []
    assert len(before) == 8


def test_batch_normalization_stays_a_layer_that_trains(tmp_path) -> None:
    scale, shift, mean, var = (torch.rand(3).numpy() + 0.5 for _ in range(4))
    proto = network(
        [NODE("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3, momentum=0.8)],
        {"x": ("float32", ["n", 3, 4, 4])},
        {"s": scale, "b": shift, "m": mean, "v": var},
    )
    path = save(proto, tmp_path)
    x = torch.randn(5, 3, 4, 4)
    assert differ(path, x) < CLOSE
    (layer,) = (layer for layer in lighten.load(path).module.modules() if isinstance(layer, nn.BatchNorm2d))
    assert layer.momentum == pytest.approx(0.2)
    layer.train()(x)
    assert torch.allclose(layer.running_mean, 0.8 * torch.from_numpy(mean) + 0.2 * x.mean((0, 2, 3)), atol=1e-6)


def test_the_zeros_of_a_sparse_network_are_found_in_its_file(tmp_path) -> None:
    model = lighten.load(written(residual, tmp_path))
    sparse = Sparsify(ratio=0.5).rewrite(model, data=images(), run=Run())
    assert (sparse.module.get_parameter("project.weight") == 0).float().mean() > 0.3
    again = lighten.load(OnnxExporter().write_float(sparse, tmp_path / "sparse.onnx").path)
    assert (again.module.get_parameter("project.weight") == 0).sum() == (
        sparse.module.get_parameter("project.weight") == 0
    ).sum()


def test_a_product_and_a_sum_are_one_linear_layer(tmp_path) -> None:
    weight, bias = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    nodes = [NODE("MatMul", ["x", "w"], ["h"], name="/block/proj/MatMul"), NODE("Add", ["b", "h"], ["y"])]
    path = save(network(nodes, {"x": ("float32", ["n", 8])}, {"w": weight, "b": bias[0]}), tmp_path)
    assert differ(path, torch.randn(3, 8)) < CLOSE
    layer = lighten.load(path).module.get_submodule("block.proj.MatMul")
    assert isinstance(layer, nn.Linear)
    assert torch.equal(layer.weight, torch.from_numpy(weight).t())
    assert torch.equal(layer.bias, torch.from_numpy(bias[0]))


def test_weights_in_constant_nodes_are_weights(tmp_path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    constant = NODE("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w"))
    path = save(network([constant, NODE("Conv", ["x", "w"], ["y"])], {"x": ("float32", [2, 3, 8, 8])}), tmp_path)
    assert differ(path, torch.randn(2, 3, 8, 8)) < CLOSE
    assert [tuple(value.shape) for value in lighten.load(path).module.parameters()] == [(4, 3, 3, 3)]


def test_a_weight_that_two_nodes_read_is_one_parameter(tmp_path) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    nodes = [NODE("MatMul", ["x", "w"], ["h"]), NODE("Relu", ["h"], ["r"]), NODE("MatMul", ["r", "w"], ["y"])]
    model = lighten.load(save(network(nodes, {"x": ("float32", ["n", 6])}, {"w": weight}), tmp_path))
    assert len(list(model.module.parameters())) == 1


def branches(condition):
    def graph(name, op_type):
        return helper.make_graph(
            [NODE(op_type, ["x"], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)]
        )

    return NODE("If", [condition], ["y"], then_branch=graph("then", "Relu"), else_branch=graph("else", "Neg"))


@pytest.mark.parametrize(("value", "expected"), [(True, 1.0), (False, -1.0)])
def test_a_branch_on_a_constant_is_decided(value, expected, tmp_path) -> None:
    path = save(network([branches("c")], {"x": ("float32", ["n", 2])}, {"c": np.array(value)}), tmp_path)
    assert torch.equal(lighten.load(path).module(torch.ones(3, 2)), torch.full((3, 2), expected))


def test_a_branch_on_a_size_is_decided_by_the_size(tmp_path) -> None:
    nodes = [NODE("Shape", ["x"], ["s"], start=1), NODE("Equal", ["s", "two"], ["c"]), branches("c")]
    path = save(network(nodes, {"x": ("float32", ["n", 2])}, {"two": np.array([2])}), tmp_path)
    assert torch.equal(lighten.load(path).module(-torch.ones(3, 2)), torch.zeros(3, 2))


def test_a_branch_on_an_input_without_dimensions_is_decided_by_the_example(tmp_path) -> None:
    inputs = {"x": ("float32", ["n", 2]), "rate": ("int64", [])}
    path = save(network([NODE("Equal", ["rate", "k"], ["c"]), branches("c")], inputs, {"k": np.array(16)}), tmp_path)
    with pytest.raises(InputError, match="'rate' has no dimensions.*Give example="):
        lighten.load(path)
    model = lighten.load(path, example=(torch.ones(2, 2), torch.tensor(8)))
    assert model.input_names == ("x",)
    assert torch.equal(model.module(torch.ones(3, 2)), -torch.ones(3, 2))


def test_a_branch_on_data_is_refused(tmp_path) -> None:
    nodes = [NODE("ReduceMax", ["x"], ["m"], keepdims=0), NODE("Greater", ["m", "zero"], ["c"]), branches("c")]
    path = save(network(nodes, {"x": ("float32", ["n", 2])}, {"zero": np.float32(0)}), tmp_path)
    with pytest.raises(UnfitError, match="If 'y': which branch is taken depends on the data"):
        lighten.load(path)


def test_shape_arithmetic_follows_the_batch(tmp_path) -> None:
    """Reshape by a shape that is put together, as TensorFlow's exporter does."""
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Cast", ["s"], ["s32"], to=6),
        NODE("Slice", ["s32", "zero", "one"], ["n"]),
        NODE("Concat", ["n", "rest"], ["shape32"], axis=0),
        NODE("Cast", ["shape32"], ["shape"], to=7),
        NODE("Reshape", ["x", "shape"], ["h"]),
        NODE("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([6], dtype=np.int32)}
    constants["w"] = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    path = save(network(nodes, {"x": ("float32", ["n", 2, 3])}, constants), tmp_path)
    assert differ(path, torch.randn(7, 2, 3)) < CLOSE
    model = lighten.load(path)
    again = OnnxExporter().write_float(model, tmp_path / "again.onnx").path
    x = torch.randn(5, 2, 3)
    assert (OnnxExporter().open(again, Target())(x) - model.module(x)).abs().max() < CLOSE


def test_a_batch_that_the_file_fixes_at_one_is_opened(tmp_path) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    path = save(network([NODE("Gemm", ["x", "w"], ["y"], transB=1)], {"x": ("float32", [1, 4])}, {"w": weight}), tmp_path)
    model = lighten.load(path)
    assert model.origin.dynamic == ({0: "batch"},)
    assert model.module(torch.ones(5, 4)).shape == (5, 3)


def test_a_batch_of_one_stays_where_examples_would_mix(tmp_path) -> None:
    path = save(network([NODE("Softmax", ["x"], ["y"], axis=0)], {"x": ("float32", [1, 4])}), tmp_path)
    assert lighten.load(path).origin.dynamic == ({},)


def test_a_quantized_file_gives_its_numbers_and_has_float_layers(tmp_path) -> None:
    prepared = Quantize().prepare(residual(), trace(residual()), data=images(), run=Run())
    exporter = OnnxExporter()
    path = exporter.write(prepared.realize(prepared.proposals()[0]), tmp_path / "int8.onnx").path
    model, inputs = lighten.load(path), images().test.inputs
    expected = exporter.open(path, Target())(*inputs)
    # ONNX Runtime computes in integers what is float here: single codes round the other way, a step each
    assert (model.module(*inputs) - expected).abs().max() < 0.03 * (expected.max() - expected.min())
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    assert all(layer.weight.dtype == torch.float32 for layer in layers)
    model.module(*inputs).square().sum().backward()  # rounding passes the gradient on
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)


def test_operators_that_are_not_read_are_named(tmp_path) -> None:
    path = save(network([NODE("StringNormalizer", ["x"], ["y"])], {"x": ("float32", ["n", 2])}), tmp_path)
    with pytest.raises(UnfitError, match="uses operators that are not read: StringNormalizer"):
        lighten.load(path)


def test_weights_of_an_onnx_file_cannot_be_replaced(tmp_path) -> None:
    with pytest.raises(InputError, match="has weights of its own"):
        lighten.load(written(residual, tmp_path), weights="other.safetensors")


def test_an_example_of_another_shape_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"has the shape \(2, 4, 16, 16\), the file says"):
        lighten.load(written(residual, tmp_path), example=torch.zeros(2, 4, 16, 16))
