"""Distillation against plain training: the same students, data, epochs and seeds.

    apt install dataset-fashion-mnist
    python bench/distill/run.py FOLDER

The teacher is the residual CNN of bench/prune/network.py, trained on Fashion-MNIST from three seeds (kept in FOLDER). A student
has a third of its parameters: of the same shape with random weights ("fresh"), or cut from the teacher ("cut"). Every row
trains one for the same epochs. A second part recovers a network after half of its channels went; a third times epochs with and
without kept soft labels; a fourth cuts a sentence encoder to half its depth without labels; a fifth makes a keyword network a
fifth as large. Every score is of the exported file in ONNX Runtime, on the test examples. What is done is kept in FOLDER, so
that an interrupted run goes on where it was. Writes results.json and table.md beside this script.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rows import CUT, FRESH, RECOVERY, Row
from scored import hits, remembered, spearman
from sources import digits, encoder_texts, fresh, images, keywords, slower, teacher_of

from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.gather import device
from lighten.methods.distill.distill import Distill
from lighten.methods.distill.student import make_student
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune

HERE = Path(__file__).parent
PARTS = ("students", "recovery", "cache", "encoder", "keywords")
_SHARE = 1 / 3
_RESAMPLES = 2_000


def main() -> None:
    """Trains, scores, writes."""
    arguments = parsed()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": device(), "threads": arguments.threads, "epochs": arguments.epochs}
    results |= {
        "seeds": arguments.seeds,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime")},
    }
    with torch_threads(arguments.threads):
        for part in arguments.parts:
            results[part] = _PARTS[part](arguments)
            write_atomic(arguments.folder / "results.json", json.dumps(results, indent=1) + "\n")
    print(table(results))
    if set(arguments.parts) == set(PARTS) and arguments.limit is None:
        write_atomic(HERE / "results.json", json.dumps(results, indent=1) + "\n")
        write_atomic(HERE / "table.md", table(results))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the networks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=6, help="of every student; a fraction for a trial")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--limit", type=int, help="test examples, for a trial; writes no table")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def students(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Teacher, students alone, students taught."""
    data = images(arguments.folder)
    found = []
    for seed in range(arguments.seeds):
        teacher = teacher_of(arguments.folder, data, seed=seed, threads=arguments.threads)
        found.append(_row(arguments, data, "teacher", seed, lambda: teacher))  # noqa: B023
        cut = make_student({"params": _SHARE}, teacher, data=data, run=Run(seed=seed))
        for start, rows in (("fresh", FRESH), ("cut", CUT)):
            student = fresh(seed) if start == "fresh" else cut
            for row in rows:
                found.append(_trained(arguments, data, row, seed, models=(student, teacher), name=f"{start}, {row.name}"))
    return [entry for entry in found if entry]


def recovery(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Half of the channels go, then equal steps with and without the teacher."""
    data = images(arguments.folder)
    found = []
    for seed in range(arguments.seeds):
        teacher = teacher_of(arguments.folder, data, seed=seed, threads=arguments.threads)
        cut = Prune(ratio=0.5, only_faster=False).rewrite(teacher, data=data, run=Run(seed=seed))
        found.append(_row(arguments, data, "teacher", seed, lambda: teacher))  # noqa: B023
        found.append(_row(arguments, data, "half the channels", seed, lambda: cut))  # noqa: B023
        for row in RECOVERY:
            found.append(_trained(arguments, data, row, seed, models=(cut, teacher), name=f"recovered, {row.name}"))
    return [entry for entry in found if entry]


def cache(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of an epoch (or of the fraction that --epochs says) with the teacher, with its kept answers, and alone; the
    best of three, interleaved. The teacher is the narrowest of the student's shape that takes three times its time, untrained.
    """
    data, student = images(arguments.folder), fresh(0)
    teacher, ratio = slower(student, times=3.0)
    kept = str(arguments.folder / "soft-labels.safetensors")
    knobs = {"epochs": min(1.0, arguments.epochs), "batch_size": 128, "validation": 0, "keep": "last"}
    steps = {
        "live teacher": Distill(**knobs),
        "kept soft labels": Distill(**knobs, cache=kept),
        "no teacher": Finetune(**knobs),
    }
    run = Run(threads=arguments.threads, original=teacher)
    steps["kept soft labels"]._cached(data.train, _teacher(teacher), data, run)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3):
        for name, step in steps.items():
            run = Run(threads=arguments.threads, original=teacher)
            step.rewrite(student, data=data, run=run)
            seconds[name].append(next(e["epoch_seconds"] for e in reversed(run.ledger.entries) if "epoch_seconds" in e))
    return [{"name": name, "seed": 0, "seconds": min(found), "teacher_times": ratio} for name, found in seconds.items()]


def encoder(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM's six layers to three, taught on texts without labels; the rank correlation on word similarity."""
    model, data = encoder_texts()
    found = [{"name": "teacher", "seed": 0, "score": spearman(model, data)}]
    cut = make_student({"depth": 0.5, "samples": 128}, model, data=data, run=Run())
    found.append({"name": "half the layers", "seed": 0, "score": spearman(cut, data)})
    knobs = {"optimizer": "adamw", "lr": 2e-4, "batch_size": 16, "labels": False, "keep": "last", "validation": 0}
    for name, more in (("outputs", {}), ("outputs and relations", {"features": "minilm", "beta": 1.0})):
        step = Distill(epochs=arguments.epochs, **knobs, **more)
        for seed in range(arguments.seeds):
            run = Run(seed=seed, threads=arguments.threads, original=model)
            place = arguments.folder / f"encoder-{name}-{seed}-{arguments.epochs}"
            made = lambda: {"score": spearman(step.rewrite(cut, data=data, run=run), data)}  # noqa: B023, E731
            found.append({"name": name, "seed": seed, **remembered(place, made)})
    return found


def keyword(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Spoken digits: a fifth of the parameters."""
    data = keywords(arguments.folder)
    found = []
    for seed in range(arguments.seeds):
        teacher = digits(arguments.folder, data, seed=seed, threads=arguments.threads)
        cut = make_student({"params": 0.2}, teacher, data=data, run=Run(seed=seed))
        found.append(_row(arguments, data, "keyword teacher", seed, lambda: teacher))  # noqa: B023
        for row in RECOVERY:
            found.append(_trained(arguments, data, row, seed, models=(cut, teacher), name=f"keyword, {row.name}"))
    return [entry for entry in found if entry]


_PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    **{"students": students, "recovery": recovery, "cache": cache},
    **{"encoder": encoder, "keywords": keyword},
}


def _teacher(model: Model) -> Any:
    from lighten.methods.distill.teachers import teacher_of as as_teacher

    return as_teacher("original", model)


def _trained(
    arguments: argparse.Namespace, data: Data, row: Row, seed: int, *, models: tuple[Model, Model], name: str
) -> dict[str, Any]:
    student, teacher = models

    def make() -> Model:
        run = Run(seed=seed, threads=arguments.threads, original=teacher)
        return row.step(arguments.epochs).rewrite(student, data=data, run=run)

    return _row(arguments, data, name, seed, make)


def _row(arguments: argparse.Namespace, data: Data, name: str, seed: int, make: Callable[[], Model]) -> dict[str, Any]:
    """Which test examples the network has right, as 0 and 1; taken from the folder where it was made before."""
    if arguments.only not in name:
        return {}
    words = name.replace(",", "").replace(" ", "-")

    def found() -> dict[str, Any]:
        began = time.perf_counter()
        model = make()
        seconds = round(time.perf_counter() - began, 1)
        params = sum(value.numel() for value in model.module.parameters())
        return {"params": params, "seconds": seconds, "hits": hits(model, data, limit=arguments.limit)}

    entry = remembered(arguments.folder / f"{words}-{seed}-{arguments.epochs:g}-{arguments.limit}", found)
    score = entry["hits"].count("1") / len(entry["hits"])
    print(f"{name}, seed {seed}: {score:.4f} ({entry['params']:,} parameters, {entry['seconds']} s)", flush=True)
    return {"name": name, "seed": seed, "score": score, **entry}


def table(results: dict[str, Any]) -> str:
    """For people: means over seeds; the gain over the same student alone with a 95 % interval over examples, paired."""
    lines = [
        f"{results['device']}; {results['threads']} thread(s); {results['seeds']} seed(s), {results['epochs']:g} epochs each; "
        "accuracy of the exported file on the test examples.",
    ]
    for part, alone in (("students", "alone"), ("recovery", "alone"), ("keywords", "alone")):
        lines += _scores(part, results.get(part, []), alone)
    for part in ("cache", "encoder"):
        for entry in results.get(part, []):
            value = (
                f"{entry['seconds']:.2f} s, teacher {entry['teacher_times']:.2f} x the student's time"
                if "seconds" in entry
                else f"Spearman {entry['score']:.4f}"
            )
            lines.append(f"\n{part}: {entry['name']} (seed {entry['seed']}): {value}")
    return "\n".join(lines) + "\n"


def _scores(part: str, rows: list[dict[str, Any]], alone: str) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(row["name"] for row in rows))
    right = {name: np.array([[int(hit) for hit in row["hits"]] for row in rows if row["name"] == name]) for name in names}
    params = {row["name"]: row["params"] for row in rows}
    lines = ["", f"| {part} | parameters | accuracy | more than alone | of the gap to the teacher |", "|---|---|---|---|---|"]
    teacher = next((name for name in names if name.endswith("teacher")), None)
    for name in names:
        plain = f"{name.partition(',')[0]}, {alone}"
        said = share = ""
        if plain in right and plain != name and "," in name:
            gain, low, high = _gain(right[name], right[plain])
            said = f"{gain:+.4f} ({low:+.4f} to {high:+.4f})"
        if teacher and said:
            gap = right[teacher].mean() - right[plain].mean()
            share = f"{(right[name].mean() - right[plain].mean()) / gap:.0%}" if gap > 0 else ""
        lines.append(f"| {name} | {params[name]:,} | {right[name].mean():.4f} | {said} | {share} |")
    return lines


def _gain(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Of the mean over seeds; the interval resamples test examples and, within them, seeds."""
    difference_SN = one.astype(float) - other
    random = np.random.default_rng(0)
    num_seeds, num_examples = difference_SN.shape
    means = [
        difference_SN[random.integers(num_seeds, size=num_seeds)][:, random.integers(num_examples, size=num_examples)].mean()
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference_SN.mean()), float(low), float(high)


if __name__ == "__main__":
    main()
