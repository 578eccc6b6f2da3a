"""XNNPACK's sparse 1 x 1 convolutions through LiteRT: whether they run, and what they bring.

    python bench/runtimes/sparse_xnnpack.py [--edge 224] [--rounds 60]

XNNPACK computes a float32 network with sparse weights where it may: 1 x 1 convolutions with at least two thirds zeros, behind a
3 x 3 convolution of stride 2 on three channels, among depthwise convolutions padded by one on each side, before a mean over the
image. This is such a network, written as .tflite twice: with dense weights that have zeros, and with the same weights in
compressed rows (DENSIFY), which tells LiteRT's delegate to ask XNNPACK for sparse kernels. Equal outputs, bit for bit, and
equal times mean that the dense kernels ran. Prints a table; writes nothing.

Dimension key: O output channels, I input channels, H height, W width.
"""

import argparse
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from lighten.evaluate.latency import time_interleaved

WIDTHS, REPEATS, ZEROS = (64, 128, 256, 512), 3, (0.8, 0.9)
Array = np.ndarray[Any, Any]


def main() -> None:
    """Both forms at each share of zeros, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    x = np.random.default_rng(1).standard_normal((1, arguments.edge, arguments.edge, 3)).astype(np.float32)
    calls, outputs, sizes = {}, {}, {}
    for zeros in ZEROS:
        for form in ("dense", "sparse"):
            file = network(arguments.edge, zeros, is_sparse=form == "sparse")
            name = f"{zeros:.0%} zeros, {form}"
            calls[name], outputs[name] = opened(file, x)
            sizes[name] = len(file)
    timing = time_interleaved(calls, rounds=arguments.rounds)
    print("| weights | bytes | p50 ms | least ms | largest difference from dense |\n|---|---|---|---|---|")
    for name, latency in timing.latencies.items():
        difference = np.abs(outputs[name] - outputs[name.replace("sparse", "dense")]).max()
        print(f"| {name} | {sizes[name]:,} | {latency.p50_ms:.3f} | {latency.min_ms:.3f} | {difference:.2g} |")


def opened(file: bytes, x: Array) -> tuple[Any, Array]:
    """The call, and what it gives."""
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.invoke, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()


def network(edge: int, zeros: float, *, is_sparse: bool) -> bytes:
    """The file."""
    random, file = np.random.default_rng(0), File()
    x, channels = file.tensor((1, edge, edge, 3)), 32
    file.graph.inputs = [x]
    x, edge = file.conv(x, edge, normal(random, (32, 3, 3, 3)), stride=2), edge // 2
    for width in WIDTHS:
        for number in range(REPEATS):
            stride = 2 if number == 0 else 1
            x, edge = file.depthwise(x, edge, normal(random, (1, 3, 3, channels)), stride=stride), edge // stride
            weight = normal(random, (width, 1, 1, channels), kept=1 - zeros)
            x, channels = file.conv(x, edge, weight, is_sparse=is_sparse), width
    axes = file.constant(np.array([1, 2], np.int32))
    mean = file.tensor((1, 1, 1, channels))
    options = schema.ReducerOptionsT()
    options.keepDims = True
    file.operator("MEAN", [x, axes], mean, options)
    file.graph.outputs = [mean]
    return file.content()


def normal(random: np.random.Generator, shape: tuple[int, ...], *, kept: float = 1.0) -> Array:
    """Weights that keep the size of what flows through, with zeros at random places."""
    inputs = kept * (shape[1] * shape[2] * (shape[3] if shape[0] > 1 else 1))
    values = random.standard_normal(shape) * np.sqrt(2 / inputs)
    return np.where(random.random(shape) < kept, values, 0).astype(np.float32)


class File:
    """A .tflite that is being put together."""

    def __init__(self) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph.tensors, self.graph.operators = [], []

    def tensor(self, shape: tuple[int, ...], *, kind: int = schema.TensorType.FLOAT32, data: Array | None = None) -> int:
        """Its number. data: of a constant."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = f"tensor_{len(self.graph.tensors)}", list(shape), kind, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, values: Array) -> int:
        """float32 or int32."""
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        return self.tensor(values.shape, kind=kind, data=values)

    def compressed_rows(self, weight: Array) -> int:
        """The weight behind DENSIFY: rows of the first dimension, non-zeros of the last."""
        rows_OI = weight.reshape(len(weight), -1)
        ends, places = np.cumsum((rows_OI != 0).sum(1)), np.nonzero(rows_OI)[1]
        number = self.tensor(weight.shape, data=rows_OI[rows_OI != 0])
        sparsity = schema.SparsityParametersT()
        sparsity.traversalOrder, sparsity.blockMap = [0, 1, 2, 3], []
        sparsity.dimMetadata = [_dense(size) for size in (len(weight), 1, 1)] + [_rows(np.append(0, ends), places)]
        self.graph.tensors[number].sparsity = sparsity
        dense = self.tensor(weight.shape)
        self.operator("DENSIFY", [number], dense, schema.DensifyOptionsT())
        return dense

    def conv(self, x: int, edge: int, weight: Array, *, stride: int = 1, is_sparse: bool = False) -> int:
        """With ReLU6. edge: of the input."""
        options = schema.Conv2DOptionsT()
        held = self.compressed_rows(weight) if is_sparse else self.constant(weight)
        return self._padded("CONV_2D", (x, held), options, shape=(edge, weight.shape[1], len(weight)), stride=stride)

    def depthwise(self, x: int, edge: int, weight: Array, *, stride: int) -> int:
        """3 x 3, with ReLU6."""
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
        parts = (x, self.constant(weight))
        return self._padded("DEPTHWISE_CONV_2D", parts, options, shape=(edge, 3, weight.shape[3]), stride=stride)

    def _padded(self, name: str, parts: tuple[int, int], options: Any, *, shape: tuple[int, int, int], stride: int) -> int:
        """Padding as an operator of its own: SAME pads the far side alone at stride 2, which the sparse kernels do not."""
        (x, weight), (edge, size, outputs) = parts, shape
        if size == 3:
            amounts = self.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
            padded = self.tensor((1, edge + 2, edge + 2, self.graph.tensors[x].shape[3]))
            self.operator("PAD", [x, amounts], padded, schema.PadOptionsT())
            x = padded
        options.padding, options.strideH, options.strideW = schema.Padding.VALID, stride, stride
        options.dilationHFactor, options.dilationWFactor = 1, 1
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
        made = self.tensor((1, edge // stride, edge // stride, outputs))
        self.operator(name, [x, weight, self.constant(np.zeros(outputs, np.float32))], made, options)
        return made

    def operator(self, name: str, inputs: list[int], output: int, options: Any) -> None:
        """options: an object of the schema, whose class names their kind."""
        code, made = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), 1
        code.deprecatedBuiltinCode = code.builtinCode
        self.model.operatorCodes.append(code)
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes) - 1, inputs, [output]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        made.builtinOptions = options
        self.graph.operators.append(made)

    def content(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _dense(size: int) -> Any:
    made = schema.DimensionMetadataT()
    made.format, made.denseSize = schema.DimensionType.DENSE, size
    return made


def _rows(ends: Array, places: Array) -> Any:
    made = schema.DimensionMetadataT()
    made.format, made.denseSize = schema.DimensionType.SPARSE_CSR, 0
    made.arraySegmentsType = made.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    made.arraySegments, made.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
    made.arraySegments.values, made.arrayIndices.values = ends.astype(np.int32), places.astype(np.int32)
    return made


if __name__ == "__main__":
    main()
