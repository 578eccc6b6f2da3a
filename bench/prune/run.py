"""Structured pruning by lighten and by Torch-Pruning: the same trained network, data, epochs and machine.

    pip install --no-deps --target PEERS torch-pruning
    python bench/prune/run.py FOLDER --peers PEERS [--train-epochs 6] [--tune-epochs 3] [--threads 1]

Trains the residual CNN of network.py on Fashion-MNIST (kept in FOLDER), cuts it to 50 % and 30 % of its multiply-accumulates
with each tool, scores the 10,000 test images before and after the same fine-tuning in the same loop, and times the ONNX files
of all networks interleaved in ONNX Runtime. Writes results.json and table.md beside this script.
"""

import argparse
import copy
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from network import build, write_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lighten
from lighten.analyze.cost import total
from lighten.analyze.trace import traced
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.engine.train import train
from lighten.evaluate.latency import time_interleaved
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune

HERE = Path(__file__).parent
SHARES = (0.5, 0.3)
EXAMPLE = (torch.zeros(2, 1, 28, 28),)
Cut = Callable[[Model, Data, float], Model]


def main() -> None:
    """Trains, cuts, tunes, times, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the trained network")
    parser.add_argument("--peers", type=Path, help="where torch-pruning was installed; without it lighten runs alone")
    parser.add_argument("--train-epochs", type=int, default=6)
    parser.add_argument("--tune-epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model, data = prepare(arguments.folder, arguments.train_epochs, arguments.threads)
    tools: dict[str, Cut] = {"lighten": cut, "lighten, widths of 8": cut_aligned, "lighten, no repair": cut_only}
    if arguments.peers:
        sys.path.append(str(arguments.peers))
        tools["Torch-Pruning, magnitude"] = cut_by_peer
    results: dict[str, Any] = {"device": device(), "threads": arguments.threads, "seed": 0, "versions": versions()}
    results |= {"accuracy": accuracy(model, data), "macs": total(traced(model), EXAMPLE).macs, "test_images": len(data.test)}
    results |= {"tune_epochs": arguments.tune_epochs, "rows": []}
    networks = {"original": model, "original again": model}
    for share in SHARES:
        for name, tool in tools.items():
            smaller, row = measure(model, data, name=name, share=share, tool=tool)
            tuned = tune(smaller, data, arguments.tune_epochs, arguments.threads) if "repair" not in name else None
            row["after"] = None if tuned is None else accuracy(tuned, data)
            networks[f"{name} {share}"] = smaller
            results["rows"].append(row)
            print(row, flush=True)
    results["latency_ms"] = latencies(networks, arguments.folder, arguments.threads)
    write_atomic(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomic(HERE / "table.md", table(results))
    print(table(results))


def prepare(folder: Path, epochs: int, threads: int) -> tuple[Model, Data]:
    """The trained network and the data; both are made once."""
    if not (folder / "fashion.npz").is_file():
        write_data(folder / "fashion.npz")
    module, _ = build()
    model = as_model(module)
    data = lighten.load_data(folder / "fashion.npz", model=model)
    weights = folder / "trained.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        training = Training(epochs=epochs, batch_size=128, lr=0.1, weight_decay=5e-4)
        assert data.train is not None
        train(module, data.train, loss=loss_for(data.task), training=training, run=Run(threads=threads))
        save_file(module.state_dict(), weights)
    return model, data


def as_model(module: nn.Module) -> Model:
    """With a batch of any size."""
    return Model(module.eval(), EXAMPLE, Origin("module", "residual", "image-classification", dynamic=({0: "batch"},)))


def cut(model: Model, data: Data, share: float) -> Model:
    """Our defaults, but widths as they come: as many multiply-accumulates as the peer keeps."""
    return Prune(macs=share, round_to=1).rewrite(model, data=data, run=Run())


def cut_aligned(model: Model, data: Data, share: float) -> Model:
    """Our defaults: widths in multiples of 8."""
    return Prune(macs=share, least=0.25).rewrite(model, data=data, run=Run())


def cut_only(model: Model, data: Data, share: float) -> Model:
    """What the repair is worth."""
    return Prune(macs=share, round_to=1, repair=False).rewrite(model, data=data, run=Run())


def cut_by_peer(model: Model, data: Data, share: float) -> Model:
    """The peer's magnitude importance of groups, global ranking, cut in steps of 1 % until the share is reached."""
    import torch_pruning as tp

    module = copy.deepcopy(model.module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    full = total(traced(model), EXAMPLE).macs
    importance, head = tp.importance.GroupMagnitudeImportance(), [module.head]
    pruner = tp.pruner.BasePruner(
        module, EXAMPLE[0], importance, pruning_ratio=0.9, iterative_steps=90, global_pruning=True, ignored_layers=head
    )
    while total(traced(as_model(module)), EXAMPLE).macs > share * full:
        pruner.step()
    return as_model(module)


def measure(model: Model, data: Data, *, name: str, share: float, tool: Cut) -> tuple[Model, dict[str, Any]]:
    """The cut network; its accuracy, share of multiply-accumulates and seconds."""
    began = time.perf_counter()
    smaller = tool(model, data, share)
    seconds = time.perf_counter() - began
    kept = total(traced(smaller), EXAMPLE).macs / total(traced(model), EXAMPLE).macs
    facts = {"tool": name, "wanted": share, "macs": round(kept, 4), "seconds": round(seconds, 2)}
    return smaller, {**facts, "before": accuracy(smaller, data)}


def tune(model: Model, data: Data, epochs: int, threads: int) -> Model:
    """The same training for every tool."""
    step = Finetune(epochs=epochs, batch_size=128, lr=0.02, weight_decay=5e-4)
    return step.rewrite(model, data=data, run=Run(threads=threads))


@torch.no_grad()
def accuracy(model: Model, data: Data) -> float:
    """Share of the test images that are told right, in torch."""
    hits = [int((model.module(*batch.inputs).argmax(1) == batch.target).sum()) for batch in data.test.batches(500)]
    return sum(hits) / len(data.test)


def latencies(networks: dict[str, Model], folder: Path, threads: int) -> dict[str, float]:
    """Median milliseconds of 32 images in ONNX Runtime, interleaved: a batch, so that a call takes above a millisecond."""
    exporter, x = OnnxExporter(), torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], Any]] = {}
    for number, (name, model) in enumerate(networks.items()):
        session = exporter.open(exporter.write_float(model, folder / f"{number}.onnx").path, lighten.Target(threads=threads))
        calls[name] = _call(session, x)
    timing = time_interleaved(calls, rounds=200)
    return {name: latency.p50_ms for name, latency in timing.latencies.items()}


def _call(session: Any, x: Tensor) -> Callable[[], Any]:
    return lambda: session(x)


def versions() -> dict[str, str]:
    """Of what shapes the figures."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    paths = [entry for entry in importlib.metadata.distributions() if entry.metadata["Name"] == "torch-pruning"]
    return found | ({"torch-pruning": paths[0].version} if paths else {})


def table(results: dict[str, Any]) -> str:
    """For people."""
    original = results["latency_ms"]["original"]
    lines = [
        f"{results['device']}; {results['threads']} thread(s); {results['test_images']} test images; seed 0.",
        f"Uncut: accuracy {results['accuracy']:.4f}, {results['macs']:,} MACs, {original:.3f} ms for 32 images "
        f"(the same file again: {results['latency_ms']['original again']:.3f}).",
        "",
        f"| tool | MACs | accuracy before tuning | after {results['tune_epochs']} epochs | s | ms | times as fast "
        "| of what the MACs promise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        spent = results["latency_ms"][f"{row['tool']} {row['wanted']}"]
        kept = (1 - spent / original) / (1 - row["macs"])
        after = "" if row["after"] is None else f"{row['after']:.4f}"
        lines.append(
            f"| {row['tool']} | {row['macs']:.3f} | {row['before']:.4f} | {after} | {row['seconds']:.1f} | {spent:.3f} | "
            f"{original / spent:.2f} | {kept:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
