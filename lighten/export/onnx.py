"""ONNX files, and ONNX Runtime to run them.

A compressed graph reaches ONNX in three steps: rewrites on the torch graph that give integer operators a form ONNX can say
(lower.py), torch.onnx.export, and tidying of the file so that the runtime recognises every integer pattern (tidy.py).
"""

import copy
import hashlib
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.files import write_atomic
from lighten.engine.onnx_session import OnnxSession
from lighten.engine.quiet import quiet

if TYPE_CHECKING:
    import onnx

OPSET = 20
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QMoE")
_PACKED = {"MatMulNBits": "MatMul", "GatherBlockQuantized": "Gather"}
_UINT8 = 2  # TensorProto.UINT8
_WITHOUT_WORK = ("QuantizeLinear", "DequantizeLinear", "Constant")


class OnnxExporter:
    """Writes ONNX (opset 20) and runs it in ONNX Runtime on the CPU."""

    name = "onnxruntime"
    suffix = ".onnx"

    def write_float(self, model: Model, path: Path) -> Export:
        """The original network in float32. Raises UnfitError when an operator has no ONNX form."""
        return _write(to_proto(model.module, model), path)

    def write(self, compressed: Compressed, path: Path) -> Export:
        """The compressed network, integer weights as int8. Raises UnfitError when an operator has no ONNX form."""
        from lighten.export.lower import lower

        with quiet():
            graph = copy.deepcopy(compressed.graph)
        return _write(to_proto(lower(graph), compressed.model), path)

    def open(self, path: Path, target: Target) -> "OnnxSession":
        """Loads a file. Raises InputError when ONNX Runtime refuses it."""
        return OnnxSession(path, target.threads)

    def weight_widths(self) -> tuple[int, ...]:
        """ONNX has integers of 8, 4 and 2 bits; codes of 3 bits take 4."""
        return 8, 4, 2

    def exact_weight_bits(self) -> int:
        """7 where a product of uint8 and int8 saturates, else 8."""
        from lighten.export.saturation import FULL_BITS, NARROW_BITS, saturates

        return NARROW_BITS if saturates() else FULL_BITS

    def operators(self, path: Path) -> dict[str, int]:
        """What ONNX Runtime really executes, counted after its own graph optimization: {"Conv:int8": 49, "Add:fp32": 1}.

        The optimized file is written to the folder for temporary files. Raises InputError naming that folder when it cannot be,
        or the file when ONNX Runtime refuses it.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                optimized = Path(folder) / "optimized.onnx"
                OnnxSession(path, 1, optimized=optimized)
                return _count(_load(optimized))
        except OSError as error:
            raise _no_room(error.strerror or str(error)) from error
        except InputError as error:
            OnnxSession(path, 1)  # refuses once more where the file is at fault; else it was the writing
            raise _no_room("it is full, or its limit on files is reached") from error


def to_proto(module: nn.Module, model: Model, *, plain: bool = False) -> "onnx.ModelProto":
    """The lowered graph in ONNX, tidied. plain: as it was lowered. Raises UnfitError when an operator has no ONNX form."""
    from lighten.export.narrow import narrow_floats
    from lighten.export.packed import expand_tables
    from lighten.export.tidy import name_outputs, tidy

    proto = _convert(module, model, plain=plain)
    expand_tables(proto)
    name_outputs(proto.graph, model.output_names)
    tidy(proto)
    narrow_floats(proto)
    return proto


def _write(proto: "onnx.ModelProto", path: Path) -> Export:
    from lighten.export.narrow import narrow_codes
    from lighten.export.packed import read_packed
    from lighten.export.saturation import make_exact, saturates
    from lighten.export.tidy import drop_unused

    if saturates():
        make_exact(proto)
        drop_unused(proto.graph)
    narrow_codes(proto)
    data = proto.SerializeToString()
    write_atomic(path, data)
    return Export(path, len(data), hashlib.sha256(data).hexdigest(), read_packed(proto))


def _convert(module: nn.Module, model: Model, *, plain: bool) -> "onnx.ModelProto":
    from lighten.export.lower import translations

    example = tuple(value.clone() for value in model.example)
    shapes = tuple(dict.fromkeys(dims, torch.export.Dim.AUTO) for dims in model.origin.dynamic) or None
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(model.input_names),
                custom_translation_table=translations(plain=plain),
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the translation of an operator raises
        reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), type(error).__name__)
        raise UnfitError(f"The network cannot be written as ONNX: {reason.strip()[:300]}") from error
    if exported is None:
        raise UnfitError("The network cannot be written as ONNX: the exporter gave nothing.")
    return exported.model_proto


def _no_room(why: str) -> InputError:
    folder = tempfile.tempdir or os.environ.get("TMPDIR") or "the folder for temporary files"
    return InputError(f"Cannot write to {folder}: {why}.", hint="Free some space, or set TMPDIR to another folder.")


def _load(path: Path) -> "onnx.ModelProto":
    import onnx

    return onnx.load(str(path))


def _count(proto: "onnx.ModelProto") -> dict[str, int]:
    counts: Counter[str] = Counter()
    codes = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == _UINT8}
    for node in proto.graph.node:
        if node.op_type in _PACKED:
            counts[f"{_PACKED[node.op_type]}:int{_bits(node)}"] += 1
        elif node.op_type not in _WITHOUT_WORK:
            is_on_codes = node.op_type == "Clip" and node.input[-1] in codes
            is_integer = is_on_codes or node.op_type.startswith(_INTEGER)
            counts[f"{_plain(node.op_type)}:{'int8' if is_integer else 'fp32'}"] += 1
        else:
            counts[node.op_type] += 1
    return dict(sorted(counts.items()))


def _bits(node: "onnx.NodeProto") -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "bits"), 4)


def _plain(op_type: str) -> str:
    """QLinearConv -> Conv, MatMulIntegerToFloat -> MatMul: the operator whatever its number format."""
    for prefix in ("QLinear", "DynamicQuantize"):
        if op_type.startswith(prefix) and len(op_type) > len(prefix):
            op_type = op_type[len(prefix) :]
    names = {"QGemm": "Gemm", "MatMulIntegerToFloat": "MatMul", "MatMulInteger": "MatMul", "ConvInteger": "Conv"}
    return names.get(op_type, "Quantize" if op_type == "Linear" else op_type)
