"""Files written are files run: every check here loads the file in ONNX Runtime."""

import tempfile

import pytest
import torch
from networks import encoder, frames, images, recurrent, residual, sentences

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.errors import InputError
from lighten.core.run import Run
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize

CASES = [(residual, images), (encoder, sentences), (recurrent, frames)]


def compressed(make, data, proposal: int = 0, **knobs):
    model = make()
    prepared = Quantize(**knobs).prepare(model, trace(model), data=data, run=Run())
    return prepared.realize(prepared.proposals()[proposal])


@pytest.mark.parametrize(("make", "data"), CASES)
def test_the_float_file_agrees_with_torch(make, data, tmp_path) -> None:
    model, exporter = make(), OnnxExporter()
    export = exporter.write_float(model, tmp_path / "float.onnx")
    assert export.size_bytes == export.path.stat().st_size
    inputs = data().test.inputs
    output = exporter.open(export.path, Target())(*inputs)
    torch.testing.assert_close(output, model.module(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "data", "proposal"), [(*CASES[0], 0), (*CASES[1], 0), (*CASES[1], 1), (*CASES[2], 0)])
def test_the_int8_file_agrees_with_the_torch_graph(make, data, proposal, tmp_path) -> None:
    exporter, data = OnnxExporter(), data()
    made = compressed(make, data, proposal)
    path = exporter.write(made, tmp_path / "int8.onnx").path
    expected, found = made.graph(*data.test.inputs), exporter.open(path, Target())(*data.test.inputs)
    # single codes may round the other way, which moves an output by a step or so: far below the range of the outputs
    assert (expected - found).abs().max() < 0.03 * (expected.max() - expected.min())


def test_every_operator_with_weights_runs_in_integers(tmp_path) -> None:
    exporter = OnnxExporter()
    path = exporter.write(compressed(residual, images()), tmp_path / "int8.onnx").path
    operators = exporter.operators(path)
    assert operators["Conv:int8"] == 3
    assert operators["Gemm:int8"] == 1
    assert operators["Add:int8"] == 1
    assert operators["GlobalAveragePool:int8"] == 1
    assert "Pad:fp32" not in operators
    assert not any(name.startswith(("Conv:fp32", "Gemm:fp32")) for name in operators)


def test_dynamic_linear_layers_run_in_integers(tmp_path) -> None:
    exporter = OnnxExporter()
    path = exporter.write(compressed(encoder, sentences()), tmp_path / "int8.onnx").path
    assert exporter.operators(path)["MatMul:int8"] == 2


def test_stored_weights_are_small_in_the_file_and_float_in_computation(tmp_path) -> None:
    exporter = OnnxExporter()
    original = exporter.write_float(residual(), tmp_path / "float.onnx")
    stored = exporter.write(compressed(residual, images(), activations="float"), tmp_path / "stored.onnx")
    assert stored.size_bytes < original.size_bytes
    operators = exporter.operators(stored.path)
    assert not any(name.endswith("int8") for name in operators)
    assert not any(name.startswith(("Cast", "Mul", "Dequantize")) for name in operators)  # folded once, at load


def test_the_file_takes_another_batch_size(tmp_path) -> None:
    exporter = OnnxExporter()
    path = exporter.write(compressed(residual, images()), tmp_path / "int8.onnx").path
    assert exporter.open(path, Target())(torch.randn(7, 3, 16, 16)).shape == (7, 5)


def test_the_same_network_gives_the_same_bytes(tmp_path) -> None:
    exporter = OnnxExporter()
    digests = {exporter.write(compressed(residual, images()), tmp_path / f"{i}.onnx").sha256 for i in range(2)}
    assert len(digests) == 1


def test_a_corrupt_file_is_refused(tmp_path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        OnnxExporter().open(path, Target())


@pytest.fixture
def float_file(tmp_path):
    return OnnxExporter().write_float(residual(), tmp_path / "float.onnx").path


def test_a_missing_folder_for_temporary_files_is_named(float_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"Cannot write to .*gone: No such file.* set TMPDIR to another"):
        OnnxExporter().operators(float_file)


def test_a_full_folder_for_temporary_files_is_named_and_not_the_file(float_file, tmp_path, monkeypatch) -> None:
    """A limit on the size of files stands for a full disk: the runtime's writes fail in the same way."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(InputError, match=f"Cannot write to {tmp_path}: it is full"):
            OnnxExporter().operators(float_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_corrupt_file_is_named_also_when_its_operators_are_counted(tmp_path) -> None:
    (tmp_path / "corrupt.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load .*corrupt\.onnx"):
        OnnxExporter().operators(tmp_path / "corrupt.onnx")
