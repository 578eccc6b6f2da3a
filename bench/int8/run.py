"""int8 by lighten and by its peers: the same network, data, machine and run.

    python bench/int8/run.py FOLDER --peers-python PEERS/bin/python [--threads 1] [--only minilm]

For each of three real networks: exports float32, quantizes with lighten, hands the same file and the same calibration
examples to the peers (peers.py, an environment of their own), scores every tool's file with one code, and times all files
interleaved in one process. Writes results.json and table.md beside this script. README.md here says how to make the peers'
environment.

Dimension key: N examples.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lighten
from lighten.analyze.trace import trace
from lighten.core.data import Batch
from lighten.evaluate.collect import collect
from lighten.evaluate.paired import compare
from lighten.evaluate.predictions import Pass
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

# model, data, and the contract's largest drop
NETWORKS = {
    "efficientnet_lite0": ("examples.efficientnet_lite0:build", "examples.efficientnet_lite0:data", 0.05),
    "minilm": ("examples.minilm:build", "examples.minilm:similarity", 0.005),
    "silero_vad": ("examples.silero_vad:build", "examples.silero_vad:data", 0.005),
}


def main() -> None:
    """Runs what was asked for and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for files of the run")
    parser.add_argument("--peers-python", help="the Python of the peers' environment; without it lighten runs alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=NETWORKS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results["machine"] = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    results["threads"] = arguments.threads
    for name in arguments.only or NETWORKS:
        results[name] = measure(name, arguments.folder / name, arguments.threads, peers=arguments.peers_python)
        path.write_text(json.dumps(results, indent=1) + "\n")
    results["overhead"] = overhead(arguments.folder)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "table.md").write_text(table(results))
    print(table(results))


def measure(name: str, folder: Path, threads: int, *, peers: str | None) -> dict[str, Any]:
    """One network: lighten's file and its times, the peers' files, scores and latencies."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data = (call(target) for target in NETWORKS[name][:2])
    budget = lighten.Budget(max_drop=NETWORKS[name][2])
    exporter, target = OnnxExporter(), lighten.Target(threads=threads)
    exporter.write_float(model, folder / "original.onnx")
    result = lighten.compress(model, data, budget=budget, target=target)
    (folder / "lighten.onnx").write_bytes(result.model_bytes)
    facts: dict[str, Any] = {"metric": data.metric, "num_test": len(data.test), "num_calibration": len(data.calibration)}
    facts["lighten"] = {
        **quantizing_seconds(model, data, folder, threads),
        "max_drop": budget.max_drop,
        "tried": result.report["candidates"],
    }
    save_inputs(model, data, folder)
    if peers is not None:
        run_peers(peers, folder, threads)
    reference = collect(exporter.open(folder / "original.onnx", target), data.test, how=Pass(data.task, 1), what="original")
    facts["original"] = {"bytes": (folder / "original.onnx").stat().st_size}
    mine = collect(exporter.open(folder / "lighten.onnx", target), data.test, how=Pass(data.task, 1), what="lighten")
    facts["lighten"] |= scores(reference, mine, data) | {"bytes": (folder / "lighten.onnx").stat().st_size}
    facts["lighten"]["operators"] = exporter.operators(folder / "lighten.onnx")
    for peer, entry in read_peers(folder).items():
        facts[peer] = entry | peer_scores(folder, peer, reference, data)
    if peers is not None:
        facts["latency"] = json.loads((folder / "latency.json").read_text())
    return facts


def quantizing_seconds(model: lighten.Model, data: lighten.Data, folder: Path, threads: int) -> dict[str, float]:
    """lighten's quantizing (calibrate, plan, codes, bias correction), beside plain forward passes of the untouched network
    over the same calibration examples, and the export; medians of three, interleaved.
    """
    method, exporter = Quantize(), OnnxExporter()
    run = lighten.Run(threads=threads)
    batches = list(data.calibration.batches(16, method.samples))
    samples: dict[str, list[float]] = {"plain": [], "quantize": [], "trace": [], "export": []}
    for _ in range(3):
        began = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model.module(*batch.inputs)
        samples["plain"].append(time.perf_counter() - began)
        began = time.perf_counter()
        graph = trace(model)
        samples["trace"].append(time.perf_counter() - began)
        began = time.perf_counter()
        prepared = method.prepare(model, graph, data=data, run=run)
        compressed = prepared.realize(prepared.proposals()[0])
        samples["quantize"].append(time.perf_counter() - began)
        began = time.perf_counter()
        exporter.write(compressed, folder / "timed.onnx")
        samples["export"].append(time.perf_counter() - began)
    return {f"{name}_seconds": float(np.median(values)) for name, values in samples.items()}


def save_inputs(model: lighten.Model, data: lighten.Data, folder: Path) -> None:
    """The same examples for the peers, as arrays; token inputs padded, with their lengths."""
    limit = Quantize().samples
    np.savez(folder / "calibration.npz", **arrays(model, data.calibration.batches(1, limit)))
    np.savez(folder / "test.npz", **arrays(model, data.test.batches(1)))


def arrays(model: lighten.Model, batches: Iterator[Batch]) -> dict[str, Any]:
    """Every row of every batch, by input name."""
    columns: dict[str, list[Any]] = {name: [] for name in model.input_names}
    for batch in batches:
        for name, value in zip(model.input_names, batch.inputs, strict=True):
            columns[name] += [row.numpy() for row in value]
    first = columns[model.input_names[0]]
    lengths = np.array([len(row) for row in first]) if model.input_names[0] == "input_ids" else None
    if lengths is None:
        return {name: np.stack(rows) for name, rows in columns.items()}
    padded = {name: np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows]) for name, rows in columns.items()}
    return {**padded, "lengths": lengths}


def run_peers(python: str, folder: Path, threads: int) -> None:
    """Quantizes with every peer, then times everything in one process."""
    script = str(HERE / "peers.py")
    subprocess.run([python, script, str(folder), "--threads", str(threads)], check=True)
    subprocess.run([python, script, str(folder), "--time", str(folder / "lighten.onnx")], check=True)


def read_peers(folder: Path) -> dict[str, Any]:
    """What peers.py measured of each peer."""
    path = folder / "peers.json"
    return dict(json.loads(path.read_text())["peers"]) if path.is_file() else {}


def peer_scores(folder: Path, peer: str, reference: Any, data: lighten.Data) -> dict[str, Any]:
    """The peer's outputs, scored as lighten's are."""
    path = folder / f"{peer}.outputs.npz"
    if not path.is_file():
        return {}
    with np.load(path) as held:
        outputs = torch.from_numpy(held[held.files[0]])
    batches = Replay(data.test, outputs, pairs=data.task == "sentence-similarity")
    return scores(reference, collect(batches.answer, batches, how=Pass(data.task, 1), what=peer), data)


class Replay:
    """A split and a runner that gives recorded outputs, so that peers run in their own environment and are scored here."""

    def __init__(self, split: Any, outputs: torch.Tensor, *, pairs: bool) -> None:
        self._split, self._outputs, self._rows, self._at = split, outputs, 2 if pairs else 1, 0

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """The split's own batches."""
        return self._split.batches(size, limit)

    def describe(self, index: int) -> Any:
        """As the split does."""
        return self._split.describe(index)

    def answer(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The next recorded rows."""
        start = self._at
        self._at += self._rows * (len(inputs[0]) // self._rows)
        return self._outputs[start : self._at]


def scores(reference: Any, predictions: Any, data: lighten.Data) -> dict[str, Any]:
    """Score, drop and its paired interval against float32 in ONNX Runtime."""
    compared = compare(reference, predictions, metric=data.metric)
    return {
        "score": compared.compressed_score,
        "original_score": compared.original_score,
        "drop": compared.drop,
        "drop_interval": list(compared.drop_interval),
    }


def overhead(folder: Path) -> dict[str, float]:
    """Seconds of `import lighten` on top of torch, and of inspecting a 100M-parameter folder after imports; medians of five."""
    importing = "import torch, time; t = time.perf_counter(); import lighten; lighten.load; print(time.perf_counter() - t)"
    checkpoint = big_checkpoint(folder / "big")
    inspecting = (
        "import time, lighten, torch, transformers; from transformers import AutoModel; lighten.load; lighten.inspect;"
        f"t = time.perf_counter(); lighten.inspect(lighten.load({str(checkpoint)!r})); print(time.perf_counter() - t)"
    )
    return {
        "import_seconds": median_seconds(importing),
        "inspect_100m_seconds": median_seconds(inspecting),
    }


def median_seconds(code: str) -> float:
    """Of five fresh processes, each printing its own time."""
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(5)
    ]
    return float(np.median([float(output.split()[-1]) for output in outputs]))


def big_checkpoint(folder: Path) -> Path:
    """A BERT-base of random weights, 109M parameters."""
    if not (folder / "config.json").is_file():
        from transformers import BertConfig, BertModel

        BertModel(BertConfig()).save_pretrained(folder)
    return folder


def call(target: str) -> Any:
    """package.module:callable."""
    from lighten.engine.importing import call as called

    os.chdir(HERE.parents[1])
    return called(target)


def processor() -> str:
    """As the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(results: dict[str, Any]) -> str:
    """Markdown, a section a network."""
    parts = [
        f"Machine: {results['machine']['processor']}, {results['machine']['cores']} cores; {results['threads']} thread(s).\n"
    ]
    for name in NETWORKS:
        if name in results:
            parts.append(section(name, results[name]))
    return "\n".join(parts)


def section(name: str, facts: dict[str, Any]) -> str:
    """One network's table: every tool's score, drop, bytes, quantizing seconds, and time at one thread over float32's in ONNX
    Runtime.
    """
    head = f"### {name} ({facts['metric']}, {facts['num_test']} test, {facts['num_calibration']} calibration examples)\n"
    columns = ("tool", "score", "drop (95 % interval)", "bytes", "of fp32", "quantizing s", "p50 ms", "times as fast")
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    times = facts.get("latency", {}).get("threads", {}).get("1", {})
    for tool, entry in facts.items():
        if isinstance(entry, dict) and "score" in entry:
            rows.append(row(tool, entry, whole=facts["original"]["bytes"], time=times.get(tool, {})))
    original = times.get("original", {}).get("latency_ms_p50")
    foot = f"\nfloat32 in ONNX Runtime: {facts['original']['bytes']:,} bytes, {original or float('nan'):.2f} ms.\n"
    return "\n".join([head, *rows, foot])


def row(tool: str, entry: dict[str, Any], *, whole: int, time: dict[str, Any]) -> str:
    """One tool's line."""
    low, high = entry["drop_interval"]
    seconds = entry.get("quantize_seconds", entry.get("seconds"))
    cells = (
        tool,
        f"{entry['score']:.4f}",
        f"{entry['drop']:+.4f} ({low:+.4f} to {high:+.4f})",
        f"{entry['bytes']:,}",
        f"{entry['bytes'] / whole:.3f}",
        "" if seconds is None else f"{seconds:.1f}",
        f"{time['latency_ms_p50']:.2f}" if time else "",
        f"{1 / time['of_original']:.2f}" if time else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
