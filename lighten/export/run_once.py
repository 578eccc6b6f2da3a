"""`python run_once.py FILE SHAPES`: loads a file, runs it once, exits. For measuring its peak memory alone.

SHAPES: a Python literal, [[shape, dtype], ...]; inputs are zeros, integer ones are ones. Nothing of lighten is loaded, and of
the runtimes only the file's own, told by its suffix.
"""

import ast
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def main(path: str, shapes: str) -> None:
    """Runs the file once on one thread."""
    values = [np.full(shape, 0 if dtype.startswith("float") else 1, dtype=dtype) for shape, dtype in ast.literal_eval(shapes)]
    _RUN[Path(path).suffix](path, values)


def _onnx(path: str, values: Sequence[Any]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    session.run(None, dict(zip(names, values, strict=True)))


def _openvino(path: str, values: Sequence[Any]) -> None:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    compiled.create_infer_request().infer(list(values), share_inputs=True)


def _executorch(path: str, values: Sequence[Any]) -> None:
    import torch
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    method = portable_lib._load_program(path).load_method("forward")
    facts = method.method_meta()
    most = [facts.input_tensor_meta(place).sizes() for place in range(facts.num_inputs())]
    # a file holds one example of a batch, and sizes up to what it says
    held = [value[tuple(slice(size) for size in sizes)] for value, sizes in zip(values, most, strict=True)]
    method([torch.from_numpy(np.ascontiguousarray(value)) for value in held])


def _litert(path: str, values: Sequence[Any]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for entry, value in zip(interpreter.get_input_details(), values, strict=True):
        # a file has shapes of its own
        interpreter.set_tensor(entry["index"], np.full(entry["shape"], value.flat[0], dtype=entry["dtype"]))
    interpreter.invoke()


_RUN: dict[str, Callable[[str, Sequence[Any]], None]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
    ".pte": _executorch,
    ".tflite": _litert,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
