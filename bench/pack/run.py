"""Archives: bytes against zip, xz and zstd of the same ONNX file, and the speed of packing and unpacking on one core.

    apt install dataset-fashion-mnist
    python bench/pack/run.py FOLDER [--file NAME=PATH ...]

Sizes: the residual CNN of bench/prune, trained once (kept in FOLDER), as float32, with 90 % zeros (the smallest weights of all
convolutions and the head, without retraining: sizes are measured here, not accuracy), and both with 8-bit and 4-bit weights.
`--file` adds any other ONNX file. Speed: those files, and one tensor of 8 million weights of each kind. Times are processor
time of one thread, the best of three; packing includes reading the archive back for proof. MB are 10^6 bytes that the weights
would take in float32. Writes results.json and table.md beside this script.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import io
import json
import lzma
import sys
import time
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import as_model, load_images, trained
from torch import nn

from lighten.analyze.trace import trace
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.export.onnx import OnnxExporter
from lighten.export.pack.carve import carve
from lighten.export.pack.kinds import KINDS
from lighten.export.pack.reading import Archive
from lighten.export.pack.tensors import decode, encode, layout_of
from lighten.export.pack.writing import archive_of
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize

HERE = Path(__file__).parent
NUM_WEIGHTS = (2000, 4000)
REPEATS = 3


def main() -> None:
    """Builds, packs, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the trained network")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="another ONNX file")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(1):
        files = networks(arguments.folder)
        files |= {name: Path(path).read_bytes() for name, path in (one.split("=", 1) for one in arguments.file)}
        rows = [measured(name, data) for name, data in files.items()]
    speeds = [speed(*one) for one in tensors().items()]
    versions = {name: importlib.metadata.version(name) for name in ("constriction", "numpy", "lighten")}
    head = {"device": device(), "threads": 1, "versions": versions}
    write_atomic(HERE / "results.json", json.dumps({**head, "files": rows, "tensors": speeds}, indent=1) + "\n")
    write_atomic(HERE / "table.md", table(head, rows, speeds))
    print(table(head, rows, speeds))


def networks(folder: Path) -> dict[str, bytes]:
    """Name to ONNX file."""
    data = load_images(folder)
    model = trained(folder, data, seed=0, threads=1)
    sparse = as_model(pruned(model.module))
    found = {}
    for name, one in (("CNN", model), ("CNN, 90 % zeros", sparse)):
        found[f"{name}, float32"] = exported_float(one, folder)
        for bits in (8, 4):
            found[f"{name}, {bits}-bit weights"] = exported(one, data, bits, folder)
    return found


def pruned(module: nn.Module, ratio: float = 0.9) -> nn.Module:
    """The smallest of all weights set to zero."""
    sparse = copy.deepcopy(module)
    weights = [one.weight for one in sparse.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    limit = torch.cat([weight.detach().abs().flatten() for weight in weights]).quantile(ratio)
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= limit] = 0
    return sparse


def exported_float(model: Model, folder: Path) -> bytes:
    """The file that float weights are measured by."""
    OnnxExporter().write_float(model, folder / "pack.onnx")
    return (folder / "pack.onnx").read_bytes()


def exported(model: Model, data: Data, bits: int, folder: Path) -> bytes:
    """Weights of so many bits, activations of 8."""
    prepared = Quantize(weights=bits).prepare(model, trace(model), data=data, run=Run())
    OnnxExporter().write(prepared.realize(prepared.proposals()[0]), folder / "pack.onnx")
    return (folder / "pack.onnx").read_bytes()


def measured(name: str, data: bytes) -> dict[str, Any]:
    """Bytes by format, and seconds of our own."""
    num_weights = count_weights(data)
    archive, pack_s = timed(lambda: archive_of({"model.onnx": data}))
    _, unpack_s = timed(lambda: unpacked(archive))
    megabytes = 4 * num_weights / 1e6
    sizes = {"onnx": len(data), "zip": zipped(data), "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}
    row = {
        **{"name": name, "weights": num_weights, "bytes": {**sizes, "zstd": zstd(data), "lighten": len(archive)}},
        **{"pack_mb_s": megabytes / pack_s, "unpack_mb_s": megabytes / unpack_s},
    }
    print(row, flush=True)
    return row


def count_weights(data: bytes) -> int:
    """Elements of all tensors; where MatMulNBits holds several codes in a byte, the codes."""
    codes = {}
    for node in onnx.load_from_string(data).graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            codes[node.input[1]] = sizes["N"] * sizes["K"]
    return sum(codes.get(span.name, prod(span.shape)) for span in carve("model.onnx", data))


def unpacked(archive: bytes) -> int:
    """Size of the file, hashes checked."""
    read = Archive(io.BytesIO(archive))
    read.check()
    return sum(len(chunk) for chunk in read.chunks("model.onnx"))


def tensors() -> dict[str, tuple[str, np.ndarray]]:
    """One of each kind, 8 million weights."""
    random = np.random.default_rng(0)
    normal = random.normal(size=NUM_WEIGHTS).astype(np.float32)
    kept = np.abs(normal) > 1.6449  # one in ten
    codes = np.round(normal * 20).clip(-127, 127).astype(np.int8)
    rows = normal * random.uniform(1, 3, (NUM_WEIGHTS[0], 1))
    return {
        "float32": ("float32", normal),
        "float32, 90 % zeros": ("float32", np.where(kept, normal, 0)),
        "float32, 32 values": ("float32", (np.round(normal * 4).clip(-16, 15) / 3).astype(np.float32)),
        "int8": ("int8", codes),
        "int8, 90 % zeros": ("int8", codes * kept),
        "codes of 4 bits, rows of different scale": ("int8", np.round(rows).clip(-7, 7).astype(np.int8)),
    }


def speed(name: str, tensor: tuple[str, np.ndarray]) -> dict[str, Any]:
    """Bits a weight and MB/s."""
    kind = next(kind for kind in KINDS if kind.name == tensor[0])
    data, layout = tensor[1].tobytes(), layout_of(kind, tensor[1].shape)
    part, pack_s = timed(lambda: encode(data, layout))
    found, unpack_s = timed(lambda: decode(part, layout))
    if found != data:
        raise SystemExit(f"{name} does not come back.")
    megabytes = 4 * layout.num_elements / 1e6
    bits = 8 * len(part) / layout.num_elements
    return {"name": name, "bits": bits, "pack_mb_s": megabytes / pack_s, "unpack_mb_s": megabytes / unpack_s}


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the least processor time: what else runs only ever adds to it."""
    seconds, result = [], None
    for _ in range(REPEATS):
        began = time.process_time()
        result = job()
        seconds.append(time.process_time() - began)
    return result, max(min(seconds), 1e-6)


def zipped(data: bytes) -> int:
    """Deflate, level 9."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("model.onnx", data)
    return len(out.getvalue())


def zstd(data: bytes) -> int | None:
    """Level 19; None without the package zstandard."""
    if importlib.util.find_spec("zstandard") is None:
        return None
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(data))


def table(head: dict[str, Any], rows: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; one thread, processor time, best of {REPEATS}; packing with its proof. Ratio: float32 to archive.",
        "",
        "| file | weights | float32 | onnx | zip -9 | zstd -19 | xz -9e | archive | ratio | pack MB/s | unpack MB/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = [row["bytes"][name] for name in ("onnx", "zip", "zstd", "xz", "lighten")]
        told = " | ".join("-" if size is None else f"{size:,}" for size in sizes)
        times = 4 * row["weights"] / row["bytes"]["lighten"]
        speed_text = f"{row['pack_mb_s']:.1f} | {row['unpack_mb_s']:.1f}"
        lines.append(f"| {row['name']} | {row['weights']:,} | {4 * row['weights']:,} | {told} | {times:.1f}x | {speed_text} |")
    lines += ["", "| tensor of 8 million weights | bits a weight | pack MB/s | unpack MB/s |", "|---|---|---|---|"]
    lines += [f"| {row['name']} | {row['bits']:.3f} | {row['pack_mb_s']:.0f} | {row['unpack_mb_s']:.0f} |" for row in speeds]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
