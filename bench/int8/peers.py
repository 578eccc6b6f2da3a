"""Other tools on the same network and data. Runs in an environment of its own (README.md) and does not import lighten.

    python peers.py FOLDER [--threads N] [--repeats K] [--only PEER]    quantize with every peer -> peers.json, outputs
    python peers.py FOLDER --time EXTRA.onnx ...                        latency of every file -> latency.json

FOLDER holds original.onnx (float32, dynamic batch), calibration.npz and test.npz: arrays named like the inputs of the ONNX
file, examples along dimension 0. Token inputs are padded to the longest, and `lengths` cuts each example to its own length.

Every peer quantizes in a fresh process, held to N cores, so that none gains from what another has loaded and a crash stays
its own. Examples go in one at a time. The tools are in peer_tools.py, the clock is
in peer_latency.py.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peer_latency import OtherLoad, interleave, summarize
from peer_tools import PEERS, Examples, open_onnxruntime, open_peer

PACKAGES = ("onnxruntime", "nncf", "openvino", "onnx", "numpy")


def quantize_all(folder: Path, threads: int, *, repeats: int, only: list[str] | None) -> dict[str, Any]:
    """Every peer in a process of its own; writes peers.json."""
    path = folder / "peers.json"
    entries = json.loads(path.read_text())["peers"] if only and path.is_file() else {}
    for name in only or PEERS:
        entries[name] = _in_process(name, folder, threads, repeats)
        print(f"{name}: {entries[name]}", flush=True)
        facts = {**surroundings(), "threads": threads, "repeats": repeats, "peers": entries}
        write_json(path, facts)
    return entries


def _in_process(name: str, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    entry = folder / f"{name}.entry.json"
    for stale in (entry, PEERS[name].path(folder, name), folder / f"{name}.bin", folder / f"{name}.outputs.npz"):
        stale.unlink(missing_ok=True)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # NNCF_CI switches NNCF's telemetry off and nothing else (nncf/telemetry/wrapper.py)
    environment = {**os.environ, **counts, "NNCF_CI": "1"}
    command = [sys.executable, __file__, str(folder), "--threads", str(threads), "--repeats", str(repeats), "--peer", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    if not entry.is_file():
        return {"error": f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:500]}"}
    facts: dict[str, Any] = json.loads(entry.read_text())
    entry.unlink()
    return facts


def quantize_one(name: str, folder: Path, threads: int, *, repeats: int) -> dict[str, Any]:
    """One peer, in this process: quantize, run the file over the test examples, say what it took."""
    peer, source = PEERS[name], folder / "original.onnx"
    hold_to_cores(threads)
    import onnx

    if peer.needs and all(node.op_type != peer.needs for node in onnx.load(str(source)).graph.node):
        return {"skipped": f"the network has no {peer.needs}"}
    produced, examples = peer.path(folder, name), Examples(folder / "calibration.npz")
    _import_all()
    try:
        taken = [peer.make(source, produced, examples) for _ in range(repeats)]
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        precision = record_outputs(name, folder, threads)
    except Exception as error:  # a peer's failure, of whatever type, is a result: it goes into the table
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    files = [path for path in (produced, produced.with_suffix(".bin")) if path.is_file() and path.stem == name]
    facts: dict[str, Any] = {"runtime": peer.runtime, "bytes": sum(path.stat().st_size for path in files)} | precision
    if not peer.is_reference:
        facts["seconds"] = float(np.median([seconds.alone for seconds in taken]))
    facts["seconds_whole"] = float(np.median([seconds.whole for seconds in taken]))
    return facts | {"num_calibration": len(examples), "peak_memory_bytes": peak_bytes}


def record_outputs(name: str, folder: Path, threads: int) -> dict[str, str]:
    """Runs the peer's file over test.npz one example at a time, into <peer>.outputs.npz, arrays named like the outputs."""
    runner = open_peer(name, folder, threads)
    columns: dict[str, list[np.ndarray]] = {}
    for feed in Examples(folder / "test.npz"):
        for output, value in runner(feed).items():
            columns.setdefault(output, []).append(np.array(value))
    joined: dict[str, Any] = {output: np.concatenate(rows) for output, rows in columns.items()}
    np.savez(folder / f"{name}.outputs.npz", **joined)
    if PEERS[name].runtime != "openvino":
        return {}
    return {"float_precision": PEERS[name].precision or _default_precision()}


def _default_precision() -> str:
    """What OpenVINO computes float operators in when nothing is said."""
    import openvino

    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def hold_to_cores(threads: int) -> None:
    """Holds this process to N cores and ONNX Runtime's sessions to N threads, those that a tool opens itself as well.

    A session that sets no number of threads takes one a core and pins each to it, past the limit of the process.
    """
    import onnxruntime

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        """The usual options, with the number of threads set."""

        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    onnxruntime.SessionOptions = Options


def _import_all() -> None:
    """Loads the tools before the clock starts: imports are paid once, whatever is quantized."""
    for module in ("nncf.onnx", "nncf.openvino", "onnxruntime.quantization.shape_inference"):
        importlib.import_module(module)


def time_all(folder: Path, extra: list[Path], thread_counts: list[int]) -> dict[str, Any]:
    """Milliseconds of one example through every file, call by call in one process; writes latency.json.

    The original is there twice: what the two differ by is what the measurement cannot tell apart.
    """
    feed = Examples(folder / "test.npz").longest
    entries = json.loads((folder / "peers.json").read_text())["peers"] if (folder / "peers.json").is_file() else {}
    shapes = {name: list(value.shape) for name, value in feed.items()}
    facts: dict[str, Any] = {**surroundings(), "shapes": shapes, "cores_used_by_others": {}, "threads": {}}
    for threads in thread_counts:
        runners = {name: open_onnxruntime(folder / "original.onnx", threads) for name in ("original", "original_again")}
        runners |= {name: open_peer(name, folder, threads) for name, entry in entries.items() if "bytes" in entry}
        runners |= {path.stem: open_onnxruntime(path, threads) for path in extra}
        clock = OtherLoad()
        facts["threads"][str(threads)] = summarize(interleave(runners, feed))
        facts["cores_used_by_others"][str(threads)] = clock.cores()
        write_json(folder / "latency.json", facts)
    return facts


def surroundings() -> dict[str, Any]:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    machine = {"processor": next(named, platform.processor()), "cores": os.cpu_count(), "python": platform.python_version()}
    return {"machine": machine, "versions": {name: importlib.metadata.version(name) for name in PACKAGES}}


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Under a temporary name first, so that no reader sees half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(partial, path)


def main() -> None:
    """Quantizes, or times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds original.onnx, calibration.npz and test.npz")
    parser.add_argument("--threads", type=int, help="default: 1 to quantize, 1 and 2 to time")
    parser.add_argument("--repeats", type=int, default=1, help="quantize so many times; the median of the seconds counts")
    parser.add_argument("--only", choices=PEERS, action="append", help="this peer alone; may be given again")
    parser.add_argument("--time", type=Path, nargs="*", metavar="EXTRA", help="time all files, and these ONNX files with them")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)  # the process that quantize_all starts
    chosen = parser.parse_args()
    if chosen.time is not None:
        print(json.dumps(time_all(chosen.folder, chosen.time, [chosen.threads] if chosen.threads else [1, 2]), indent=1))
    elif chosen.peer:
        entry = quantize_one(chosen.peer, chosen.folder, chosen.threads or 1, repeats=chosen.repeats)
        write_json(chosen.folder / f"{chosen.peer}.entry.json", entry)
    else:
        quantize_all(chosen.folder, chosen.threads or 1, repeats=chosen.repeats, only=chosen.only)


if __name__ == "__main__":
    main()
