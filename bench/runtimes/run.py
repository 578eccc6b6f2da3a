"""float32 and int8 in every runtime that is installed, all files of a network interleaved in one process.

    python bench/runtimes/run.py FOLDER [--peers-python PEERS/bin/python] [--only keywords] [--threads 1 2] [--rounds 100]

The plan is one and the same for every runtime, as far as it executes it (`lighten targets`); nothing is searched and no layer
put back. With --peers-python (see bench/int8/README.md) NNCF's file runs in OpenVINO and onnxruntime's own in ONNX Runtime,
on the same calibration examples. Times are of one example, for text the longest of the first 64. Each file's parity is held
against the torch graph that it was written from. Writes results.json and table.md beside this script, network by network: a
run that was cut off goes on where it stopped; --again measures anew.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS

import lighten
from lighten import catalog
from lighten.analyze.trace import trace
from lighten.core.errors import LightenError
from lighten.core.export import Exporter
from lighten.core.method import Compressed
from lighten.engine.files import write_atomic
from lighten.evaluate.latency import time_interleaved
from lighten.evaluate.parity import parity
from lighten.evaluate.predictions import Pass
from lighten.export.executed import computes_in_float
from lighten.export.single import with_longest
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize
from lighten.search.executable import executable
from lighten.search.trials import representative_batch
from lighten.targets import version

HERE = Path(__file__).parent
PEERS = {"nncf_openvino": "openvino", "onnxruntime_static": "onnxruntime"}
sys.path.insert(0, str(HERE.parents[1]))


def main() -> None:
    """Measures what is not in results.json yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the files")
    parser.add_argument("--peers-python", help="the Python of the peers' environment; without it lighten runs alone")
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--again", action="store_true", help="measure what is there already anew")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    runtimes = [name for name in catalog.names("exporters") if version(name) is not None]
    results |= {"machine": device(), "versions": {name: version(name) for name in runtimes}}
    for name in arguments.only or NETWORKS:
        threads = [
            one for one in arguments.threads if arguments.again or str(one) not in results.get(name, {}).get("times", {})
        ]
        if threads:
            folder = arguments.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            bench = Bench(name, folder, runtimes, peers=arguments.peers_python)
            results.setdefault(name, {})["files"] = bench.facts
            for one in threads:
                results[name].setdefault("times", {})[str(one)] = bench.time(one, rounds=arguments.rounds)
                write_atomic(path, json.dumps(results, indent=1) + "\n")
        write_atomic(HERE / "table.md", table(results))
    print(table(results))


class Bench:
    """One network's files. facts: by file's name its runtime, bytes, operators and parity, or `refused` with the reason."""

    def __init__(self, name: str, folder: Path, runtimes: list[str], *, peers: str | None) -> None:
        torch.set_num_threads(1)
        model, self.data = NETWORKS[name](folder)
        self.model = with_longest(model, self.data)
        self.batch = representative_batch(self.data, lighten.Target())
        self.folder, self.facts, self.exporters = folder, {}, {}
        self.exporters: dict[str, Exporter] = {one: catalog.exporter(one) for one in runtimes}
        graph = trace(self.model)
        prepared = Quantize().prepare(self.model, graph, data=self.data, run=lighten.Run())
        for runtime, exporter in self.exporters.items():
            self._write(runtime, "float32", lambda path, exporter=exporter: exporter.write_float(self.model, path), None)
            for plan in prepared.proposals():
                asked = executable(plan, graph.sites, prepared, in_float=partial(computes_in_float, runtime))
                kind = "int8 dynamic" if any(getattr(spec, "dynamic", False) for spec in asked.values()) else "int8"
                compressed = prepared.realize(asked)
                self._write(runtime, kind, partial(exporter.write, compressed), compressed)
        if peers is not None:
            self._peers(peers)

    def _write(self, runtime: str, form: str, write: Callable[[Path], Any], compressed: Compressed | None) -> None:
        exporter, name = self.exporters[runtime], f"{runtime} {form}"
        path = self.folder / f"{name.replace(' ', '_')}{exporter.suffix}"
        try:
            export = write(path)
            session = exporter.open(path, lighten.Target(runtime))
            reference = self.model.module if compressed is None else compressed.graph
            same = parity(reference, session, self.data.test, how=Pass(self.data.task, 1, limit=8))
            facts = {"path": str(path), "bytes": export.size_bytes, "operators": exporter.operators(path)}
            self.facts[name] = {"runtime": runtime, **facts, "sqnr_db": same.to_dict()["sqnr_db"]}
        except LightenError as error:
            self.facts[name] = {"runtime": runtime, "refused": error.message}

    def _peers(self, python: str) -> None:
        """Other tools' files, from our float32 ONNX file."""
        int8 = _module(HERE.parent / "int8" / "run.py")
        int8.save_inputs(self.model, self.data, self.folder)
        (self.folder / "original.onnx").write_bytes((self.folder / "onnxruntime_float32.onnx").read_bytes())
        only = [word for peer in PEERS for word in ("--only", peer)]
        script = str(HERE.parent / "int8" / "peers.py")
        subprocess.run([python, script, str(self.folder), "--threads", "1", *only], check=True, stdout=subprocess.DEVNULL)
        for peer, runtime in PEERS.items():
            path = self.folder / f"{peer}{self.exporters[runtime].suffix}"
            if path.is_file():
                files = [one for one in (path, path.with_suffix(".bin")) if one.is_file()]
                facts = {
                    "bytes": sum(one.stat().st_size for one in files),
                    "operators": self.exporters[runtime].operators(path),
                }
                self.facts[f"{runtime}, by {peer}"] = {"runtime": runtime, "path": str(path), **facts}

    def time(self, threads: int, *, rounds: int) -> dict[str, Any]:
        """Of every file, interleaved. fastest_float: the one that ratios are over."""
        torch.set_num_threads(threads)
        calls = {}
        for name, facts in self.facts.items():
            if "path" in facts:
                target = lighten.Target(facts["runtime"], threads=threads)
                session = self.exporters[facts["runtime"]].open(Path(facts["path"]), target)
                calls[name] = lambda session=session: session(*self.batch.inputs)
        began = time.perf_counter()
        timing = time_interleaved(calls, rounds=rounds, max_seconds=300)
        floats = [name for name in calls if name.endswith("float32")]
        fastest = min(floats, key=lambda one: timing.latencies[one].p50_ms)
        files = {
            name: {
                "p50_ms": latency.p50_ms,
                "p95_ms": latency.p95_ms,
                "count": latency.count,
                "of_fastest_float": list(timing.ratio_interval(name, fastest)),
                "of_peer": self._of_peer(timing, name),
            }
            for name, latency in timing.latencies.items()
        }
        seconds = time.perf_counter() - began
        return {"fastest_float": fastest, "noise_ratio": timing.noise_ratio, "seconds": seconds, "files": files}

    def _of_peer(self, timing: Any, name: str) -> list[float] | None:
        """Our int8 file's time over the peer's in the same runtime."""
        peer = next((f"{runtime}, by {peer}" for peer, runtime in PEERS.items() if name == f"{runtime} int8"), None)
        return list(timing.ratio_interval(name, peer)) if peer in timing.latencies else None


def table(results: dict[str, Any]) -> str:
    """Markdown, a section a network and number of threads."""
    lines = [f"{results['machine']}; {results['versions']}\n"]
    for name in NETWORKS:
        for threads, timed in results.get(name, {}).get("times", {}).items():
            lines += [f"### {name}, {threads} thread(s)\n", _head()]
            lines += [_row(file, facts, timed) for file, facts in results[name]["files"].items()]
            lines.append(f"\nThe fastest float32: {timed['fastest_float']}; null control {timed['noise_ratio']:.3f}.\n")
    return "\n".join(lines)


def _head() -> str:
    columns = (
        "file",
        "bytes",
        "parity dB",
        "p50 ms",
        "p95 ms",
        "times as fast as the fastest float32",
        "as the peer's int8",
        "products",
    )
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _row(file: str, facts: dict[str, Any], timed: dict[str, Any]) -> str:
    if file not in timed["files"]:
        return f"| {file} | {facts.get('refused', 'not timed')} | | | | | | |"
    measured, sqnr = timed["files"][file], facts.get("sqnr_db")
    products = ("Conv", "MatMul", "Gemm", "Linear", "FullyConnected")
    counts = ", ".join(f"{name} {count}" for name, count in facts["operators"].items() if name.startswith(products))
    cells = (
        f"{facts['bytes']:,}",
        "" if sqnr is None else f"{sqnr:.0f}",
        f"{measured['p50_ms']:.3f}",
        f"{measured['p95_ms']:.3f}",
        _speedup(measured["of_fastest_float"]),
        _speedup(measured["of_peer"]),
        counts,
    )
    return f"| {file} | {' | '.join(cells)} |"


def _speedup(interval: list[float] | None) -> str:
    return "" if interval is None else f"{1 / interval[1]:.2f} to {1 / interval[0]:.2f}"


def _module(path: Path) -> Any:
    """A script of another folder; its own neighbours are found beside it."""
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
