"""Structured pruning by lighten and by Torch-Pruning: the same trained networks, data, epochs and machine.

    apt install dataset-fashion-mnist
    pip install --no-deps --target PEERS torch-pruning==1.6.1
    python bench/prune/run.py FOLDER --peers PEERS

Trains the residual CNN of network.py on Fashion-MNIST from three seeds, cuts each to 50 % and 30 % of its multiply-accumulates
with each tool, scores the exported file on the 10,000 test images in ONNX Runtime before and after the same fine-tuning in the
same loop, and times the files of the first seed interleaved. Trained and cut networks are kept in FOLDER, so that an
interrupted run goes on where it was. Writes results.json and table.md beside this script.
"""

import argparse
import importlib.metadata
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from network import load_images, macs, trained
from tools import TOOLS, Tool
from torch import Tensor

import lighten
from lighten.core.data import Data, Runner
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.evaluate.latency import time_interleaved
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.finetune import Finetune

HERE = Path(__file__).parent
SHARES = (0.5, 0.3)
_BATCH = 32  # images a timed call: a call takes above a millisecond
_ROUNDS = 200


def main() -> None:
    """Trains, cuts, tunes, times, writes."""
    arguments = parsed()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    tools = [tool for tool in TOOLS if arguments.peers or not tool.is_peer]
    tools = [tool for tool in tools if not arguments.only or arguments.only in tool.name]
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        originals, rows = [], []
        for seed in range(arguments.seeds):
            model = trained(arguments.folder, data, seed=seed, threads=arguments.threads)
            originals.append(_remembered(arguments.folder / f"original-{seed}", lambda: score(model, data)))  # noqa: B023
            for share, tool in itertools.product(SHARES, tools):
                rows.append(row(model, data, tool, share=share, seed=seed, arguments=arguments))
                print(rows[-1], flush=True)
    if arguments.only:
        return
    results = {
        **{"device": device(), "threads": arguments.threads, "versions": versions(), "test_images": len(data.test)},
        **{"seeds": arguments.seeds, "tune_epochs": arguments.tune_epochs, "macs": macs(model.module)},
        **{"originals": originals, "rows": rows, "latency": latencies(arguments.folder, tools, arguments.threads)},
    }
    write_atomic(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomic(HERE / "table.md", table(results))
    print(table(results))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the networks")
    parser.add_argument("--peers", type=Path, help="where torch-pruning was installed; without it lighten runs alone")
    parser.add_argument("--only", default="", help="work ahead: tools whose name holds this; writes no table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune-epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def row(model: Model, data: Data, tool: Tool, *, share: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The tool's cut and what it scores before and after fine-tuning; taken from the folder where it was made before."""
    place = arguments.folder / stem(tool, share, seed)

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        smaller = tool.cut(model, data, share)
        seconds = time.perf_counter() - began
        facts = {"tool": tool.name, "wanted": share, "seed": seed, "seconds": round(seconds, 2)}
        facts["macs"] = round(macs(smaller.module) / macs(model.module), 4)
        facts["before"] = score(smaller, data, keep=place.with_suffix(".onnx"))
        step = Finetune(epochs=arguments.tune_epochs, batch_size=128, lr=0.02, weight_decay=5e-4)
        run = Run(seed=seed, threads=arguments.threads)
        facts["after"] = score(step.rewrite(smaller, data=data, run=run), data) if tool.tunes else None
        return facts

    return _remembered(place, make)


def stem(tool: Tool, share: float, seed: int) -> str:
    """The name of a row's files."""
    words = tool.name.lower().replace(",", "").replace(" ", "-")
    return f"{words}_{int(100 * share)}_{seed}"


def _remembered(place: Path, make: Callable[[], Any]) -> Any:
    path = place.with_suffix(".json")
    if not path.is_file():
        write_atomic(path, json.dumps(make()))
    return json.loads(path.read_text())


def score(model: Model, data: Data, keep: Path | None = None) -> float:
    """Share of the test images that the exported file tells right, in ONNX Runtime. keep: where the file stays."""
    exporter, path = OnnxExporter(), keep or Path(HERE / ".scored.onnx")
    try:
        session = exporter.open(exporter.write_float(model, path).path, lighten.Target())
        return sum(_hits(session, data)) / len(data.test)
    finally:
        if keep is None:
            path.unlink(missing_ok=True)


def _hits(session: Runner, data: Data) -> Iterator[int]:
    for batch in data.test.batches(500):
        assert batch.target is not None
        yield int((session(*batch.inputs).argmax(1) == batch.target).sum())


def latencies(folder: Path, tools: list[Tool], threads: int) -> dict[str, Any]:
    """Median milliseconds of the first seed's files, interleaved, and the original's own second timing over its first."""
    exporter, target = OnnxExporter(), lighten.Target(threads=threads)
    x = torch.randn(_BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    files = {
        f"{tool.name} {share}": folder / f"{stem(tool, share, 0)}.onnx" for share, tool in itertools.product(SHARES, tools)
    }
    original = exporter.write_float(trained(folder, load_images(folder), seed=0, threads=threads), folder / "original.onnx")
    calls = {name: _call(exporter.open(path, target), x) for name, path in {"original": original.path, **files}.items()}
    timing = time_interleaved(calls, rounds=_ROUNDS, max_seconds=120)
    ratios = {name: timing.ratio_interval(name, "original") for name in calls}
    return {
        "batch": _BATCH,
        "noise_ratio": timing.noise_ratio,
        "ms": {name: latency.p50_ms for name, latency in timing.latencies.items()},
        "ratio_interval": ratios,
    }


def _call(session: Runner, x: Tensor) -> Callable[[], Any]:
    return lambda: session(x)


def versions() -> dict[str, str]:
    """Of what shapes the figures."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    paths = [entry for entry in importlib.metadata.distributions() if entry.metadata["Name"] == "torch-pruning"]
    return found | ({"torch-pruning": paths[0].version} if paths else {})


def table(results: dict[str, Any]) -> str:
    """For people: means over the seeds, with the extremes."""
    latency = results["latency"]
    original = latency["ms"]["original"]
    lines = [
        f"{results['device']}; {results['threads']} thread(s); {results['test_images']} test images through the exported file; "
        f"{results['seeds']} seed(s).",
        f"Uncut: accuracy {spread(results['originals'])}, {results['macs']:,} MACs, {original:.3f} ms for {latency['batch']} "
        f"images (the same file again: {latency['noise_ratio']:.3f} of it).",
        "",
        f"| tool | MACs | accuracy before tuning | after {results['tune_epochs']} epochs | s | ms | times as fast "
        "| of what the MACs promise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    key = lambda row: (row["wanted"], row["tool"])  # noqa: E731
    for (wanted, name), found in itertools.groupby(sorted(results["rows"], key=key), key):
        rows = list(found)
        first = next(row for row in rows if row["seed"] == 0)
        spent = latency["ms"][f"{name} {wanted}"]
        kept = (1 - spent / original) / (1 - first["macs"])
        after = "" if first["after"] is None else spread([row["after"] for row in rows])
        seconds = sum(row["seconds"] for row in rows) / len(rows)
        lines.append(
            f"| {name} | {first['macs']:.3f} | {spread([row['before'] for row in rows])} | {after} | {seconds:.1f} | "
            f"{spent:.3f} | {original / spent:.2f} | {kept:.0%} |"
        )
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean and extremes, where there is more than one."""
    mean = f"{sum(values) / len(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    main()
