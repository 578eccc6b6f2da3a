"""The peers of peers.py: how each quantizes, and how its file is run.

Dimension key: N examples.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray]
Runner = Callable[[Feed], dict[str, np.ndarray]]


class Examples:
    """The rows of an .npz as feeds of one example each; token inputs cut to their own length."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as held:
            columns = {name: held[name] for name in held.files}
        self.lengths_N = columns.pop("lengths", None)
        self._columns = columns
        self._num = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Feed:
        if self.lengths_N is None:
            return {name: rows[index : index + 1] for name, rows in self._columns.items()}
        length = int(self.lengths_N[index])
        return {name: np.ascontiguousarray(rows[index : index + 1, :length]) for name, rows in self._columns.items()}

    def __iter__(self) -> Iterator[Feed]:
        return (self[index] for index in range(len(self)))

    @property
    def is_text(self) -> bool:
        """Whether the inputs are tokens."""
        return self.lengths_N is not None

    @property
    def longest(self) -> Feed:
        """The longest text, or the first example where all have one size."""
        return self[0 if self.lengths_N is None else int(np.argmax(self.lengths_N))]


@dataclass(frozen=True)
class Seconds:
    """What quantizing took: the quantizing call, and all from the float32 file to the file that ships."""

    alone: float
    whole: float


@dataclass(frozen=True)
class Peer:
    """One tool: how it quantizes (source, produced, examples), or only converts, and the runtime of its file."""

    make: Callable[[Path, Path, Examples], Seconds]
    runtime: str = "onnxruntime"
    is_reference: bool = False
    needs: str | None = None  # an operator without which the peer has nothing to do
    precision: str | None = None  # OpenVINO's INFERENCE_PRECISION_HINT; None leaves its default, bfloat16 where the CPU has it

    def path(self, folder: Path, name: str) -> Path:
        """Where its file lies."""
        return folder / f"{name}{'.xml' if self.runtime == 'openvino' else '.onnx'}"


def static_per_channel(source: Path, produced: Path, examples: Examples) -> Seconds:
    """quantize_static per channel with unsigned activations, the form that ONNX Runtime fuses into integer operators on x86."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

    return _static(
        source,
        produced,
        examples,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


def static_defaults(source: Path, produced: Path, examples: Examples) -> Seconds:
    """quantize_static with no argument but the data: per tensor, signed activations."""
    return _static(source, produced, examples)


def _static(source: Path, produced: Path, examples: Examples, **settings: Any) -> Seconds:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives the examples one by one, then None."""

        def __init__(self) -> None:
            self._feeds = iter(examples)

        def get_next(self) -> Feed | None:
            """The next example."""
            return next(self._feeds, None)

    prepared = produced.with_suffix(".prepared.onnx")
    began = time.perf_counter()
    # auto_merge takes Min(512, tokens) and tokens for one dimension; without it the shapes of a BERT stay unknown: an error
    quant_pre_process(str(source), str(prepared), auto_merge=True)
    called = time.perf_counter()
    quantize_static(str(prepared), str(produced), Reader(), **settings)
    ended = time.perf_counter()
    prepared.unlink()
    return Seconds(ended - called, ended - began)


def dynamic(source: Path, produced: Path, examples: Examples) -> Seconds:
    """quantize_dynamic: int8 weights, activation ranges found at each call; needs no examples."""
    from onnxruntime.quantization import quantize_dynamic

    began = time.perf_counter()
    quantize_dynamic(str(source), str(produced))
    ended = time.perf_counter()
    return Seconds(ended - began, ended - began)


def nncf_onnx(source: Path, produced: Path, examples: Examples) -> Seconds:
    """nncf.quantize on the ONNX file."""
    import onnx

    return _nncf(produced, examples, read=lambda: onnx.load(str(source)), save=onnx.save)


def nncf_openvino(source: Path, produced: Path, examples: Examples) -> Seconds:
    """nncf.quantize on the OpenVINO model; saved as OpenVINO saves by default, what stays float in 16 bits."""
    import openvino

    return _nncf(produced, examples, read=lambda: openvino.Core().read_model(source), save=openvino.save_model)


def _nncf(produced: Path, examples: Examples, *, read: Callable[[], Any], save: Callable[[Any, str], None]) -> Seconds:
    import nncf

    model_type = nncf.ModelType.TRANSFORMER if examples.is_text else None
    began = time.perf_counter()
    model = read()
    called = time.perf_counter()
    quantized = nncf.quantize(model, nncf.Dataset(examples), subset_size=len(examples), model_type=model_type)
    ended = time.perf_counter()
    save(quantized, str(produced))
    return Seconds(ended - called, time.perf_counter() - began)


def openvino_convert(source: Path, produced: Path, examples: Examples) -> Seconds:
    """The float32 network as an OpenVINO file, nothing quantized."""
    import openvino

    began = time.perf_counter()
    openvino.save_model(openvino.Core().read_model(source), str(produced), compress_to_fp16=False)
    ended = time.perf_counter()
    return Seconds(0.0, ended - began)


PEERS = {
    "onnxruntime_static": Peer(static_per_channel),
    "onnxruntime_static_defaults": Peer(static_defaults),
    "onnxruntime_dynamic": Peer(dynamic, needs="MatMul"),
    "nncf_onnx": Peer(nncf_onnx),
    "nncf_openvino": Peer(nncf_openvino, runtime="openvino"),
    "openvino_float32": Peer(openvino_convert, runtime="openvino", is_reference=True, precision="f32"),
    "openvino_default": Peer(openvino_convert, runtime="openvino", is_reference=True),
}


def open_onnxruntime(path: Path, threads: int) -> Runner:
    """A session on N threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Idle threads would spin on into the next file's call and slow it; the same setting for every file.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, feed), strict=True))


def open_openvino(path: Path, threads: int, precision: str | None) -> Runner:
    """A compiled model on N threads, for latency. A dynamic batch is fixed to the one example that it is given, as
    one would for latency; the number of tokens stays dynamic.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    shapes = {entry.any_name: entry.partial_shape for entry in model.inputs}
    for shape in shapes.values():
        shape[0] = 1
    model.reshape(shapes)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", settings | ({"INFERENCE_PRECISION_HINT": precision} if precision else {}))
    request = compiled.create_infer_request()
    names = [entry.any_name for entry in compiled.outputs]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        results = request.infer(feed, share_inputs=True)
        return {name: results[index] for index, name in enumerate(names)}

    return run


def open_peer(name: str, folder: Path, threads: int) -> Runner:
    """The peer's file in its own runtime."""
    peer = PEERS[name]
    path = peer.path(folder, name)
    return open_openvino(path, threads, peer.precision) if peer.runtime == "openvino" else open_onnxruntime(path, threads)
