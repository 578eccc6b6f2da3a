"""Widths chosen layer by layer against one width for all, at the same mean: does it beat the uniform drop by half?

    apt install dataset-fashion-mnist
    python bench/quantize/adaptive.py FOLDER [--seeds 3] [--quick]

The residual CNN of bench/prune/network.py, trained on Fashion-MNIST from three seeds (kept in FOLDER); activations of 8 bits.
Uniform: every linear layer and convolution, the first and the last too, at 4, 3 or 2 bits. Adaptive: 8, 4 and 2 bits, what
ONNX stores, at a mean of 4, 3 or 2.5; `of 8 to 2 bits` may take every width, which no ONNX file stores: that row says what
the storage costs. Widths are chosen on 510 training images, without labels; in `first plan` no rivals are tried
(search/rivals.py).
Every file is scored on the 10,000 test images in ONNX Runtime. Drops are means over the seeds with a 95 % interval over test
images, paired; mean KL in millinats says more than 10,000 right or wrong answers do. Writes adaptive.json and adaptive.md; each
seed's results are kept in FOLDER, so that a stopped run goes on.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import load_images, trained

import lighten
from lighten.analyze.trace import trace
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.memory import FolderMemory
from lighten.engine.threads import torch_threads
from lighten.evaluate.metrics import log_softmax
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize
from lighten.search.bits import Limits, fit_widths, harms_of
from lighten.search.sensitivity import answers_to_judge_by, mean_bits, weights_of, with_widths
from lighten.search.trials import Trial, Trials

HERE = Path(__file__).parent
ROUNDINGS = ("nearest", "gptq", "anneal")
UNIFORM = (4, 3, 2)
MEANS = (4, 3, 2.5)
TARGET = lighten.Target(batch=100)


class AnyWidth(OnnxExporter):
    """As if files could hold codes of every width."""

    def weight_widths(self) -> tuple[int, ...]:
        """Every one."""
        return 8, 7, 6, 5, 4, 3, 2


def main() -> None:
    """Chooses, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data, the trained networks and what is done")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, nearest and gptq, a mean of 4 bits; writes nothing here"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    roundings, means = (ROUNDINGS[:2], MEANS[:1]) if arguments.quick else (ROUNDINGS, MEANS)
    num_seeds = 1 if arguments.quick else arguments.seeds
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        runs = [
            one_run(arguments.folder, data, seed=seed, rounding=rounding, means=means)
            for seed in range(num_seeds)
            for rounding in roundings
        ]
    rows = summarized(runs)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "lighten")}
    head = {"device": device(), "threads": arguments.threads, "seeds": num_seeds, "versions": versions}
    if not arguments.quick:
        write_atomic(HERE / "adaptive.json", json.dumps({**head, "rows": rows}, indent=1) + "\n")
        write_atomic(HERE / "adaptive.md", table(head, rows))
    print(table(head, rows))


def one_run(folder: Path, data: Data, *, seed: int, rounding: str, means: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """Every plan of one seed and rounding by name, from FOLDER where it was done."""
    kept = folder / f"adaptive-{seed}-{rounding}.json"
    done: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    model = trained(folder, data, seed=seed, threads=1)
    for name, make in cases(model, data, folder / f"work-{seed}-{rounding}", rounding=rounding, means=means).items():
        if f"{rounding} {name}" not in done:
            began = time.perf_counter()
            done[f"{rounding} {name}"] = {**make(), "seconds": round(time.perf_counter() - began, 1)}
            write_atomic(kept, json.dumps(done))
            shown = {key: value for key, value in done[f"{rounding} {name}"].items() if key != "hits"}
            print(seed, rounding, name, shown, flush=True)
    return done


def cases(model: Model, data: Data, folder: Path, *, rounding: str, means: tuple[float, ...]) -> dict[str, Any]:
    """By name what gives the figures of a plan. The network is prepared at the first of them."""
    made: dict[str, Trials] = {}

    def trials(exporter: OnnxExporter) -> Trials:
        key = type(exporter).__name__
        if key not in made:
            folder.mkdir(exist_ok=True)
            run = Run(memory=FolderMemory(folder / f"memory-{key}", identity={"versions": lighten.__version__}))
            prepared = Quantize(rounding=rounding).prepare(model, trace(model), data=data, run=run)
            made[key] = Trials(model, prepared, data, exporter, TARGET, run, folder)
        return made[key]

    cases: dict[str, Any] = {"float32": lambda: floating(trials(OnnxExporter()))}
    cases |= {f"uniform {bits}": lambda bits=bits: uniform(trials(OnnxExporter()), bits) for bits in UNIFORM}
    for mean in means:
        cases[f"first plan, mean {mean:g}"] = lambda mean=mean: first_plan(trials(OnnxExporter()), mean)
        cases[f"adaptive, mean {mean:g}"] = lambda mean=mean: adaptive(trials(OnnxExporter()), mean)
        cases[f"of 8 to 2 bits, mean {mean:g}"] = lambda mean=mean: adaptive(trials(AnyWidth()), mean)
    return cases


def floating(trials: Trials) -> dict[str, Any]:
    """The network as it was trained."""
    hits = trials.baseline.values.argmax(1) == trials.baseline.targets
    return {"hits": hits.tolist(), "bytes": trials.original.size_bytes, "mean_bits": 32.0, "kl": 0.0}


def uniform(trials: Trials, bits: int) -> dict[str, Any]:
    """One width for all."""
    plan = trials.prepared.proposals()[0]
    names = weights_of(trials.prepared.graph, plan)
    return figures(trials, trials.attempt(plan.with_widths(dict.fromkeys(names, bits)), "uniform"))


def first_plan(trials: Trials, mean: float) -> dict[str, Any]:
    """The widths of least summed harm, no rival tried."""
    plan = trials.prepared.proposals()[0]
    weights = weights_of(trials.prepared.graph, plan)
    harms = harms_of(trials, plan, weights, answers=answers_to_judge_by(trials.prepared, trials.data))
    bits, _ = harms.within(int(mean * sum(weights.values())))
    return {**figures(trials, trials.attempt(with_widths(plan, bits), "first plan")), "widths": bits}


def adaptive(trials: Trials, mean: float) -> dict[str, Any]:
    """What `quantize: {mean_bits: M}` gives."""
    start = trials.attempt(trials.prepared.proposals()[0], "8 bits")
    found = fit_widths(trials, trials.prepared.graph, start, limits=Limits(mean_bits=mean))
    widths = {site: getattr(found.plan[site], "weights", None) for site in weights_of(trials.prepared.graph, found.plan)}
    return {**figures(trials, found), "widths": widths}


def figures(trials: Trials, trial: Trial) -> dict[str, Any]:
    """Of the file on the test images."""
    log_p, log_q = (log_softmax(made.values.astype(np.float64)) for made in (trials.baseline, trial.predictions))
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    hits = trial.predictions.values.argmax(1) == trial.predictions.targets
    bits = mean_bits(trials.prepared.graph, trial.plan)
    return {"hits": hits.tolist(), "bytes": trial.export.size_bytes, "mean_bits": round(bits, 3), "kl": kl}


def summarized(runs: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a plan: means over the seeds, and what it gained on the uniform width of its mean."""
    names = [name for name in dict.fromkeys(name for run in runs for name in run) if not name.endswith("float32")]
    rows = []
    for name in names:
        rounding = name.partition(" ")[0]
        of_name = [run[name] for run in runs if name in run]
        lost = lost_N(runs, name, rounding)
        row = {"plan": name, "accuracy": [float(np.mean(one["hits"])) for one in of_name], **interval("drop", lost)}
        row |= {key: float(np.mean([one[key] for one in of_name])) for key in ("kl", "bytes", "mean_bits", "seconds")}
        row["widths"] = [list(one["widths"].values()) for one in of_name if "widths" in one]
        against = f"{rounding} uniform {name.rpartition(' ')[2]}"
        if "mean" in name and against in names:
            row |= interval("half_of_uniform_minus_this", 0.5 * lost_N(runs, against, rounding) - lost)
            row["kl_of_uniform"] = row["kl"] / float(np.mean([run[against]["kl"] for run in runs if against in run]))
        rows.append(row)
    return rows


def lost_N(runs: list[dict[str, dict[str, Any]]], name: str, rounding: str) -> np.ndarray:
    """For each test image how much more often float32 was right, over the seeds."""
    of_name = [run for run in runs if name in run]
    return np.mean(
        [np.asarray(run[f"{rounding} float32"]["hits"], float) - np.asarray(run[name]["hits"], float) for run in of_name], 0
    )


def interval(key: str, values_N: np.ndarray) -> dict[str, Any]:
    """Mean over images and its 95 % interval."""
    mean, half = float(values_N.mean()), 1.96 * float(values_N.std(ddof=1)) / len(values_N) ** 0.5
    return {key: mean, f"{key}_interval": [mean - half, mean + half]}


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seed(s), 10,000 test images, exported files.",
        "",
        "| plan | drop in points (95 %) | half the uniform drop less this one (95 %) | mean KL, millinats | of uniform's "
        "| bits a weight | bytes | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = (
            f"{100 * row['half_of_uniform_minus_this']:.2f} {ends(row['half_of_uniform_minus_this_interval'])}"
            if ("half_of_uniform_minus_this" in row)
            else ""
        )
        share = f"{row['kl_of_uniform']:.2f}" if "kl_of_uniform" in row else ""
        lines.append(
            f"| {row['plan']} | {100 * row['drop']:.2f} {ends(row['drop_interval'])} | {gain} | {1000 * row['kl']:.2f} "
            f"| {share} | {row['mean_bits']:.2f} | {row['bytes']:,.0f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def ends(bounds: list[float]) -> str:
    """In points."""
    return f"({100 * bounds[0]:.2f} to {100 * bounds[1]:.2f})"


if __name__ == "__main__":
    main()
