"""onnx's own tests of single operators, through the reader: how many give the expected numbers, and which do not.

A test gives every tensor as an input of the network. Files have weights, axes and shapes as constants, so each test is read
several times: with all tensors as inputs, and with all but one as constants; it passes when either gives the expected numbers.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.backend.test.case.node import collect_testcases

from lighten.core.errors import LightenError
from lighten.engine.quiet import quiet
from lighten.read.onnx_graph import KNOWN, convert
from lighten.read.onnx_normalize import open_onnx

TYPES = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
TYPES |= {TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}


def run(limit: int | None = None) -> dict[str, Any]:
    """{"passed": names, "failed": {name: why}, "set_aside": {name: why}} over the tests of operators on ordinary numbers."""
    found: dict[str, Any] = {"version": onnx.__version__, "passed": [], "failed": {}, "set_aside": {}}
    with quiet():
        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    for case in cases[:limit]:
        aside = why_aside(case)
        if aside:
            found["set_aside"][case.name] = aside
            continue
        why = failure(case)
        if why is None:
            found["passed"].append(case.name)
        else:
            found["failed"][case.name] = why
    return found


def why_aside(case: Any) -> str:
    """Why a test says nothing about reading networks; empty where it does."""
    graph = case.model.graph
    if any(entry.domain not in ("", "ai.onnx") for entry in case.model.opset_import):
        return "another domain"
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            return "no tensor"
        if value.type.tensor_type.elem_type not in TYPES:
            return f"type {TensorProto.DataType.Name(value.type.tensor_type.elem_type)}"
    if any(np.array(given).dtype.kind not in "fiub" for inputs, _ in case.data_sets for given in inputs):
        return "no numbers"
    if any(node.op_type in ("RandomNormalLike", "Bernoulli", "RandomUniformLike") for node in graph.node):
        return "random"
    return ""


def failure(case: Any) -> str | None:
    """Why a test does not pass; None where it does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.model.SerializeToString())
        for inputs, outputs in case.data_sets:
            reasons = [_failure(path, split, outputs) for split in splits(case, inputs)]
            if all(reasons):
                return next((why for why in reasons if why and why.startswith("off by")), reasons[-1])
    return None


def splits(case: Any, inputs: list[Any]) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Which tensors are inputs, and which constants: none, then all but each one."""
    tensors = {
        value.name: torch.from_numpy(np.array(given)) for value, given in zip(case.model.graph.input, inputs, strict=False)
    }
    yield tensors, {}
    for kept, tensor in tensors.items():
        yield {kept: tensor}, {name: value for name, value in tensors.items() if name != kept}


def _failure(path: Path, split: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], expected: list[Any]) -> str | None:
    given, fixed = split
    try:
        with quiet(), torch.no_grad():
            found = convert(open_onnx(path, KNOWN), given, fixed=fixed, folder=path.parent)(*given.values())
    except LightenError as error:
        return error.message[:200].replace(str(path), "the file")
    except Exception as error:  # what the reader promises not to raise: named, so that it is seen
        return f"{type(error).__name__}: {str(error)[:150]}"
    results = found if isinstance(found, tuple) else (found,)
    for result, value in zip(results, expected, strict=False):
        if value.size and value.dtype.kind in "fiub":
            if tuple(result.shape) != value.shape:
                return f"shape {tuple(result.shape)}, not {value.shape}"
            if not np.allclose(
                result.detach().numpy().astype(np.float64), value.astype(np.float64), 1e-3, 1e-5, equal_nan=True
            ):
                worst = np.abs(result.numpy().astype(np.float64) - value.astype(np.float64)).max()
                return f"off by {worst:.2g}"
    return None
