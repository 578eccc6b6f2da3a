"""Weights in few bits on real files: bytes, bits per weight, score, and milliseconds against float32 and int8 dynamic.

    python bench/quantize/weights_only.py FOLDER [--only mlp] [--cases 4-bit,nf4] [--threads 1]

Two networks: the sentence encoder of examples/minilm.py (its carriers are fetched as examples/carriers.py says), scored by
Spearman's rank correlation on WordSim353 and by the cosine between its embeddings and float32's; and a tower of twelve linear
layers of 1024 x 1024 with random weights, as heavy in weights as a language model's block and as easy to time, scored by the
cosine of its outputs. Every file is run in ONNX Runtime; times are medians of calls interleaved with float32's. Rows that are
in weights_only.json already are not computed again. Writes weights_only.json and weights_only.md beside this script.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import lighten
from examples import minilm
from lighten.analyze.trace import trace
from lighten.core.data import Batch, Data, Example
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.evaluate.collect import collect
from lighten.evaluate.latency import time_interleaved
from lighten.evaluate.metrics import score
from lighten.evaluate.predictions import Pass
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
DEPTH, WIDTH = 12, 1024
FLOAT = "float32"
CASES: dict[str, dict[str, Any]] = {
    "int8 dynamic": {"activations": "dynamic"},
    "8-bit, groups of 64": {"weights": 8, "group": 64},
    "4-bit, rows, nearest": {"weights": 4, "activations": "float", "rounding": "nearest"},
    "4-bit, groups of 64, nearest": {"weights": 4, "group": 64, "rounding": "nearest"},
    "4-bit, groups of 32, nearest": {"weights": 4, "group": 32, "rounding": "nearest"},
    "4-bit, groups of 64, zero points, nearest": {"weights": 4, "group": 64, "symmetric": False, "rounding": "nearest"},
    "4-bit, groups of 64, zero points, hqq": {"weights": 4, "group": 64, "rounding": "hqq"},
    "4-bit, groups of 64, gptq": {"weights": 4, "group": 64, "rounding": "gptq"},
    "4-bit, groups of 64, zero points, gptq": {"weights": 4, "group": 64, "symmetric": False, "rounding": "gptq"},
    "4-bit, groups of 64, adaround": {"weights": 4, "group": 64, "rounding": "adaround"},
    "4-bit, groups of 64, anneal": {"weights": 4, "group": 64, "rounding": "anneal"},
    "3-bit, groups of 64, zero points, nearest": {"weights": 3, "group": 64, "symmetric": False, "rounding": "nearest"},
    "3-bit, groups of 64, zero points, hqq": {"weights": 3, "group": 64, "rounding": "hqq"},
    "3-bit, groups of 64, zero points, gptq": {"weights": 3, "group": 64, "symmetric": False, "rounding": "gptq"},
    "2-bit, groups of 64, zero points, gptq": {"weights": 2, "group": 64, "symmetric": False, "rounding": "gptq"},
    "fp16": {"format": "fp16"},
    "fp8 e4m3, rows": {"format": "e4m3"},
    "nf4, groups of 64": {"format": "nf4", "group": 64},
    "MX fp4": {"format": "mx-e2m1"},
    "codebook of 4 bits": {"codebook": 4},
}


@dataclass(frozen=True)
class Subject:
    """model, data: what is compressed. timed: inputs by name. measure: a session's score and its outputs on test examples."""

    model: Model
    data: Data
    timed: dict[str, tuple[Tensor, ...]]
    measure: Callable[[Any], tuple[float | None, Tensor]]


class Tower(nn.Module):
    """Twelve residual layers of a linear map and a ReLU, each on the normalized sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(nn.functional.layer_norm(x, (WIDTH,))))
        return x


@dataclass(frozen=True)
class Vectors:
    """A split of rows."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, limit: int | None = None) -> Any:
        """In order."""
        end = min(len(self), limit or len(self))
        for start in range(0, end, size):
            stop = min(start + size, end)
            yield Batch((self.rows[start:stop],), None, tuple(range(start, stop)))

    def describe(self, index: int) -> Example:
        """By number."""
        return Example(f"row {index}")


def main() -> None:
    """Quantizes, exports, scores, times, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the files")
    parser.add_argument("--only", choices=("minilm", "mlp"), help="one of the networks")
    parser.add_argument("--cases", help="those whose name holds one of these words, separated by commas; all by default")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    words = arguments.cases.split(",") if arguments.cases else [""]
    chosen = [name for name in CASES if any(word in name for word in words)]
    rows = read_rows()
    subjects = {"minilm": encoder, "mlp": tower}
    with torch_threads(arguments.threads):
        for name, make in subjects.items() if arguments.only is None else [(arguments.only, subjects[arguments.only])]:
            known = {row["case"] for row in rows if (row["network"], row["threads"]) == (name, arguments.threads)}
            if missing := [case for case in chosen if case not in known]:
                for row in measured(make(), name, missing, folder=arguments.folder, threads=arguments.threads):
                    rows.append(row)
                    write(rows)
    print(table(rows))


def measured(subject: Subject, name: str, cases: list[str], *, folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each case, as it is done."""
    exporter, target = OnnxExporter(), lighten.Target(threads=threads)
    original = exporter.write_float(subject.model, folder / f"{name}.onnx")
    base = exporter.open(original.path, target)
    own, wanted = subject.measure(base)
    graph = trace(subject.model)
    for case in cases:
        began = time.perf_counter()
        prepared = Quantize(**CASES[case]).prepare(subject.model, graph, data=subject.data, run=Run())
        compressed = prepared.realize(prepared.proposals()[0])
        seconds = time.perf_counter() - began
        export = exporter.write(compressed, folder / f"{name}-{cases.index(case)}.onnx")
        session = exporter.open(export.path, target)
        found, made = subject.measure(session)
        row = {
            "network": name,
            "threads": threads,
            "case": case,
            "bytes": export.size_bytes,
            "float_bytes": original.size_bytes,
            "bits": mean_bits(compressed.sites),
            "score": found,
            "float_score": own,
            "cosine": float(nn.functional.cosine_similarity(made, wanted, dim=-1).mean()),
            "seconds": round(seconds, 1),
            "computed": len(export.computed),
            "ms": {size: times(base, session, inputs) for size, inputs in subject.timed.items()},
        }
        print(json.dumps(row), flush=True)
        yield row


def mean_bits(facts: dict[str, dict[str, float]]) -> float | None:
    """Over all weights that are stored in few bits, scales and tables counted; None where the method does not say."""
    known = [
        (one["stored_bytes"], 8 * one["stored_bytes"] / one["bits_per_weight"])
        for one in facts.values()
        if "stored_bytes" in one
    ]
    return 8 * sum(stored for stored, _ in known) / sum(count for _, count in known) if known else None


def times(base: Any, session: Any, inputs: tuple[Tensor, ...]) -> list[float]:
    """Milliseconds a call of float32 and of the file, and the ratio's 95 % interval."""
    timing = time_interleaved({"original": partial(base, *inputs), "file": partial(session, *inputs)}, rounds=40)
    return [*(timing.latencies[name].p50_ms for name in ("original", "file")), *timing.ratio_interval("file", "original")]


def encoder() -> Subject:
    """MiniLM and its word pairs."""
    model, data = minilm.build(), minilm.similarity()

    def measure(session: Any) -> tuple[float, Tensor]:
        found = collect(session, data.test, how=Pass(data.task), what="scoring")
        made = torch.cat([session(*batch.inputs) for batch in data.test.batches(32)])
        return score("spearman", found.values, found.targets), made.reshape(len(made), -1)

    generator = torch.Generator().manual_seed(0)
    ids = {size: torch.randint(1000, 20_000, (1, size), generator=generator) for size in (32, 128)}
    return Subject(model, data, {f"{size} tokens": (one, torch.ones_like(one)) for size, one in ids.items()}, measure)


def tower() -> Subject:
    """Random weights and inputs that are alike in neighbouring columns, as activations are."""
    torch.manual_seed(0)
    rows, test = (
        nn.functional.avg_pool1d(torch.randn(count, 1, WIDTH + 7), 8, stride=1)[:, 0] * 8**0.5 for count in (512, 128)
    )
    model = Model(Tower().eval(), (test[:2],), Origin("module", "tower", dynamic=({0: "batch"},)))
    data = Data("vectors", "regression", "mse", Vectors(test), Vectors(rows), digest="vectors")
    return Subject(model, data, {f"{size} rows": (test[:size],) for size in (1, 32)}, lambda session: (None, session(test)))


def read_rows() -> list[dict[str, Any]]:
    """Those that an earlier run wrote."""
    path = HERE / "weights_only.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return found


def write(rows: list[dict[str, Any]]) -> None:
    """Both files."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    write_atomic(
        HERE / "weights_only.json", json.dumps({"device": device(), "versions": versions, "rows": rows}, indent=1) + "\n"
    )
    write_atomic(HERE / "weights_only.md", f"{device()}; median of 40 calls interleaved with float32's.\n\n{table(rows)}")


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = []
    for network, threads in dict.fromkeys((row["network"], row["threads"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["threads"]) == (network, threads)]
        first = mine[0]
        scored = "" if first["float_score"] is None else f", Spearman {first['float_score']:.4f}"
        sizes = list(first["ms"])
        lines += [
            f"**{network}**, {threads} thread(s); float32: {first['float_bytes']:,} bytes{scored}",
            "",
            "| weights | bits a weight | bytes | Spearman | cosine | computed with | "
            + " | ".join(f"time, {size} (95 %)" for size in sizes)
            + " | s |",
            "|---" * (7 + len(sizes)) + "|",
            *(line(row, sizes) for row in mine),
            "",
        ]
    return "\n".join(lines)


def line(row: dict[str, Any], sizes: list[str]) -> str:
    """One row; a time is a ratio to float32's."""
    bits = "" if row["bits"] is None else f"{row['bits']:.2f}"
    found = "" if row["score"] is None else f"{row['score']:.4f}"
    ratios = [
        f"{row['ms'][size][1] / row['ms'][size][0]:.2f} ({row['ms'][size][2]:.2f} to {row['ms'][size][3]:.2f})"
        for size in sizes
    ]
    parts = [row["case"], bits, f"{row['bytes']:,}", found, f"{row['cosine']:.4f}", f"{row['computed']} weights", *ratios]
    return f"| {' | '.join(parts)} | {row['seconds']} |"


if __name__ == "__main__":
    main()
