"""Calibrated without data: accuracy of the residual CNN in int8 and in 4-bit weights, by what its calibration saw.

    apt install dataset-fashion-mnist
    python bench/quantize/datafree.py FOLDER

The networks of bits.py (kept in FOLDER). Calibrated on 256 inputs: training images, inputs synthesized from the batch norms, or
standard normal noise. Each file is scored on the 10,000 test images in ONNX Runtime; the drop is that of the mean over seeds,
with a 95 % interval over test images, paired. What is finished is kept in FOLDER/datafree.json, so that a run can be
continued. Writes datafree.json and datafree.md beside this script.
"""

import argparse
import importlib.metadata
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bits import right
from network import EXAMPLE, load_images, trained

from lighten.analyze.trace import trace
from lighten.core.data import Data, Split
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.data.iterable import load_iterable
from lighten.data.rows import Rows
from lighten.data.source import calibrated_on
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
COUNT = 256
CASES: dict[str, dict[str, Any]] = {
    "int8": {},
    "W4A8, gptq": {"weights": 4, "rounding": "gptq"},
    "W4A8, anneal": {"weights": 4, "rounding": "anneal"},
    "W8A4": {"activations": 4},
}
SOURCES = ("real", "synthetic", "noise")


def main() -> None:
    """Calibrates, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the trained networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "datafree.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        for seed in range(arguments.seeds):
            model = trained(arguments.folder, data, seed=seed, threads=arguments.threads)
            for name, source in missing(done, seed):
                done[f"{seed} {name} {source}"] = measured(model, data, name, source, seed=seed, folder=arguments.folder)
                write_atomic(kept, json.dumps(done))
                print(seed, name, source, sum(done[f"{seed} {name} {source}"]["right"]) / len(data.test), flush=True)
    rows = [row(done, name, source, arguments.seeds) for name in CASES for source in SOURCES]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    head = {"device": device(), "threads": arguments.threads, "seeds": arguments.seeds, "versions": versions, "count": COUNT}
    write_atomic(HERE / "datafree.json", json.dumps({**head, "test_images": len(data.test), "rows": rows}, indent=1) + "\n")
    write_atomic(HERE / "datafree.md", table(head, rows))
    print(table(head, rows))


def missing(done: dict[str, Any], seed: int) -> list[tuple[str, str]]:
    """What this seed's network has not been measured in yet; the float network first."""
    cases = [("float32", "real"), *((name, source) for source in SOURCES for name in CASES)]
    return [case for case in cases if f"{seed} {case[0]} {case[1]}" not in done]


def measured(model: Model, data: Data, name: str, source: str, *, seed: int, folder: Path) -> dict[str, Any]:
    """For each test image whether the file is right, its bytes, and the seconds that the calibration inputs took to make."""
    path, exporter = folder / "datafree.onnx", OnnxExporter()
    if name == "float32":
        size = exporter.write_float(model, path).size_bytes
        return {"right": right(path, data).long().tolist(), "bytes": size, "seconds": 0.0}
    calibration, seconds = calibration_inputs(model, data, source, seed=seed, folder=folder)
    run = Run(seed=seed)
    prepared = Quantize(samples=COUNT, **CASES[name]).prepare(
        model, trace(model), data=replace(data, train=calibration), run=run
    )
    size = exporter.write(prepared.realize(prepared.proposals()[0]), path).size_bytes
    return {"right": right(path, data).long().tolist(), "bytes": size, "seconds": seconds}


def calibration_inputs(model: Model, data: Data, source: str, *, seed: int, folder: Path) -> tuple[Split, float]:
    """COUNT inputs without labels. The synthetic ones are kept in `folder`, with the seconds they took."""
    if source == "real":
        assert data.train is not None
        return Rows(data.train.rows[:COUNT], data.train.collate, None, data.train.show), 0.0  # type: ignore[attr-defined]
    if source == "noise":
        generator = torch.Generator().manual_seed(seed)
        return load_iterable([torch.randn(COUNT, *EXAMPLE[0].shape[1:], generator=generator)], model=model).test, 0.0
    path = folder / f"synthetic-{seed}.pt"
    if not path.is_file():
        began = time.perf_counter()
        made = calibrated_on(data, f"synthetic:{COUNT}", model=model, seed=seed).calibration
        seconds = round(time.perf_counter() - began, 1)
        torch.save({"x": next(iter(made.batches(COUNT))).inputs[0], "seconds": seconds}, path)
    kept = torch.load(path, weights_only=True)
    return load_iterable([kept["x"]], model=model).test, kept["seconds"]


def row(done: dict[str, Any], name: str, source: str, seeds: int) -> dict[str, Any]:
    """One line of the table, over seeds."""
    hits = {
        case: [torch.tensor(done[f"{seed} {case} {where}"]["right"]) == 1 for seed in range(seeds)]
        for case, where in (("float32", "real"), (name, source))
    }
    facts = [done[f"{seed} {name} {source}"] for seed in range(seeds)]
    lost_N = (torch.stack(hits["float32"]).double() - torch.stack(hits[name]).double()).mean(0)
    half = 1.96 * float(lost_N.std()) / len(lost_N) ** 0.5
    return {
        "case": name,
        "calibration": source,
        "bytes": facts[0]["bytes"],
        "seconds": sum(one["seconds"] for one in facts) / seeds,
        "accuracy": [float(one.double().mean()) for one in hits[name]],
        "drop": float(lost_N.mean()),
        "interval": [float(lost_N.mean()) - half, float(lost_N.mean()) + half],
    }


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seeds, 10,000 test images through the exported file, "
        f"calibrated on {head['count']} inputs; s: to synthesize them.",
        "",
        "| network | calibrated on | accuracy, mean (each seed) | drop in points (95 %) | s |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        each = ", ".join(f"{100 * value:.2f}" for value in one["accuracy"])
        mean = 100 * sum(one["accuracy"]) / len(one["accuracy"])
        low, high = (100 * end for end in one["interval"])
        lines.append(
            f"| {one['case']} | {one['calibration']} | {mean:.2f} ({each}) | {100 * one['drop']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {one['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
