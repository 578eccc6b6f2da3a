"""OpenVINO IR (.xml and .bin), and OpenVINO to run it on the CPU.

The network goes through the same ONNX graph as for ONNX Runtime, in operators of the standard alone; OpenVINO reads it and
writes its own two files. Integer products are integer kernels there as soon as both sides are dequantized. A linear layer of
which only the weights are codes reads them as they are (int8, int4) and rounds what flows in to 8 bits in groups of 32, at run
time: OpenVINO's own dynamic quantization, on by default. A product whose activation range is found at run time
(Quant(dynamic=True)) is written in this form too.

Floats are computed in float32: INFERENCE_PRECISION_HINT is pinned, for the original as for the compressed network. OpenVINO's
own default is bfloat16 where the processor has it, which is faster and rounds to 8 bits of mantissa without a word.
"""

import copy
import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.files import move
from lighten.engine.quiet import mute, quiet

if TYPE_CHECKING:
    import onnx

SPARSE_RATE = 0.5
"""Of zeros in a weight, from which on it is held compressed, where the processor has kernels for that (AMX)."""
_RATE_KEY = ["lighten", "sparse_weights_rate"]
_WEIGHTS = ".bin"


class OpenVinoExporter:
    """Writes OpenVINO IR and runs it on the CPU, floats in float32. Raises InputError where OpenVINO is not installed."""

    name = "openvino"
    suffix = ".xml"

    def __init__(self) -> None:
        openvino()

    def write_float(self, model: Model, path: Path) -> Export:
        """The original network in float32. Raises UnfitError when an operator has no form in ONNX or OpenVINO."""
        from lighten.export.onnx import to_proto

        return _write(to_proto(model.module, model, plain=True), path, is_sparse=False)

    def write(self, compressed: Compressed, path: Path) -> Export:
        """The compressed network. Raises UnfitError when an operator has no form in ONNX or OpenVINO."""
        from lighten.export.lower import lower
        from lighten.export.onnx import to_proto

        with quiet():
            graph = copy.deepcopy(compressed.graph)
        proto = to_proto(lower(graph, plain=True), compressed.model, plain=True)
        return _write(proto, path, is_sparse=bool(compressed.model.sparse))

    def open(self, path: Path, target: Target) -> "OpenVinoSession":
        """Loads a file. Raises InputError when OpenVINO refuses it."""
        return OpenVinoSession(path, target)

    def weight_widths(self) -> tuple[int, ...]:
        """Integers of 8 and 4 bits have kernels; codes of fewer take 4."""
        return 8, 4

    def exact_weight_bits(self) -> int:
        """7 where a product of uint8 and int8 saturates, else 8."""
        from lighten.export.saturation import FULL_BITS, NARROW_BITS

        return NARROW_BITS if _saturates() else FULL_BITS

    def operators(self, path: Path) -> dict[str, int]:
        """What the compiled network executes, counted: {"Conv:int8": 49, "MatMul:int4": 2, "Add:fp32": 1}."""
        from lighten.export.openvino_graph import count

        return count(OpenVinoSession(path, Target(self.name)).compiled)


class OpenVinoSession:
    """A loaded file; callable with torch tensors in input order. Where the first dimension of an input is dynamic, it is fixed
    to the target's batch, as one would for speed; batches of other sizes run in a second, dynamic network, made when the first
    of them comes.
    """

    def __init__(self, path: Path, target: Target) -> None:
        ov = openvino()
        try:
            with mute():
                self._model = ov.Core().read_model(path)
                self._batch, self._settings = target.batch, _settings(self._model, target)
                self._fixed = self._compile(batch=target.batch)
        except Exception as error:  # OpenVINO raises RuntimeError and types of its own
            raise InputError(f"OpenVINO cannot load {path}: {_reason(error)}.") from error
        self._dynamic: Any = None
        self.input_names = tuple(entry.any_name for entry in self._model.inputs)
        self.output_names = tuple(entry.any_name for entry in self._model.outputs)

    @property
    def compiled(self) -> Any:
        """OpenVINO's own, for the target's batch."""
        return self._fixed.get_compiled_model()

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs one batch; a tensor for one output, else a tuple."""
        request = self._fixed
        if any(value.dim() and len(value) != self._batch for value in inputs):
            self._dynamic = self._dynamic or self._compile(batch=None)
            request = self._dynamic
        values = [np.ascontiguousarray(value.numpy()) for value in inputs]
        try:
            # tensor by tensor: infer(values) takes four times as long around a small network
            for place, value in enumerate(values):
                request.set_input_tensor(place, openvino().Tensor(value, shared_memory=True))
            request.infer()
        except Exception as error:  # as above
            raise InputError(f"OpenVINO refused the input: {_reason(error)}.") from error
        found = (request.get_output_tensor(place).data for place in range(len(self.output_names)))
        outputs = [torch.from_numpy(np.array(value)) for value in found]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _compile(self, *, batch: int | None) -> Any:
        model = self._model.clone()
        shapes = {entry.any_name: entry.partial_shape for entry in model.inputs}
        for shape in shapes.values():
            if batch is not None and shape.rank.get_length() and shape[0].is_dynamic:
                shape[0] = batch
        model.reshape(shapes)
        return openvino().Core().compile_model(model, "CPU", self._settings).create_infer_request()


@cache
def openvino() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        import openvino as module
    except ImportError as error:
        raise InputError("OpenVINO is not installed.", hint="pip install 'lighten[openvino]'") from error
    return module


@cache
def _saturates() -> bool:
    """True when OpenVINO's product of uint8 and int8 loses sums on this machine (saturation.py says why some do)."""
    from openvino import Model as Graph
    from openvino import Type, opset13

    size, most, weight = 64, 255.0, 127
    value = opset13.parameter([size, size], Type.f32)
    codes = opset13.fake_quantize(value, np.float32(0), np.float32(most), np.float32(0), np.float32(most), 256)
    weights = opset13.convert(opset13.constant(np.full((size, size), weight, np.int8)), Type.f32)
    product = opset13.matmul(codes, opset13.multiply(weights, np.float32(1)), False, True)
    graph = Graph([product], [value])
    sums = openvino().Core().compile_model(graph, "CPU", _settings(graph, Target()))(np.full((size, size), most, np.float32))[0]
    return bool((sums != most * weight * size).any())


def _write(proto: "onnx.ModelProto", path: Path, *, is_sparse: bool) -> Export:
    from lighten.export.openvino_graph import name_by_place, narrow_weights

    ov = openvino()
    try:
        with mute():
            model = ov.Core().read_model(proto.SerializeToString())
            name_by_place(model)
            narrow_weights(model)
            if is_sparse:
                model.set_rt_info(str(SPARSE_RATE), _RATE_KEY)
            others = _save(model, path)
            computed = _computed(path)
    except RuntimeError as error:
        raise UnfitError(f"The network cannot be written for OpenVINO: {_reason(error)}.") from error
    digest = hashlib.sha256(path.read_bytes())
    for other in others:
        digest.update(other.read_bytes())
    size_bytes = sum(file.stat().st_size for file in (path, *others))
    return Export(path, size_bytes, digest.hexdigest(), computed, others)


def _computed(path: Path) -> frozenset[str]:
    """Names of the weights that are read in few bits, asked of the file itself."""
    from lighten.export.openvino_graph import computed_weights, weight_products

    model = openvino().Core().read_model(path)
    products = weight_products(model)
    if not products:
        return frozenset()
    return computed_weights(openvino().Core().compile_model(model, "CPU", _settings(model, Target())), products)


def _save(model: Any, path: Path) -> tuple[Path, ...]:
    """Both files, the weights in place before the file that names them."""
    weights = path.with_suffix(_WEIGHTS)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / path.name
        openvino().save_model(model, made, compress_to_fp16=False)
        move(made.with_suffix(_WEIGHTS), weights)
        move(made, path)
    return (weights,)


def _settings(model: Any, target: Target) -> dict[str, Any]:
    settings = {
        "PERFORMANCE_HINT": target.hint.upper(),
        "INFERENCE_NUM_THREADS": target.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        # a pinned thread waits for its core where another program holds it; other runtimes go elsewhere
        "ENABLE_CPU_PINNING": False,
    }
    if model.has_rt_info(_RATE_KEY):
        settings["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = float(model.get_rt_info(_RATE_KEY).astype(str))
    return settings


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO puts where in its source before what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")
