"""OpenVINO: what is written is run by OpenVINO, agrees with torch, and executes what the plan says."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import encoder, images, residual, sentences
from torch import Tensor, nn

from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model, Origin
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Float, Quant, Spec
from lighten.evaluate.memory import subprocess_peak_bytes
from lighten.export import openvino as openvino_module
from lighten.export import run_once
from lighten.export.openvino import OpenVinoExporter, openvino
from lighten.methods.quantize.integer import Quantize
from lighten.ops.packing import unpack

try:
    import openvino as _installed
except ImportError:
    _installed = None
needs_openvino = pytest.mark.skipif(_installed is None, reason="needs lighten[openvino]")
TARGET = Target("openvino")
WIDTH = 128
# OpenVINO rounds what flows into weights of few bits to 8 bits a group of 32: steps of 1/127 of the group's largest value, some
# 2.3 times its root mean square, uniform noise of 0.5 to 0.7 % of it
IN_EIGHT_BITS, IN_FLOAT = 0.01, 1e-5


def rows() -> tuple[Model, Data]:
    """Two linear layers, and noise."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).eval()
    model = Model(module, (torch.randn(2, WIDTH),), Origin("module", "rows", dynamic=({0: "batch"},)))
    split = replace(images(32).test, inputs=(torch.randn(32, WIDTH),))  # type: ignore[type-var]
    return model, replace(images(), train=split, test=split)


def realize(model: Model, data: Data, plan: Plan | None = None) -> Compressed:
    prepared = Quantize(samples=16).prepare(model, trace(model), data=data, run=Run())
    return prepared.realize(prepared.proposals()[0] if plan is None else plan, repair=False)


def written(spec: Spec, folder: Path) -> tuple[Compressed, Export, Tensor]:
    """Both layers as `spec`; what the file gives for the example."""
    model, data = rows()
    compressed = realize(model, data, Plan({"0": spec, "2": spec}))
    export = OpenVinoExporter().write(compressed, folder / "model.xml")
    made = OpenVinoExporter().open(export.path, TARGET)(*model.example)
    assert type(made) is Tensor
    return compressed, export, made


def difference(made: Tensor, wanted: Tensor) -> float:
    return float(((made - wanted).norm() / wanted.norm()).detach())


@needs_openvino
def test_float_is_computed_in_float32(tmp_path: Path) -> None:
    model = residual()
    export = OpenVinoExporter().write_float(model, tmp_path / "model.xml")
    made = OpenVinoExporter().open(export.path, TARGET)(*model.example)
    assert difference(made, model.module(*model.example)) < IN_FLOAT  # bfloat16, OpenVINO's own default, would leave 1e-3
    assert {key.partition(":")[2] for key in OpenVinoExporter().operators(export.path)} == {"fp32"}


@needs_openvino
def test_both_files_count(tmp_path: Path) -> None:
    export = OpenVinoExporter().write_float(residual(), tmp_path / "model.xml")
    assert [path.name for path in export.files] == ["model.xml", "model.bin"]
    assert export.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    again = OpenVinoExporter().write_float(residual(), tmp_path / "model.xml")
    assert again.sha256 == export.sha256  # nothing of time or place is in the file


@needs_openvino
def test_int8_runs_in_integers_and_agrees_with_torch(tmp_path: Path) -> None:
    model = residual()
    compressed = realize(model, images())
    export = OpenVinoExporter().write(compressed, tmp_path / "model.xml")
    made = OpenVinoExporter().open(export.path, TARGET)(*model.example)
    assert difference(made, compressed.graph(*model.example)) < IN_EIGHT_BITS
    operators = OpenVinoExporter().operators(export.path)
    assert operators["Conv:int8"] == 3
    assert "Conv:fp32" not in operators


@needs_openvino
@pytest.mark.parametrize(
    ("spec", "operator", "bits"),
    [
        (Quant(8, None), "MatMul:int8", 8),
        (Quant(dynamic=True), "MatMul:int8", 8),
        (Quant(4, None), "MatMul:int4", 4),
        (Quant(4, None, group=32), "MatMul:int4", 4),
        (Quant(4, None, group=32, symmetric=False), "MatMul:int4", 4),
        (Quant(2, None, group=64), "MatMul:int4", 4),
    ],
)
def test_weights_of_few_bits_are_read_as_they_are_stored(spec: Quant, operator: str, bits: int, tmp_path: Path) -> None:
    compressed, export, made = written(spec, tmp_path)
    # dynamic: torch rounds a whole row's input at once, so both roundings are in the difference
    limit = 2 * IN_EIGHT_BITS if spec.dynamic else IN_EIGHT_BITS
    assert difference(made, compressed.graph(*compressed.model.example)) < limit
    assert OpenVinoExporter().operators(export.path)[operator] == 2
    assert export.computed == {"0.weight", "2.weight"}
    groups = WIDTH // (spec.group or WIDTH)
    codes, floats = 2 * WIDTH * WIDTH * bits // 8, 4 * 2 * WIDTH * (1 + groups)
    stored = export.others[0].stat().st_size
    assert codes < stored < codes + floats + 2 * WIDTH * groups + 256  # biases, scales, zero points, and shapes


@needs_openvino
def test_half_precision_takes_half_the_bytes_and_computes_in_float(tmp_path: Path) -> None:
    compressed, export, made = written(Float("fp16"), tmp_path)
    assert difference(made, compressed.graph(*compressed.model.example)) < IN_FLOAT
    assert {key.partition(":")[2] for key in OpenVinoExporter().operators(export.path)} == {"fp32"}
    assert export.computed == frozenset()
    assert export.others[0].stat().st_size < 2 * 2 * WIDTH * WIDTH + 2 * 4 * WIDTH + 256


@needs_openvino
def test_any_batch_and_length_run(tmp_path: Path) -> None:
    model = encoder()
    OpenVinoExporter().write_float(model, tmp_path / "model.xml")
    session = OpenVinoExporter().open(tmp_path / "model.xml", TARGET)
    for shape in ((1, 7), (3, 5), (1, 4)):
        inputs = (torch.randint(50, shape), torch.ones(*shape, dtype=torch.int64))
        torch.testing.assert_close(session(*inputs), model.module(*inputs), rtol=1e-4, atol=1e-5)


@needs_openvino
def test_a_text_encoder_has_no_product_of_weights_in_float(tmp_path: Path) -> None:
    compressed = realize(encoder(), sentences())
    export = OpenVinoExporter().write(compressed, tmp_path / "model.xml")
    operators = OpenVinoExporter().operators(export.path)
    assert operators["MatMul:int8"] >= sum(site.kind == "linear" for site in trace(encoder()).sites)


@needs_openvino
def test_zeros_ask_for_sparse_weights(tmp_path: Path) -> None:
    model, data = rows()
    compressed = realize(model, data, Plan({"0": Quant(), "2": Quant()}))
    sparse = replace(compressed, model=replace(model, sparse={"0.weight": "unstructured"}))
    for name, one, rate in (("dense", compressed, 1.0), ("sparse", sparse, openvino_module.SPARSE_RATE)):
        OpenVinoExporter().write(one, tmp_path / f"{name}.xml")
        compiled = OpenVinoExporter().open(tmp_path / f"{name}.xml", TARGET).compiled
        assert compiled.get_property("CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE") == rate


@needs_openvino
def test_the_target_says_threads_and_hint(tmp_path: Path) -> None:
    OpenVinoExporter().write_float(rows()[0], tmp_path / "model.xml")
    target = Target("openvino", threads=2, hint="throughput")
    compiled = OpenVinoExporter().open(tmp_path / "model.xml", target).compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("THROUGHPUT")
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


@needs_openvino
def test_codes_in_four_bits_come_back() -> None:
    from lighten.export.openvino_graph import _four_bits

    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    for kind, low in (("i4", 0), ("u4", 8)):
        held = _four_bits(codes, getattr(openvino().Type, kind), name="codes")
        raw = torch.from_numpy(held.get_data().view(np.uint8).copy())
        assert list(held.shape) == [4, 4]
        assert unpack(raw, 4, num_codes=16).tolist() == [(int(code) + low) % 16 for code in codes.flatten()]


@needs_openvino
def test_memory_is_measured_in_a_fresh_process(tmp_path: Path) -> None:
    export = OpenVinoExporter().write_float(rows()[0], tmp_path / "model.xml")
    peak = subprocess_peak_bytes([sys.executable, "-P", run_once.__file__, str(export.path), f"[[[1, {WIDTH}], 'float32']]"])
    assert 20e6 < peak < 500e6  # an interpreter and OpenVINO, without torch


@needs_openvino
@pytest.mark.parametrize("content", [b"", b"<net", b"not a model"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(content)
    with pytest.raises(InputError, match="OpenVINO cannot load"):
        OpenVinoExporter().open(tmp_path / "model.xml", TARGET)


@needs_openvino
def test_an_input_of_another_shape_is_refused(tmp_path: Path) -> None:
    OpenVinoExporter().write_float(rows()[0], tmp_path / "model.xml")
    session = OpenVinoExporter().open(tmp_path / "model.xml", TARGET)
    with pytest.raises(InputError, match="OpenVINO refused the input"):
        session(torch.randn(1, WIDTH + 1))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino.cache_clear()
    try:
        with pytest.raises(InputError, match=r"lighten\[openvino\]"):
            OpenVinoExporter()
    finally:
        openvino.cache_clear()
