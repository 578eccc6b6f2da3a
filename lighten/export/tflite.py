"""Edits on a .tflite file that its converter has no words for, and a count of what LiteRT executes.

* A linear layer with int8 weights and float activations becomes one that rounds its activations to 8 bits, row by row, and
  multiplies in integers; its codes take 4 bits where these hold them.
* Weights that float16 holds exactly, of a network in which there are such, are stored in it, widened once at load.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lighten.engine.litert_session import LitertSession
from lighten.engine.quiet import mute

_LEAST_LEVEL, _MOST_LEVEL = -8, 7
_FEWEST_VALUES = 64  # below, an operator costs more bytes than it saves
_VERSION = 12  # of FULLY_CONNECTED with a scale a row
_IDENTIFIER = b"TFL3"
_DELEGATE = "DELEGATE"
_INTEGERS, _SHORT = ("int8", "int4"), {"float32": "fp32", "float16": "fp16"}
# names as ONNX has them, so that counts of several runtimes compare
_WITHOUT_WORK = {"RESHAPE": "Reshape", "QUANTIZE": "QuantizeLinear", "DEQUANTIZE": "DequantizeLinear", "TRANSPOSE": "Transpose"}
_NAMES = {
    "CONV_2D": "Conv", "DEPTHWISE_CONV_2D": "Conv", "TRANSPOSE_CONV": "ConvTranspose", "FULLY_CONNECTED": "Gemm",
    "BATCH_MATMUL": "MatMul", "MEAN": "ReduceMean", "SUM": "ReduceSum", "AVERAGE_POOL_2D": "AveragePool",
    "MAX_POOL_2D": "MaxPool", "LOGISTIC": "Sigmoid", "CONCATENATION": "Concat", "EMBEDDING_LOOKUP": "Gather", "MINIMUM": "Min",
    "MAXIMUM": "Max",
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """dynamic: codes, outputs x inputs, by name, of the layers whose activations have dynamic ranges. has_halves: whether
    weights were rounded to half precision.
    """

    dynamic: dict[str, Any] = field(default_factory=dict)
    has_halves: bool = False


def finish(data: bytes, weights: Weights) -> tuple[bytes, frozenset[str]]:
    """The file with these weights as they are meant, and the names of those in 4 bits."""
    if not weights.dynamic and not weights.has_halves:
        return data, frozenset()
    with mute():
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)  # the objects write where they were read
    file = _File(schema, model)
    narrowed = file.make_dynamic({codes.tobytes(): name for name, codes in weights.dynamic.items()})
    if weights.has_halves:
        file.store_halves()
    return file.packed(), narrowed


class _File:
    """A model as objects."""

    def __init__(self, schema: Any, model: Any) -> None:
        self.schema, self.model = schema, model
        (self.graph,) = model.subgraphs

    def packed(self) -> bytes:
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def make_dynamic(self, names: dict[bytes, str]) -> frozenset[str]:
        """names: of weights, by the bytes of their codes."""
        kinds = self.schema.BuiltinOperator
        made = {operator.outputs[0]: operator for operator in self.graph.operators if self._kind(operator) == kinds.DEQUANTIZE}
        narrowed: set[str] = set()
        for operator in self.graph.operators:
            source = made.get(operator.inputs[1]) if self._kind(operator) == kinds.FULLY_CONNECTED else None
            codes = None if source is None else self._bytes(source.inputs[0])
            if source is None or codes not in names:
                continue
            operator.inputs[1] = source.inputs[0]
            operator.builtinOptions.asymmetricQuantizeInputs = True
            code = self.model.operatorCodes[operator.opcodeIndex]
            code.version = max(code.version, _VERSION)
            if self._narrow(source.inputs[0]):
                narrowed.add(names[codes])
        self._drop_unread()
        return frozenset(narrowed)

    def store_halves(self) -> None:
        """Floats that half precision holds are stored in it."""
        types, first = self.schema.TensorType, []
        for index, tensor in enumerate(list(self.graph.tensors)):
            values = np.frombuffer(self._bytes(index), np.float32) if tensor.type == types.FLOAT32 else np.zeros(0)
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if values.size < _FEWEST_VALUES or not np.array_equal(halves.astype(np.float32), values):
                continue
            short = self.schema.TensorT(
                shape=tensor.shape, type=types.FLOAT16, name=tensor.name + b"_half", buffer=tensor.buffer
            )
            short.hasRank = tensor.hasRank
            self.model.buffers[tensor.buffer].data = np.frombuffer(halves.tobytes(), np.uint8)
            tensor.buffer = 0  # the one without data
            self.graph.tensors.append(short)
            first.append(self._widening(len(self.graph.tensors) - 1, index))
        self.graph.operators[:0] = first

    def _kind(self, operator: Any) -> int:
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def _bytes(self, tensor: int) -> bytes:
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return b"" if data is None else bytes(data)

    def _narrow(self, place: int) -> bool:
        """The codes in 4 bits, two a byte, the first in the lower half; False where they need more."""
        tensor = self.graph.tensors[place]
        if tensor.type == self.schema.TensorType.INT4:
            return True
        codes = np.frombuffer(self._bytes(place), np.int8)
        if codes.min() < _LEAST_LEVEL or codes.max() > _MOST_LEVEL:
            return False
        nibbles = np.append(codes, np.zeros(codes.size % 2, np.int8)).reshape(-1, 2).view(np.uint8) & 15
        self.model.buffers[tensor.buffer].data = nibbles[:, 0] | nibbles[:, 1] << 4
        tensor.type = self.schema.TensorType.INT4
        return True

    def _drop_unread(self) -> None:
        """Removes operators whose result nothing reads."""
        read = {place for operator in self.graph.operators for place in operator.inputs} | set(self.graph.outputs)
        self.graph.operators = [one for one in self.graph.operators if any(place in read for place in one.outputs)]

    def _widening(self, source: int, result: int) -> Any:
        schema, codes = self.schema, self.model.operatorCodes
        kind = schema.BuiltinOperator.DEQUANTIZE
        found = next((place for place, code in enumerate(codes) if code.builtinCode == kind), None)
        if found is None:
            codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=kind, builtinCode=kind, version=3))
            found = len(codes) - 1
        codes[found].version = max(codes[found].version, 3)  # the first that reads float16
        return schema.OperatorT(opcodeIndex=found, inputs=[source], outputs=[result])


def count_operators(path: Path) -> dict[str, int]:
    """By operator and number format: "Conv:int8" in XNNPACK, "Conv:int8 builtin" in LiteRT's own kernels. Raises
    InputError where LiteRT refuses the file.
    """
    interpreter = LitertSession(path, 1)._interpreter
    operators = interpreter._get_ops_details()  # the only list there is of what a delegate has taken
    taken = _delegated(operators)
    types = {entry["index"]: np.dtype(entry["dtype"]).name for entry in interpreter.get_tensor_details()}
    counts: Counter[str] = Counter()
    for operator in operators:
        kind = operator["op_name"]
        if kind in _WITHOUT_WORK:
            counts[_WITHOUT_WORK[kind]] += 1
        elif kind != _DELEGATE:
            counts[
                f"{_NAMES.get(kind, _plain(kind))}:{_format(operator, types)}{'' if operator['index'] in taken else ' builtin'}"
            ] += 1
    return dict(sorted(counts.items()))


def _plain(kind: str) -> str:
    """SQUARED_DIFFERENCE -> SquaredDifference."""
    return "".join(part.capitalize() for part in kind.split("_"))


def _delegated(operators: list[dict[str, Any]]) -> set[int]:
    """Places of the operators that delegates run: what lies between the tensors that one reads and those that it gives."""
    made = {int(place): one for one in operators if one["op_name"] != _DELEGATE for place in one["outputs"]}
    taken: set[int] = set()
    for delegate in (one for one in operators if one["op_name"] == _DELEGATE):
        ends = {int(place) for place in delegate["inputs"]}
        waiting = [int(place) for place in delegate["outputs"]]
        while waiting:
            operator = made.get(waiting.pop())
            if operator is None or operator["index"] in taken:
                continue
            taken.add(operator["index"])
            waiting += [int(place) for place in operator["inputs"] if int(place) not in ends]
    return taken


def _format(operator: dict[str, Any], types: dict[int, str]) -> str:
    """That of the weights where there are such; a layer with int8 weights that reads floats rounds them by itself."""
    read = [types.get(int(place), "") for place in operator["inputs"][:2]]
    integers = [name for name in read if name in _INTEGERS]
    return integers[-1] if integers else _SHORT.get(read[0], read[0])
