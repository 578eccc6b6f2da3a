"""int8 by lighten and by its peers: the same network, data, machine and run.

    python bench/int8/run.py FOLDER --peers-python PEERS/bin/python [--threads 1] [--only minilm] [--peers-only]

For each of three real networks: exports float32, quantizes with lighten, hands the same file and the same calibration
examples to the peers (peers.py, an environment of their own), scores every tool's file with one code, and times all files
interleaved in one process. Writes results.json and table.md beside this script; with --peers-only, which leaves lighten out,
peers.json. README.md here says how to make the peers' environment.

Dimension key: N examples.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_latency import OtherLoad
from table import table

import lighten
from lighten.analyze.trace import trace
from lighten.core.data import Batch
from lighten.engine.files import write_atomic
from lighten.evaluate.collect import collect
from lighten.evaluate.paired import compare
from lighten.evaluate.predictions import Pass
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
PACKAGES = ("torch", "torchao", "onnx", "onnxruntime", "numpy")
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
    parser.add_argument("--peers-only", action="store_true", help="leave lighten out, write peers.json")
    arguments = parser.parse_args()
    if arguments.peers_only and not arguments.peers_python:
        parser.error("--peers-only needs --peers-python")
    torch.set_num_threads(arguments.threads)
    path = HERE / ("peers.json" if arguments.peers_only else "results.json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    results |= {"machine": machine(), "threads": arguments.threads}
    for name in arguments.only or NETWORKS:
        folder = arguments.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        results[name] = measure(name, folder, arguments.threads, peers=arguments.peers_python, own=not arguments.peers_only)
        write_atomic(path, json.dumps(results, indent=1) + "\n")
    if not arguments.peers_only:
        results["overhead"] = overhead(arguments.folder)
        write_atomic(path, json.dumps(results, indent=1) + "\n")
        write_atomic(HERE / "table.md", table(results, tuple(NETWORKS)))
    print(table(results, tuple(NETWORKS)))


def measure(name: str, folder: Path, threads: int, *, peers: str | None, own: bool) -> dict[str, Any]:
    """One network: lighten's file and its times where `own`, the peers' files, scores and latencies."""
    model, data = (call(target) for target in NETWORKS[name][:2])
    exporter, target = OnnxExporter(), lighten.Target(threads=threads)
    facts: dict[str, Any] = {"metric": data.metric, "num_test": len(data.test)}
    facts["num_calibration"] = min(len(data.calibration), Quantize().samples)
    original = folder / "original.onnx"
    exporter.write_float(model, original)
    save_inputs(model, data, folder)
    reference = collect(exporter.open(original, target), data.test, how=Pass(data.task, 1), what="original")
    files = [folder / "lighten.onnx", folder / "lighten_int8.onnx"] if own else []
    if own:
        facts["lighten"] = own_facts(model, data, files[0], threads=threads, max_drop=NETWORKS[name][2])
        facts["lighten_int8"] = quantizing_seconds(model, data, files[1], threads=threads)
        # one measurement of the float32 export for every tool: it varies with the load of the machine
        exporting = facts["lighten_int8"]
    else:
        exporting = median_of_three({"export_float": lambda: exporter.write_float(model, original)}, threads)
    facts["original"] = {"bytes": original.stat().st_size, "export_float_seconds": exporting["export_float_seconds"]}
    for file in files:
        outputs = collect(exporter.open(file, target), data.test, how=Pass(data.task, 1), what=file.stem)
        facts[file.stem] |= scores(reference, outputs, data) | {"bytes": file.stat().st_size}
        facts[file.stem]["operators"] = exporter.operators(file)
    if peers is not None:
        run_peers(peers, folder, threads, extra=files)
        said = json.loads((folder / "peers.json").read_text())
        for peer, entry in said["peers"].items():
            facts[peer] = entry | peer_scores(folder, peer, reference=reference, data=data)
        facts["latency"] = json.loads((folder / "latency.json").read_text())
    return facts


def own_facts(model: lighten.Model, data: lighten.Data, produced: Path, *, threads: int, max_drop: float) -> dict[str, Any]:
    """Compresses as a user would, into `produced`. What is kept was chosen among the tried files by their score on the test
    examples, which no peer does: `lighten_int8` is the file to hold against a peer's.
    """
    target = lighten.Target(threads=threads)
    began = time.perf_counter()
    result = lighten.compress(model, data, budget=lighten.Budget(max_drop=max_drop), target=target)
    seconds = time.perf_counter() - began
    write_atomic(produced, result.model_bytes)
    return {"compress_seconds": seconds, "max_drop": max_drop, "tried": result.report["candidates"]}


def quantizing_seconds(model: lighten.Model, data: lighten.Data, produced: Path, *, threads: int) -> dict[str, Any]:
    """lighten's way from the torch module to one int8 file, nothing searched and no example scored: trace, quantize (calibrate,
    plan, codes, bias correction) and export into `produced`. Beside them plain forward passes of the untouched network over the
    same examples, and its float32 export.

    whole_of_plain is the way of lighten over those two, steps_of_plain the same without the trace that lighten quantizes on.
    """
    method, exporter, run = Quantize(), OnnxExporter(), lighten.Run(threads=threads)
    batches = list(data.calibration.batches(16, method.samples))
    made: dict[str, Any] = {}

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model.module(*batch.inputs)

    def quantize() -> None:
        prepared = method.prepare(model, made["graph"], data=data, run=run)
        made["compressed"] = prepared.realize(prepared.proposals()[0])

    parts = {
        "plain": plain,
        "export_float": lambda: exporter.write_float(model, produced),
        "trace": lambda: made.update(graph=trace(model)),
        "quantize": quantize,
        "export": lambda: exporter.write(made["compressed"], produced),  # last, so that the int8 file stays
    }
    facts = median_of_three(parts, threads)
    yardstick = facts["plain_seconds"] + facts["export_float_seconds"]
    steps = facts["quantize_seconds"] + facts["export_seconds"]
    whole = steps + facts["trace_seconds"]
    return facts | {"whole_seconds": whole, "whole_of_plain": whole / yardstick, "steps_of_plain": steps / yardstick}


def median_of_three(parts: dict[str, Callable[[], Any]], threads: int) -> dict[str, float]:
    """Seconds of each part, run in turn three times, held to N cores as the peers are; and how busy the others were."""
    samples: dict[str, list[float]] = {name: [] for name in parts}
    clock = OtherLoad()
    with held_to_cores(threads):
        for _ in range(3):
            for name, part in parts.items():
                began = time.perf_counter()
                part()
                samples[name].append(time.perf_counter() - began)
    facts = {f"{name}_seconds": float(np.median(values)) for name, values in samples.items()}
    return facts | {"cores_used_by_others": clock.cores()}


@contextmanager
def held_to_cores(threads: int) -> Iterator[None]:
    """Holds this thread, and those it starts, to the same N cores that peers.py holds each peer to."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def save_inputs(model: lighten.Model, data: lighten.Data, folder: Path) -> None:
    """The same examples for the peers, as arrays; token inputs padded, with their lengths."""
    limit = Quantize().samples
    np.savez(folder / "calibration.npz", **arrays(model, data.calibration.batches(1, limit)))
    np.savez(folder / "test.npz", **arrays(model, data.test.batches(1)))


def arrays(model: lighten.Model, batches: Iterator[Batch]) -> dict[str, Any]:
    """Every row of every batch, by input name; token rows without the padding of their batch, whose masks (minus infinity)
    would ruin a peer's static ranges.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in model.input_names}
    is_text = model.input_names[0] == "input_ids"
    for batch in batches:
        ends = batch.inputs[1].sum(1).tolist() if is_text else [None] * len(batch.inputs[0])
        for name, value in zip(model.input_names, batch.inputs, strict=True):
            columns[name] += [row[:end].numpy() for row, end in zip(value, ends, strict=True)]
    if not is_text:
        return {name: np.stack(rows) for name, rows in columns.items()}
    lengths = np.array([len(row) for row in columns[model.input_names[0]]])
    padded = {name: np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows]) for name, rows in columns.items()}
    return {**padded, "lengths": lengths}


def run_peers(python: str, folder: Path, threads: int, *, extra: list[Path]) -> None:
    """Quantizes with every peer, then times their files and `extra` in one process."""
    script = str(HERE / "peers.py")
    repeats = ["--repeats", "3"]  # the median of three, as lighten's own seconds are
    subprocess.run([python, script, str(folder), "--threads", str(threads), *repeats], check=True)
    subprocess.run([python, script, str(folder), "--time", *map(str, extra)], check=True, stdout=subprocess.DEVNULL)


def peer_scores(folder: Path, peer: str, *, reference: Any, data: lighten.Data) -> dict[str, Any]:
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
        yield from self._split.batches(size, limit)

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


def machine() -> dict[str, Any]:
    """Processor, cores and the versions in lighten's environment; the peers' are in each network's `latency`."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def processor() -> str:
    """As the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
