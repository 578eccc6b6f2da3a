"""Fewer bits on the exported file: accuracy, bytes and seconds by widths and solver.

    apt install dataset-fashion-mnist
    python bench/quantize/bits.py FOLDER

The residual CNN of bench/prune/network.py, trained on Fashion-MNIST from three seeds (kept in FOLDER). Each file is scored on
the 10,000 test images in ONNX Runtime; the drop is that of the mean over seeds, with a 95 % interval over test images, paired.
Calibration sees 512 training images without labels. Writes bits.json and bits.md beside this script.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import load_images, trained
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
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
SOLVERS = ("nearest", "gptq", "adaround", "anneal")
WIDTHS = ((4, 8), (3, 8), (2, 8), (4, 4), (4, 3), (3, 3), (4, 2), (2, 2))
"""Bits of weights and of activations; first and last layer keep 8, and so do residual additions."""
Case = tuple[int, int, str]
FLOAT: Case = (32, 32, "float32")
CASES: tuple[Case, ...] = ((8, 8, "nearest"), *((*widths, solver) for widths in WIDTHS for solver in SOLVERS))


def main() -> None:
    """Quantizes, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the trained networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    exporter, path = OnnxExporter(), arguments.folder / "bits.onnx"
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        hits: dict[Case, list[Tensor]] = {}
        facts: dict[Case, dict[str, Any]] = {}
        for seed in range(arguments.seeds):
            model = trained(arguments.folder, data, seed=seed, threads=arguments.threads)
            original = exporter.write_float(model, path)
            hits.setdefault(FLOAT, []).append(right(path, data))
            facts[FLOAT] = {"bytes": original.size_bytes, "seconds": 0.0}
            for case in CASES:
                facts[case] = quantized(model, data, case, path=path)
                hits.setdefault(case, []).append(right(path, data))
                print(seed, case, facts[case], float(hits[case][-1].float().mean()), flush=True)
    rows = [
        {"weights": case[0], "activations": case[1], "rounding": case[2], **facts[case], **drop(hits, case)} for case in facts
    ]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    head = {"device": device(), "threads": arguments.threads, "seeds": arguments.seeds, "versions": versions}
    write_atomic(HERE / "bits.json", json.dumps({**head, "test_images": len(data.test), "rows": rows}, indent=1) + "\n")
    write_atomic(HERE / "bits.md", table(head, rows))
    print(table(head, rows))


def quantized(model: Model, data: Data, case: Case, *, path: Path) -> dict[str, Any]:
    """Writes the file; its bytes, and the seconds from the float graph to the codes."""
    graph, began = trace(model), time.perf_counter()
    bits, activations, rounding = case
    prepared = Quantize(weights=bits, activations=activations, rounding=rounding).prepare(model, graph, data=data, run=Run())
    compressed = prepared.realize(prepared.proposals()[0])
    seconds = time.perf_counter() - began
    return {"bytes": OnnxExporter().write(compressed, path).size_bytes, "seconds": round(seconds, 2)}


def right(path: Path, data: Data) -> Tensor:
    """For each test image whether the file tells it right, in ONNX Runtime."""
    session = OnnxExporter().open(path, lighten.Target())
    return torch.cat([session(*batch.inputs).argmax(1) == batch.target for batch in data.test.batches(500)])


def drop(hits: dict[Case, list[Tensor]], case: Case) -> dict[str, Any]:
    """Accuracy by seed, and how far its mean lies below float32's with the interval over images."""
    lost_SN = torch.stack(hits[FLOAT]).double() - torch.stack(hits[case]).double()
    lost_N = lost_SN.mean(0)
    half = 1.96 * float(lost_N.std()) / len(lost_N) ** 0.5
    mean = float(lost_N.mean())
    return {
        "accuracy": [float(one.double().mean()) for one in hits[case]],
        "drop": mean,
        "interval": [mean - half, mean + half],
    }


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seeds, 10,000 test images through the exported file.",
        "",
        "| weights | activations | rounding | accuracy, mean (each seed) | drop in points (95 %) | bytes | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = ", ".join(f"{100 * value:.2f}" for value in row["accuracy"])
        mean = 100 * sum(row["accuracy"]) / len(row["accuracy"])
        low, high = (100 * end for end in row["interval"])
        lines.append(
            f"| {row['weights']} | {row['activations']} | {row['rounding']} | {mean:.2f} ({each}) "
            f"| {100 * row['drop']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['bytes']:,} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
