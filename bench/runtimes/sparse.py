"""Where zeros buy time on this CPU: large linear layers, dense and with 80, 90 and 95 % of the weights zero.

    python bench/runtimes/sparse.py FOLDER [--threads 1] [--rounds 60]

Three networks of linear layers and ReLU with random weights, at batch 1 and 16; zeros at random places. Of each: float32
in torch, ONNX Runtime and OpenVINO; int8 (lighten's file) in both, dense, and in OpenVINO with zeros, without and with its
property CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE; float32 with zeros in torch.sparse (compressed rows, int32 indices). All forms
of one network and batch are timed interleaved in one process. Writes sparse.json and sparse.md beside this script.

Dimension key: B batch, O outputs, I inputs of a layer.
"""

import argparse
import json
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch import Tensor, nn

import lighten
from lighten.analyze.trace import trace
from lighten.engine.files import write_atomic
from lighten.evaluate.latency import time_interleaved
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
NETWORKS = {
    "768-3072-768": (768, 3072, 768),
    "1024-4096-1024": (1024, 4096, 1024),
    "4096-4096-4096-4096": (4096,) * 4,
}
BATCHES = (1, 16)
ZEROS = (0.8, 0.9, 0.95)
FASTEST_FLOAT = ("torch float32", "onnxruntime float32", "openvino float32")
HEAD = """| form | least ms | times as fast as the fastest float32 | p50 ms | times as fast, by medians (95 %) | and as int8 |
|---|---|---|---|---|---|"""
_RATE = 0.7  # the property's threshold: weights with more zeros than this are stored compressed


def main() -> None:
    """Measures what is not in sparse.json yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the exported files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()
    path = HERE / "sparse.json"
    results = json.loads(path.read_text()) if path.is_file() and not arguments.again else {}
    results |= {"machine": device(), "threads": arguments.threads, "versions": versions()}
    for name in NETWORKS:
        for batch in BATCHES:
            key = f"{name}, batch {batch}"
            if key not in results.get("times", {}):
                measured = measure(name, batch, arguments.folder, threads=arguments.threads, rounds=arguments.rounds)
                results.setdefault("times", {})[key] = measured
                write_atomic(path, json.dumps(results, indent=1) + "\n")
    write_atomic(HERE / "sparse.md", table(results))
    print(table(results))


def measure(name: str, batch: int, folder: Path, *, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of every form, and the largest difference of the sparse product from the dense one."""
    x_BI = torch.randn(batch, NETWORKS[name][0], generator=torch.Generator().manual_seed(1))
    dense, exporter, target = network(NETWORKS[name], 0.0), OnnxExporter(), lighten.Target(threads=threads)
    float_file, int8_file = folder / f"{name}.onnx", folder / f"{name}-int8-0.onnx"
    exporter.write_float(lighten.load(dense, example=x_BI), float_file)
    write_int8(dense, int8_file, folder)
    calls = {
        "torch float32": torch_call(dense, x_BI),
        "onnxruntime float32": session_call(exporter.open(float_file, target), x_BI),
        "openvino float32": openvino_call(float_file, x_BI, threads),
        "openvino int8": openvino_call(int8_file, x_BI, threads),
        "onnxruntime int8": session_call(exporter.open(int8_file, target), x_BI),
    }
    differences = {}
    for zeros in ZEROS:
        sparse = network(NETWORKS[name], zeros)
        int8_file = folder / f"{name}-int8-{zeros}.onnx"
        write_int8(sparse, int8_file, folder)
        calls[f"openvino int8, {zeros:.0%} zeros"] = openvino_call(int8_file, x_BI, threads)
        calls[f"openvino int8, {zeros:.0%} zeros, rate {_RATE}"] = openvino_call(int8_file, x_BI, threads, rate=_RATE)
        rows = Rows(sparse)
        calls[f"torch.sparse float32, {zeros:.0%} zeros"] = torch_call(rows, x_BI)
        with torch.no_grad():
            differences[f"{zeros:.0%}"] = float((rows(x_BI) - sparse(x_BI)).abs().max())
    # the dense file once more: where zeros seem to help without a sparse kernel, this one tells how much is the place in memory
    calls["openvino int8, loaded again"] = openvino_call(folder / f"{name}-int8-0.onnx", x_BI, threads)
    timing = time_interleaved(calls, rounds=rounds)
    fastest = min(FASTEST_FLOAT, key=lambda one: timing.latencies[one].p50_ms)
    return {
        "fastest_float": fastest,
        "noise_ratio": timing.noise_ratio,
        "kernels": {"dense": kernels(folder / f"{name}-int8-0.onnx"), "sparse": kernels(int8_file, rate=_RATE)},
        "differences": differences,
        "forms": {
            form: {
                "p50_ms": latency.p50_ms,
                "p95_ms": latency.p95_ms,
                "min_ms": latency.min_ms,
                "of_fastest_float": list(timing.ratio_interval(form, fastest)),
                "of_int8": list(timing.ratio_interval(form, "openvino int8")),
            }
            for form, latency in timing.latencies.items()
        },
    }


def network(widths: tuple[int, ...], zeros: float) -> nn.Sequential:
    """Linear layers with ReLU between them; the given fraction of each weight is zero."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight[torch.rand_like(linear.weight) < zeros] = 0
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Rows(nn.Module):
    """The same layers with weights in compressed rows, int32 indices."""

    def __init__(self, dense: nn.Sequential) -> None:
        super().__init__()
        linears = [layer for layer in dense if isinstance(layer, nn.Linear)]
        self.weights = [compressed_rows(layer.weight.detach()) for layer in linears]
        self.biases_O1 = [layer.bias.detach()[:, None] for layer in linears]

    def forward(self, x_BI: Tensor) -> Tensor:
        """Columns are examples inside, since the sparse operand must stand on the left."""
        value_OB = x_BI.t()
        for number, (weight, bias_O1) in enumerate(zip(self.weights, self.biases_O1, strict=True)):
            value_OB = value_OB.relu_() if number else value_OB
            value_OB = torch.addmm(bias_O1.expand(-1, len(x_BI)), weight, value_OB)
        return value_OB.t()


def compressed_rows(weight_OI: Tensor) -> Tensor:
    """MKL's product reads int32 indices; torch makes int64 ones."""
    rows = weight_OI.to_sparse_csr()
    indices = rows.crow_indices().int(), rows.col_indices().int()
    return torch.sparse_csr_tensor(*indices, rows.values(), weight_OI.shape)


def write_int8(module: nn.Module, path: Path, folder: Path) -> None:
    """lighten's int8, calibrated on noise: the speed does not depend on it."""
    width = next(module.parameters()).shape[1]
    noise = np.random.default_rng(0).standard_normal((64, width)).astype(np.float32)
    np.savez(folder / "noise.npz", x=noise, y=np.zeros(64, np.int64))
    model = lighten.load(module, example=torch.from_numpy(noise[:1]))
    data = lighten.load_data(folder / "noise.npz", model=model)
    prepared = Quantize(samples=32).prepare(model, trace(model), data=data, run=lighten.Run())
    OnnxExporter().write(prepared.realize(prepared.proposals()[0]), path)


def torch_call(module: nn.Module, x_BI: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(x_BI)

    return call


def session_call(session: Any, x_BI: Tensor) -> Callable[[], object]:
    return lambda: session(x_BI)


def openvino_call(path: Path, x_BI: Tensor, threads: int, *, rate: float | None = None) -> Callable[[], object]:
    request = compiled(path, threads, batch=len(x_BI), rate=rate).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(x_BI.numpy(), shared_memory=True))
    return request.infer


def compiled(path: Path, threads: int, *, batch: int, rate: float | None) -> Any:
    """For latency, floats in float32. rate: zeros above which the weights of a layer are stored compressed."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, model.inputs[0].partial_shape[1].get_length()])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    settings["ENABLE_CPU_PINNING"] = False
    if rate is not None:
        settings["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = rate
    return core.compile_model(model, "CPU", settings)


def kernels(path: Path, *, rate: float | None = None) -> list[str]:
    """The kernel of each linear layer, as OpenVINO names it: one for compressed weights has "sparse" in its name."""
    graph = compiled(path, 1, batch=1, rate=rate).get_runtime_model()
    infos = [node.get_rt_info() for node in graph.get_ordered_ops()]
    return [info["primitiveType"].astype(str) for info in infos if info["layerType"].astype(str) == "FullyConnected"]


def versions() -> dict[str, str]:
    """Of what was timed."""
    found = {"torch": torch.__version__, "openvino": openvino.__version__, "python": platform.python_version()}
    return found | {"onnxruntime": __import__("onnxruntime").__version__}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a form."""
    lines = [f"{results['machine']}, {results['threads']} thread(s); {results['versions']}\n"]
    for key, measured in results["times"].items():
        lines += [f"### {key}\n", HEAD]
        least = min(measured["forms"][form]["min_ms"] for form in FASTEST_FLOAT)
        for form, facts in measured["forms"].items():
            against = [speedup(facts[kind]) for kind in ("of_fastest_float", "of_int8")]
            figures = f"{facts['min_ms']:.3f} | {least / facts['min_ms']:.2f} | {facts['p50_ms']:.3f}"
            lines.append(f"| {form} | {figures} | {against[0]} | {against[1]} |")
        shown = {kind: sorted(set(names)) for kind, names in measured["kernels"].items()}
        lines.append(
            f"\nFastest float32: {measured['fastest_float']}; null control {measured['noise_ratio']:.3f}; "
            f"OpenVINO's int8 kernels: {shown}.\n"
        )
    return "\n".join(lines)


def speedup(interval: list[float]) -> str:
    """Of a time ratio's ends."""
    return f"{1 / interval[1]:.2f} to {1 / interval[0]:.2f}"


if __name__ == "__main__":
    main()
