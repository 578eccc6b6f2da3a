"""Quantization-aware training on the exported file: accuracy, bytes and minutes by width, beside the post-training start.

    apt install dataset-fashion-mnist
    python bench/quantize/qat.py FOLDER [--ablations] [--seeds 3] [--epochs 4]

The residual CNN of bench/prune/network.py, trained on Fashion-MNIST from three seeds (kept in FOLDER). Each file is scored on
the 10,000 test images in ONNX Runtime; the drop is that of the mean over seeds, with a 95 % interval over test images, paired.
The first and the last layer keep 8 bits. Training sees the training images alone, 1,000 of them held out to choose the epoch.
Every finished case is kept in FOLDER, a training at its last epoch: started again, the script goes on where it was. Writes
qat.json and qat.md beside this script, unless the epochs are not the default ones: then into FOLDER.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import load_images, trained
from safetensors.torch import load_file, save_file
from torch import Tensor

import lighten
from lighten.analyze.trace import trace
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.quantize.qat import Qat

HERE = Path(__file__).parent
EPOCHS = 4


@dataclass(frozen=True)
class Case:
    """name: for the table. knobs: of qat; None for the float file. trains: False for the post-training start alone."""

    name: str
    knobs: dict[str, Any] | None = field(default_factory=dict)
    trains: bool = True


WIDTHS = (4, 3, 2)
CASES = (
    Case("float32", None),
    *(Case(f"{bits}/{bits} start", {"weights": bits, "activations": bits}, trains=False) for bits in WIDTHS),
    *(Case(f"{bits}/{bits}", {"weights": bits, "activations": bits}) for bits in WIDTHS),
)
TWO = {"weights": 2, "activations": 2}
ABLATIONS = (
    Case("2/2 labels alone", {**TWO, "teacher": None}),
    Case("2/2 steps fixed", {**TWO, "steps": "fixed"}),
    Case("2/2 pact", {**TWO, "clipping": "pact"}),
    Case("2/2 frozen from 0.5", {**TWO, "freeze": 0.5}),
    Case("2/2 start nearest", {**TWO, "rounding": "nearest"}),
)


def main() -> None:
    """Trains, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data, the trained networks and unfinished work")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ablations", action="store_true", help="what each part of the method is worth, at 2/2 bits")
    parser.add_argument("--only", help="cases whose name holds this, beside float32")
    arguments = parser.parse_args()
    work = arguments.folder / "qat"
    work.mkdir(parents=True, exist_ok=True)
    every = CASES + (ABLATIONS if arguments.ablations else ())
    cases = [case for case in every if case.knobs is None or not arguments.only or arguments.only in case.name]
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        rows = list(measured(arguments, cases, data))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    head = {"device": device(), "threads": arguments.threads, "seeds": arguments.seeds, "epochs": arguments.epochs}
    place = HERE if arguments.epochs == EPOCHS and not arguments.only else work
    content = {**head, "versions": versions, "test_images": len(data.test), "rows": rows}
    write_atomic(place / "qat.json", json.dumps(content, indent=1) + "\n")
    write_atomic(place / "qat.md", table(head, rows))
    print(table(head, rows))


def measured(arguments: argparse.Namespace, cases: list[Case], data: Data) -> Iterator[dict[str, Any]]:
    """A row for each case."""
    models = [trained(arguments.folder, data, seed=seed, threads=arguments.threads) for seed in range(arguments.seeds)]
    float_SN = None
    for case in cases:
        done = [one(case, model, data, seed=seed, arguments=arguments) for seed, model in enumerate(models)]
        right_SN = torch.stack([right_N for right_N, _ in done]).double()
        float_SN = right_SN if float_SN is None else float_SN
        yield {"case": case.name, **drop(float_SN - right_SN), "accuracy": right_SN.mean(1).tolist(), **joined(done)}


def joined(done: list[tuple[Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """Bytes, seconds and epochs' losses of every seed."""
    return {name: [facts[name] for _, facts in done] for name in ("bytes", "seconds", "validation")}


def one(case: Case, model: Model, data: Data, *, seed: int, arguments: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """For each test image whether the case's file tells it right, and its facts; made once."""
    name = f"{case.name.replace('/', '-').replace(' ', '_')}-{seed}-{arguments.epochs:g}"
    place = arguments.folder / "qat" / name
    if not place.with_suffix(".json").is_file():
        began, path = time.perf_counter(), place.with_suffix(".onnx")
        run = Run(seed=seed, threads=arguments.threads, folder=place)
        size = written(case, model, data, run=run, epochs=arguments.epochs, path=path)
        entries = [entry for entry in run.ledger.entries if entry["what"] == "trained an epoch"]
        validation = [entry.get("validation") for entry in entries]
        seconds = time.perf_counter() - began
        save_file({"right": right(path, data)}, place.with_suffix(".safetensors"))
        facts = {"bytes": size, "seconds": round(seconds, 1), "validation": validation}
        write_atomic(place.with_suffix(".json"), json.dumps(facts))
    facts = json.loads(place.with_suffix(".json").read_text())
    right_N = load_file(place.with_suffix(".safetensors"))["right"]
    print(case.name, seed, facts, float(right_N.float().mean()), flush=True)
    return right_N, facts


def written(case: Case, model: Model, data: Data, *, run: Run, epochs: float, path: Path) -> int:
    """Writes the case's file; its bytes."""
    exporter = OnnxExporter()
    if case.knobs is None:
        return exporter.write_float(model, path).size_bytes
    method, graph = Qat(epochs=epochs, **case.knobs), trace(model)
    prepared = (method if case.trains else method.start).prepare(model, graph, data=data, run=run)
    return exporter.write(prepared.realize(prepared.proposals()[0]), path).size_bytes


def right(path: Path, data: Data) -> Tensor:
    """For each test image whether the file tells it right, in ONNX Runtime."""
    session = OnnxExporter().open(path, lighten.Target())
    return torch.cat([session(*batch.inputs).argmax(1) == batch.target for batch in data.test.batches(500)])


def drop(lost_SN: Tensor) -> dict[str, Any]:
    """How far the mean over seeds lies below float32's, with the interval over images."""
    lost_N = lost_SN.mean(0)
    half, mean = 1.96 * float(lost_N.std()) / len(lost_N) ** 0.5, float(lost_N.mean())
    return {"drop": mean, "interval": [mean - half, mean + half]}


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seeds, {head['epochs']:g} epochs, 10,000 test images "
        "through the exported file. Seconds: from the float network to the file, of the median seed.",
        "",
        "| weights/activations | accuracy, mean (each seed) | drop in points (95 %) | bytes | s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        each = ", ".join(f"{100 * value:.2f}" for value in row["accuracy"])
        mean = 100 * sum(row["accuracy"]) / len(row["accuracy"])
        low, high = (100 * end for end in row["interval"])
        seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
        lines.append(
            f"| {row['case']} | {mean:.2f} ({each}) | {100 * row['drop']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['bytes'][0]:,} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
