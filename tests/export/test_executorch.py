"""Files written are files run: every check here loads the file in ExecuTorch. A lowering takes seconds, so a file is written
once and looked at from all sides.
"""

import importlib.util

import pytest
import torch
from lowered import by_rows, compressed, decibels
from networks import encoder, images, residual, sentences

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin

executorch = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="ExecuTorch is not installed")


@pytest.fixture(scope="module")
def exporter():
    from lighten.export.executorch import ExecutorchExporter

    return ExecutorchExporter()


@pytest.fixture(scope="module")
def int8(exporter, tmp_path_factory):
    """The compressed network, its file, and the file's answers to 64 images."""
    made = compressed(residual(), images())
    export = exporter.write(made, tmp_path_factory.mktemp("pte") / "int8.pte")
    inputs = images().test.inputs
    return made, export, exporter.open(export.path, Target())(*inputs), made.graph(*inputs)


@executorch
def test_the_int8_file_agrees_with_the_torch_graph(int8) -> None:
    made, _, found, expected = int8
    own = decibels(trace(made.model).module(*images().test.inputs), expected)
    # the result is rounded to 8 bits, which the torch graph leaves in float: less than the noise of all the rest together
    assert decibels(expected, found) > own
    scale, _ = made.outputs["linear"]
    assert (expected - found).abs().mean() < scale  # mostly the rounding of the result itself: a quarter of a step on average


@executorch
def test_everything_runs_in_integers_in_xnnpack(exporter, int8) -> None:
    assert exporter.operators(int8[1].path) == {
        "Add:int8": 1, "Conv:int8": 3, "DequantizeLinear": 1, "Gemm:int8": 1, "GlobalAveragePool:int8": 1, "Pad:int8": 1,
        "QuantizeLinear": 1, "Reshape": 1, "Transpose": 2,
    }  # fmt: skip


@executorch
def test_the_file_is_described_and_smaller_than_its_weights_in_float(int8) -> None:
    _, export, _, _ = int8
    assert export.size_bytes == export.path.stat().st_size
    assert len(export.sha256) == 64


@executorch
def test_the_float_file_agrees_with_torch(exporter, tmp_path) -> None:
    model = residual()
    path = exporter.write_float(model, tmp_path / "float.pte").path
    inputs = images().test.inputs
    torch.testing.assert_close(exporter.open(path, Target())(*inputs), model.module(*inputs), rtol=1e-4, atol=1e-5)
    assert exporter.operators(path)["Conv:fp32"] == 3


@executorch
def test_dynamic_ranges_four_bits_and_shorter_inputs(exporter, tmp_path) -> None:
    made = compressed(encoder(), sentences(), {"up": 4, "down": 4}, activations="dynamic")
    export = exporter.write(made, tmp_path / "few.pte")
    assert export.computed == {"up.weight", "down.weight"}
    operators = exporter.operators(export.path)
    assert operators["Gemm:int4"] == 2
    assert operators["embedding:portable"] == 2  # codes and scales
    session = exporter.open(export.path, Target())
    for length in (7, 3, 1):
        inputs = tuple(value[:4, :length] for value in sentences().test.inputs)
        assert decibels(by_rows(made.graph)(*inputs), session(*inputs)) > 60  # but for ties, the very same rounding
    with pytest.raises(InputError, match="ExecuTorch refused inputs of shape"):
        session(*(value.repeat(1, 2) for value in sentences().test.inputs))


@executorch
def test_another_number_of_threads_is_refused_while_a_program_is_loaded(exporter, int8) -> None:
    session = exporter.open(int8[1].path, Target())
    with pytest.raises(InputError, match=r"ExecuTorch has 1 threads for all programs of a process. Got 2"):
        exporter.open(int8[1].path, Target(threads=2))
    assert session(*images().test.inputs).shape == (64, 5)


@executorch
def test_a_corrupt_file_is_refused(exporter, int8, tmp_path) -> None:
    path = tmp_path / "bad.pte"
    for content in (b"not a program", int8[1].path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="ExecuTorch cannot load"):
            exporter.open(path, Target())
        with pytest.raises(InputError, match="is no ExecuTorch program"):
            exporter.operators(path)
    with pytest.raises(InputError, match="There is no file"):
        exporter.open(tmp_path / "missing.pte", Target())


@executorch
def test_the_wrong_number_of_inputs_is_named(exporter, int8) -> None:
    with pytest.raises(InputError, match="takes 1 inputs. Got 2"):
        exporter.open(int8[1].path, Target())(torch.zeros(1), torch.zeros(1))


@executorch
def test_a_network_that_cannot_be_lowered_is_unfit(exporter, tmp_path) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    model = Model(Unknown(), (torch.randn(4, 4),), Origin("module", "unknown"))
    with pytest.raises(UnfitError, match=r"cannot be written for ExecuTorch: its runtime has no aten::_linalg_svd"):
        exporter.write_float(model, tmp_path / "unknown.pte")


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    import lighten.export.executorch as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ExecuTorch is not installed.*lighten\[executorch\]"):
        module.ExecutorchExporter()
