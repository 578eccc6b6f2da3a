"""Zeros one-shot, in training and from a sparse start, on Fashion-MNIST: accuracy of the exported file, seconds, zipped bytes.

    apt install dataset-fashion-mnist
    python bench/sparsify/run.py FOLDER [--seeds 3] [--epochs 3] [--only cubic]

The residual CNN of bench/prune/network.py, trained for six epochs from each seed (kept in FOLDER). Every case is scored on the
10,000 test images in ONNX Runtime; the drop is that of the mean over seeds, with a 95 % interval over test images, paired.
Ratios are of the weights of all layers but the first convolution, for torch.nn.utils.prune too, which has the same training.
Finished cases are kept in FOLDER and not run again. Writes results.json and table.md beside this script when none is left out.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import ResidualNetwork, as_model, load_images, trained
from torch import Tensor, nn
from torch.nn.utils import prune

import lighten
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.engine.threads import torch_threads
from lighten.engine.train import train
from lighten.evaluate.zeros import zipped_bytes
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.sparsify.layers import find_layers
from lighten.methods.sparsify.sparsify import Sparsify
from lighten.methods.training import own_graph

HERE = Path(__file__).parent
START_EPOCHS = 6  # of the dense network, and of one that is sparse from the start
TUNING = {"batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}
FROM_START = {"batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}
DENSE, TORCH = "dense", "torch.nn.utils.prune, global magnitude"
ONE_SHOT: dict[str, dict[str, Any]] = {
    "one-shot, default (obs, sensitivity, repair)": {},
    "one-shot, wanda": {"score": "wanda"},
    "one-shot, sparsegpt": {"score": "sparsegpt"},
    "one-shot, magnitude, repaired": {"score": "magnitude"},
    "one-shot, magnitude": {"score": "magnitude", "repair": False},
}
TRAINED: dict[str, dict[str, Any]] = {
    "one-shot, default, then training": {},
    **{name: {"schedule": name} for name in ("cubic", "movement", "l1", "l0", "variational")},
}


def cases(epochs: float) -> dict[str, dict[str, Any] | None]:
    """By name, the knobs of Sparsify; None where another tool or none is at work."""
    tuned = {"epochs": epochs, "training": TUNING}
    # as many as the dense network had, where --epochs is what it is by default
    from_start = {"epochs": START_EPOCHS * epochs / 3, "training": FROM_START}
    found: dict[str, dict[str, Any] | None] = {DENSE: None}
    for ratio in (0.5, 0.8):
        found |= {f"{ratio:.0%} {name}": {"ratio": ratio, **knobs} for name, knobs in ONE_SHOT.items()}
    found |= {f"{pattern} one-shot": {"pattern": pattern, "dense": ["stem", "head"]} for pattern in ("2:4", "4x1")}
    for ratio in (0.8, 0.9):
        found[f"{ratio:.0%} {TORCH}"] = None
        found |= {f"{ratio:.0%} {name}": {"ratio": ratio, **tuned, **knobs} for name, knobs in TRAINED.items()}
    # three cuts with a training behind each, in as many epochs
    found["90% rewind_lr"] = {"ratio": 0.9, "schedule": "rewind_lr", **tuned, "epochs": epochs / 3}
    return found | {f"90% {name}, sparse start": {"ratio": 0.9, "schedule": name, **from_start} for name in ("rigl", "set")}


def main() -> None:
    """Makes sparse, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data, the trained networks and finished cases")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3, help="of training, where there is one")
    parser.add_argument("--images", type=int, default=None, help="test images; fewer for a trial")
    parser.add_argument("--only", default="", help="cases whose name holds this, and the dense network")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: knobs for name, knobs in cases(arguments.epochs).items() if name == DENSE or arguments.only in name}
    with torch_threads(arguments.threads):
        data, found = load_images(arguments.folder), {}
        for seed in range(arguments.seeds):
            for name, knobs in chosen.items():
                key = f"{name}; seed {seed}; {arguments.epochs:g} epochs; {arguments.images or 'all'} images"
                found[seed, name] = kept(arguments.folder, key, lambda: one(name, knobs, data, seed, arguments))  # noqa: B023
                print(seed, name, {part: value for part, value in found[seed, name].items() if part != "hits"}, flush=True)
    rows = [row(name, found, seeds=arguments.seeds) for name in chosen]
    head = {
        "device": device(),
        "threads": arguments.threads,
        "seeds": arguments.seeds,
        "epochs": arguments.epochs,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")},
        "test_images": arguments.images or len(data.test),
    }
    print(table(head, rows))
    if not arguments.only and arguments.images is None:
        write_atomic(HERE / "results.json", json.dumps({**head, "rows": rows}, indent=1) + "\n")
        write_atomic(HERE / "table.md", table(head, rows))


def kept(folder: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run found for this case, else what is made now."""
    path = folder / "sparsify-cases.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if key not in known:
        known[key] = make()
        write_atomic(path, json.dumps(known) + "\n")
    found: dict[str, Any] = known[key]
    return found


def one(name: str, knobs: Mapping[str, Any] | None, data: Data, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case: hits by test image as a text of 0 and 1, share of zeros, zipped bytes, seconds."""
    folder, run = arguments.folder, Run(seed=seed, threads=arguments.threads)
    if "sparse start" in name:
        torch.manual_seed(seed)
        model = as_model(ResidualNetwork())
    else:
        model = trained(folder, data, seed=seed, threads=arguments.threads, epochs=START_EPOCHS)
    began = time.perf_counter()
    if TORCH in name:
        model = by_torch(model, data, run, ratio=float(name.split("%", maxsplit=1)[0]) / 100, epochs=arguments.epochs)
    elif knobs is not None:
        model = Sparsify(**knobs).rewrite(model, data=data, run=run)
    seconds, path = time.perf_counter() - began, folder / "sparsify.onnx"
    OnnxExporter().write_float(model, path)
    hits = right(path, data, arguments.images)
    return {
        "hits": "".join(map(str, hits.int().tolist())),
        "zeros": share(model),
        "zipped_bytes": zipped_bytes(path),
        "seconds": round(seconds, 1),
    }


def by_torch(model: Model, data: Data, run: Run, *, ratio: float, epochs: float) -> Model:
    """Global magnitude at once, then training with torch's masks."""
    module = model.module
    names = [layer.site for layer in find_layers(own_graph(model), dense=None, pins=())]
    parts = [(module.get_submodule(name), "weight") for name in names]
    prune.global_unstructured(parts, pruning_method=prune.L1Unstructured, amount=ratio)
    assert data.train is not None
    training = Training(**TUNING, epochs=epochs, keep="last")
    train(module, data.train, loss=loss_for(data.task), training=training, run=run)
    for part, name in parts:
        prune.remove(part, name)
    return as_model(module)


def share(model: Model) -> float:
    """Of zeros among the weights of all layers but the first convolution."""
    tensors: Mapping[str, nn.Parameter] = dict(model.module.named_parameters())
    names = [layer.name for layer in find_layers(own_graph(model), dense=["stem"], pins=())]
    total = sum(tensors[name].numel() for name in names)
    return 1 - sum(int(tensors[name].count_nonzero()) for name in names) / total


def right(path: Path, data: Data, limit: int | None) -> Tensor:
    """For each test image whether the file tells it right, in ONNX Runtime."""
    session = OnnxExporter().open(path, lighten.Target())
    return torch.cat([session(*batch.inputs).argmax(1) == batch.target for batch in data.test.batches(500, limit)])


def row(name: str, found: Mapping[tuple[int, str], dict[str, Any]], *, seeds: int) -> dict[str, Any]:
    """Accuracy by seed, and how far its mean lies below that of the dense network with the interval over images."""
    hits_SN, dense_SN = (
        torch.tensor([[int(hit) for hit in found[seed, case]["hits"]] for seed in range(seeds)]).double()
        for case in (name, DENSE)
    )
    lost_N = (dense_SN - hits_SN).mean(0)
    mean, half = float(lost_N.mean()), 1.96 * float(lost_N.std()) / len(lost_N) ** 0.5
    rest = {key: [found[seed, name][key] for seed in range(seeds)] for key in ("zeros", "zipped_bytes", "seconds")}
    return {"case": name, "accuracy": hits_SN.mean(1).tolist(), "drop": mean, "interval": [mean - half, mean + half], **rest}


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seed(s), {head['test_images']:,} test images through "
        f"the exported file; {head['epochs']:g} epochs of training where there is one, twice as many from a sparse start.",
        "",
        "| case | accuracy, mean (each seed) | drop in points (95 %) | zeros | zipped bytes | s |",
        "|---|---|---|---|---|---|",
    ]
    for one_row in rows:
        each = ", ".join(f"{100 * value:.2f}" for value in one_row["accuracy"])
        accuracy, zeros, zipped, seconds = (
            sum(one_row[key]) / len(one_row[key]) for key in ("accuracy", "zeros", "zipped_bytes", "seconds")
        )
        low, high = (100 * end for end in one_row["interval"])
        lines.append(
            f"| {one_row['case']} | {100 * accuracy:.2f} ({each}) | {100 * one_row['drop']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {zeros:.3f} | {zipped:,.0f} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
