"""An ONNX file in ONNX Runtime on the CPU: what an exporter proves, and what may teach."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.errors import InputError


class OnnxSession:
    """A loaded file; callable with torch tensors in input order."""

    def __init__(self, path: Path, threads: int, *, optimized: Path | None = None) -> None:
        ort = onnx_runtime()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # idle threads would spin on into the call of whichever file is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises types of its own, private ones among them
            raise InputError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error
        self.input_names = tuple(entry.name for entry in self._session.get_inputs())
        self.output_names = tuple(entry.name for entry in self._session.get_outputs())

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs one batch; a tensor for one output, else a tuple."""
        feed = {name: np.ascontiguousarray(value.numpy()) for name, value in zip(self.input_names, inputs, strict=True)}
        try:
            outputs = [torch.from_numpy(np.asarray(value)) for value in self._session.run(None, feed)]
        except Exception as error:  # as above: the runtime's own exception types
            raise InputError(f"ONNX Runtime refused the input: {str(error).splitlines()[0]}") from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def onnx_runtime() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed.", hint="pip install onnxruntime") from error
    return onnxruntime
