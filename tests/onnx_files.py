"""Small ONNX files for tests: one node, or a few, and what ONNX Runtime makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

import lighten
from lighten.engine.onnx_session import OnnxSession

KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8}
KINDS |= {"int8": TensorProto.INT8, "bool": TensorProto.BOOL}


def network(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> Any:
    """inputs: type and shape of each. The outputs have no declared type."""
    taken = [helper.make_tensor_value_info(name, KINDS[kind], list(shape)) for name, (kind, shape) in inputs.items()]
    given = [ValueInfoProto(name=name) for name in outputs]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", taken, given, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(proto: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def differ(path: Path, *inputs: torch.Tensor, **options: Any) -> float:
    """The largest difference between the network that is read and the file in ONNX Runtime, over all outputs."""
    model = lighten.load(path, **options)
    with torch.no_grad():
        found = model.module(*inputs)
    expected = OnnxSession(path, 1)(*inputs)
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (found, expected)), strict=True)
    worst = 0.0
    for one, other in pairs:
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        worst = max(worst, float((one.double() - other.double()).abs().max())) if one.numel() else worst
    return worst
