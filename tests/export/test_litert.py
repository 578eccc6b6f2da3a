"""Files written are files run: every check here loads the file in LiteRT. A conversion takes a second or two, so that a file is
written once and looked at from all sides.
"""

import importlib.util

import numpy as np
import pytest
import torch
from lowered import by_rows, compressed, decibels
from networks import encoder, images, residual, sentences

from lighten.analyze.trace import tensor_of, trace
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin

litert = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "litert_torch")), reason="LiteRT is not installed"
)


@pytest.fixture(scope="module")
def exporter():
    from lighten.export.litert import LitertExporter

    return LitertExporter()


@pytest.fixture(scope="module")
def int8(exporter, tmp_path_factory):
    """The compressed network, its file, and the file's answers to 64 images."""
    made = compressed(residual(), images())
    export = exporter.write(made, tmp_path_factory.mktemp("tflite") / "int8.tflite")
    inputs = images().test.inputs
    return made, export, exporter.open(export.path, Target())(*inputs), made.graph(*inputs)


@litert
def test_the_int8_file_agrees_with_the_torch_graph(int8) -> None:
    made, _, found, expected = int8
    own = decibels(trace(made.model).module(*images().test.inputs), expected)
    # the result is rounded to 8 bits, which the torch graph leaves in float: less than the noise of all the rest together
    assert decibels(expected, found) > own
    scale, _ = made.outputs["linear"]
    assert (expected - found).abs().mean() < scale  # mostly the rounding of the result itself: a quarter of a step on average


@litert
def test_everything_runs_in_integers_in_xnnpack(exporter, int8) -> None:
    assert exporter.operators(int8[1].path) == {
        "Add:int8": 1, "Conv:int8": 3, "DequantizeLinear": 1, "Gemm:int8": 1, "Pad:int8": 1, "QuantizeLinear": 1,
        "ReduceMean:int8": 1, "Transpose": 1,
    }  # fmt: skip


@litert
def test_codes_scales_and_zero_points_are_the_plans_own(exporter, int8) -> None:
    made, export, _, _ = int8
    details = exporter.open(export.path, Target())._interpreter.get_tensor_details()
    quantize = next(node for node in made.graph.graph.nodes if "quantize_per_tensor" in str(node.target))
    scale, zero = quantize.args[1:3]
    assert any(
        entry["quantization"] == (pytest.approx(scale, rel=1e-6), zero - 128) for entry in details if entry["dtype"] is np.int8
    )
    head = next(entry for entry in details if entry["dtype"] is np.int8 and tuple(entry["shape"]) == (5, 16))
    expected = tensor_of(made.graph, "head.weight_scale").numpy()
    np.testing.assert_allclose(head["quantization_parameters"]["scales"], expected, rtol=1e-6)
    codes = tensor_of(made.graph, "head.weight_codes").numpy()
    assert codes.tobytes() in export.path.read_bytes()


@litert
def test_integers_can_go_in_and_come_out(int8, tmp_path) -> None:
    from lighten.export.litert import LitertExporter

    made, _, found, _ = int8
    exporter = LitertExporter(integer_ends=True)
    session = exporter.open(exporter.write(made, tmp_path / "ends.tflite").path, Target())
    assert all(entry["dtype"] is np.int8 for entry in (*session._inputs, *session._outputs))
    torch.testing.assert_close(session(*images().test.inputs), found, rtol=0, atol=1e-6)


@litert
def test_the_float_file_agrees_with_torch(exporter, tmp_path) -> None:
    model = residual()
    path = exporter.write_float(model, tmp_path / "float.tflite").path
    inputs = images().test.inputs
    torch.testing.assert_close(exporter.open(path, Target())(*inputs), model.module(*inputs), rtol=1e-4, atol=1e-5)
    assert exporter.operators(path)["Conv:fp32"] == 3


@litert
@pytest.mark.parametrize("knobs", [{"activations": "float"}, {"format": "fp16"}])
def test_stored_weights_are_small_in_the_file_and_float_in_computation(exporter, tmp_path, knobs) -> None:
    model = residual(), images()
    original = exporter.write_float(model[0], tmp_path / "float.tflite")
    made = compressed(*model, **knobs)
    stored = exporter.write(made, tmp_path / "stored.tflite")
    assert stored.size_bytes < original.size_bytes
    assert not any(name.endswith("int8") for name in exporter.operators(stored.path))
    inputs = images().test.inputs
    torch.testing.assert_close(exporter.open(stored.path, Target())(*inputs), made.graph(*inputs), rtol=1e-4, atol=1e-5)


@litert
def test_dynamic_ranges_four_bits_and_shorter_inputs(exporter, tmp_path) -> None:
    eight = exporter.write(compressed(encoder(), sentences(), activations="dynamic"), tmp_path / "eight.tflite")
    made = compressed(encoder(), sentences(), {"up": 4, "down": 4}, activations="dynamic")
    export = exporter.write(made, tmp_path / "few.tflite")
    assert exporter.operators(eight.path)["Gemm:int8"] == 2
    assert export.computed == {"up.weight", "down.weight"}
    assert eight.size_bytes - export.size_bytes >= 2 * 32 * 128 // 2  # two layers at half a byte a weight
    session = exporter.open(export.path, Target())
    for length in (7, 3):
        inputs = tuple(value[:4, :length] for value in sentences().test.inputs)
        assert decibels(by_rows(made.graph)(*inputs), session(*inputs)) > 60  # but for ties, the very same rounding
    with pytest.raises(InputError, match=r"takes inputs of shape \(1, 7\). Got \(1, 14\)"):
        session(*(value.repeat(1, 2) for value in sentences().test.inputs))


@litert
def test_a_corrupt_file_is_refused(exporter, int8, tmp_path) -> None:
    path = tmp_path / "bad.tflite"
    for content in (b"not a model", int8[1].path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="LiteRT cannot load"):
            exporter.open(path, Target())
        with pytest.raises(InputError, match="LiteRT cannot load"):
            exporter.operators(path)
    with pytest.raises(InputError, match="There is no file"):
        exporter.open(tmp_path / "missing.tflite", Target())


@litert
def test_another_image_size_and_another_number_of_inputs_are_refused(exporter, int8) -> None:
    session = exporter.open(int8[1].path, Target())
    with pytest.raises(InputError, match=r"takes inputs of shape \(1, 3, 16, 16\). Got \(1, 3, 8, 8\)"):
        session(torch.zeros(4, 3, 8, 8))
    with pytest.raises(InputError, match="takes 1 inputs. Got 2"):
        session(torch.zeros(1), torch.zeros(1))


@litert
def test_a_network_that_cannot_be_converted_is_unfit(exporter, tmp_path) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    model = Model(Unknown(), (torch.randn(4, 4),), Origin("module", "unknown"))
    with pytest.raises(UnfitError, match="cannot be written for LiteRT"):
        exporter.write_float(model, tmp_path / "unknown.tflite")


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    import lighten.export.litert as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"LiteRT is not installed.*lighten\[litert\]"):
        module.LitertExporter()
