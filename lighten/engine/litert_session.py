"""A .tflite file in LiteRT on the CPU, with XNNPACK.

Dimension key: T tokens (or whatever a dimension counts that the file fixes and an example may fall short of).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.errors import InputError
from lighten.engine.one_by_one import one_by_one
from lighten.engine.quiet import mute

SIGNATURE = "serving_default"


class LitertSession:
    """A loaded file; callable with torch tensors in input order. Batches are run example by example. Where the network is told
    by a mask what is real, shorter inputs are filled with zeros; others must have the file's shape. Integer inputs and outputs
    are quantized and dequantized here.
    """

    def __init__(self, path: Path, threads: int) -> None:
        library = litert_runtime()
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
        try:
            with mute():
                self._interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
                signature = self._interpreter.get_signature_list().get(SIGNATURE, {"inputs": []})
        except Exception as error:  # the runtime raises what pybind makes of its error codes
            raise InputError(f"LiteRT cannot load {path}: {_line(error)}") from error
        self._inputs, self._outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._shapes = [tuple(int(size) for size in entry["shape"]) for entry in self._inputs]
        self._fills = any("mask" in name for name in signature["inputs"])

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs a batch; a tensor for one output, else a tuple."""
        if len(inputs) != len(self._shapes):
            raise InputError(f"The file takes {len(self._shapes)} inputs. Got {len(inputs)}.")
        return one_by_one(self._run, inputs, [shape[0] if shape else None for shape in self._shapes])

    def _run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        for value, shape, entry in zip(inputs, self._shapes, self._inputs, strict=True):
            self._interpreter.set_tensor(entry["index"], _coded(self._filled(value, shape), entry))
        self._interpreter.invoke()
        results = [_decoded(self._interpreter.get_tensor(entry["index"]), entry) for entry in self._outputs]
        return [self._cut(value, inputs[0]) for value in results]

    def _filled(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        given = tuple(value.shape)
        if given == shape:
            return value
        fits = len(given) == len(shape) and all(size <= most for size, most in zip(given, shape, strict=True))
        if not self._fills or not fits:
            raise InputError(
                f"The file takes inputs of shape {shape}. Got {given}.",
                hint="A .tflite file has fixed shapes: write it with an example of the longest input.",
            )
        filled = value.new_zeros(shape)
        filled[tuple(slice(size) for size in given)] = value
        return filled

    def _cut(self, value: Tensor, given: Tensor) -> Tensor:
        """Results by token lose those of what was filled in."""
        most_T = self._shapes[0][1] if len(self._shapes[0]) > 1 else 0
        is_by_token = value.dim() > 2 and value.shape[1] == most_T
        return value[:, : given.shape[1]] if self._fills and is_by_token else value


def litert_runtime() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        with mute():
            from ai_edge_litert import interpreter
    except ImportError as error:
        raise InputError("LiteRT is not installed.", hint='pip install "lighten[litert]"') from error
    return interpreter


def _coded(value: Tensor, entry: dict[str, Any]) -> Any:
    """As the file's input takes it."""
    array = np.ascontiguousarray(value.numpy())
    scale, zero = entry["quantization"]
    if entry["dtype"] is np.int8 and scale:
        ends = np.iinfo(np.int8)
        array = np.clip(np.rint(array / np.float32(scale)) + zero, ends.min, ends.max)
    return array.astype(entry["dtype"], copy=False)


def _decoded(value: Any, entry: dict[str, Any]) -> Tensor:
    scale, zero = entry["quantization"]
    if entry["dtype"] is np.int8 and scale:
        value = (value.astype(np.float32) - zero) * np.float32(scale)
    return torch.from_numpy(np.asarray(value))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
