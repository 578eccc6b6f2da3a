"""Which estimate says best how much a layer suffers from few bits, and which leads to the best widths?

    apt install dataset-fashion-mnist
    python bench/quantize/sensitivity.py FOLDER [--seeds 3] [--quick]

The residual CNN of bench/prune/network.py (kept in FOLDER). The truth: each of the ten layers alone at 4 and at 2 bits, its
codes as the file would have them (`--rounding`), in torch, mean KL and accuracy on 5,000 test images. Estimates, from training
images behind those that codes are solved on: by trial (510 images), rounded to the nearest or solved: output noise, KL, loss
rise; from derivatives: along the change and by the diagonal of the Fisher information (510 images, one draw each), by the
trace of the Hessian (HAWQ-V2; 510 images, 8 draws a batch of 64). Spearman's rank correlation over the layers at each width and
over all 20; and the mean KL on the test images of the widths that each estimate leads to at means of 4, 3 and 2.5 bits
(8, 4 and 2 bits; all layers solved). Writes sensitivity.json and sensitivity.md; each seed is kept in FOLDER.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "prune"))
from network import load_images, trained

from lighten.analyze.trace import trace
from lighten.core.data import Data
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.gather import device
from lighten.methods.quantize.integer import Quantize
from lighten.search.curvature import fisher_rises, hessian_traces, rounding_errors
from lighten.search.harms import Harms
from lighten.search.sensitivity import (
    Answers,
    Effect,
    Trying,
    answers_to_judge_by,
    effects_alone,
    judged_on,
    weights_of,
    with_widths,
)

HERE = Path(__file__).parent
WIDTHS = (8, 4, 2)
FEW = (4, 2)
MEANS = (4, 3, 2.5)
NUM_TEST = 5_000
Table = dict[str, list[float]]
"""By site, at each of WIDTHS."""


def main() -> None:
    """Estimates, tries, ranks, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data, the trained networks and what is done")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounding", default="gptq", help="how codes of few bits are found (default: gptq)")
    parser.add_argument("--quick", action="store_true", help="one seed; writes nothing here")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    num_seeds = 1 if arguments.quick else arguments.seeds
    with torch_threads(arguments.threads):
        data = load_images(arguments.folder)
        runs = [one_run(arguments.folder, data, seed=seed, rounding=arguments.rounding) for seed in range(num_seeds)]
    rows = summarized(runs)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "lighten")}
    head = {"device": device(), "threads": arguments.threads, "seeds": num_seeds, "rounding": arguments.rounding}
    if not arguments.quick:
        content = {**head, "versions": versions, "rows": rows, "runs": runs}
        write_atomic(HERE / "sensitivity.json", json.dumps(content, indent=1) + "\n")
        write_atomic(HERE / "sensitivity.md", table(head, rows))
    print(table(head, rows))


def one_run(folder: Path, data: Data, *, seed: int, rounding: str) -> dict[str, Any]:
    """{"estimates": by name {"table", "seconds", "kl" by mean}, "truth_kl": table, "truth_drop": table}; kept in FOLDER."""
    kept = folder / f"sensitivity-{seed}-{rounding}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    model = trained(folder, data, seed=seed, threads=1)
    prepared = Quantize(rounding=rounding).prepare(model, trace(model), data=data, run=Run())
    plan = prepared.proposals()[0]
    weights = weights_of(prepared.graph, plan)
    clean = prepared.realize(Plan(), repair=False).graph
    test = Answers.of(clean, data.test.batches(500, NUM_TEST), task=data.task)
    estimates = estimated(prepared, plan, data)
    for one in estimates.values():
        one["kl"] = {}
        for mean in MEANS:
            bits, _ = Harms(weights, WIDTHS, one["table"]).within(int(mean * sum(weights.values())))
            one["kl"][f"{mean:g}"] = test.effect(prepared.realize(with_widths(plan, bits)).graph).kl
    truth = effects_alone(prepared, plan, weights, answers=test, how=Trying(WIDTHS, repair=True), run=Run())
    found = {"estimates": estimates, "truth_kl": read(truth, "kl"), "truth_rise": read(truth, "loss_rise")}
    write_atomic(kept, json.dumps(found))
    return found


def estimated(prepared: Any, plan: Plan, data: Data) -> dict[str, dict[str, Any]]:
    """Every estimate by name: {"table": by site at each width, "seconds"}."""
    weights = weights_of(prepared.graph, plan)
    judges = judged_on(data.calibration, most=510)
    answers = answers_to_judge_by(prepared, data)
    made: dict[str, dict[str, Any]] = {}

    def measured(make: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        return make(), round(time.perf_counter() - began, 2)

    for name, repair in (("rounded to nearest", False), ("solved", True)):
        how = Trying(WIDTHS, repair=repair)
        run = Run()
        effects, seconds = measured(
            lambda how=how, run=run: effects_alone(prepared, plan, weights, answers=answers, how=how, run=run)
        )
        for key, said in (("noise", "output noise"), ("kl", "KL"), ("loss_rise", "loss rise")):
            made[f"{said}, {name}"] = {"table": read(effects, key), "seconds": seconds}
    changes, _ = measured(lambda: rounding_errors(prepared.graph, weights, widths=WIDTHS))
    rises, seconds = measured(lambda: fisher_rises(prepared.graph, changes, batches=judges.batches(1), task=data.task, seed=0))
    for key, said in (("along", "Fisher along the change"), ("diagonal", "Fisher diagonal")):
        found = {site: [getattr(rise, key) for rise in of_site] for site, of_site in rises.items()}
        made[said] = {"table": found, "seconds": seconds}
    traces, seconds = measured(lambda: hessian_traces(prepared.graph, weights, batches=judges.batches(64), num_draws=8, seed=0))
    by_trace = {site: [traces[site] * float(step.square().sum()) for step in changes[site]] for site in weights}
    made["Hessian trace (HAWQ-V2)"] = {"table": by_trace, "seconds": seconds}
    squares = {site: [float(step.square().mean()) for step in changes[site]] for site in weights}
    made["weight's squared error"] = {"table": squares, "seconds": 0.0}
    return made


def read(effects: dict[str, list[Effect]], key: str) -> Table:
    """One figure of each effect."""
    return {site: [getattr(effect, key) for effect in of_site] for site, of_site in effects.items()}


def summarized(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an estimate: means over the seeds."""
    rows = []
    for name in runs[0]["estimates"]:
        row: dict[str, Any] = {"estimate": name}
        for bits in FEW:
            row[f"spearman_{bits}"] = mean_spearman(runs, name, [WIDTHS.index(bits)])
        row["spearman_all"] = mean_spearman(runs, name, [WIDTHS.index(bits) for bits in FEW])
        row["kl"] = {
            mean: float(np.mean([run["estimates"][name]["kl"][mean] for run in runs])) for mean in map("{:g}".format, MEANS)
        }
        row["seconds"] = float(np.mean([run["estimates"][name]["seconds"] for run in runs]))
        rows.append(row)
    return rows


def mean_spearman(runs: list[dict[str, Any]], name: str, places: list[int]) -> float:
    """Of an estimate and the true KL over layers and widths, mean over the seeds."""
    found = []
    for run in runs:
        pairs = [
            (run["estimates"][name]["table"][site][place], harms[place])
            for site, harms in run["truth_kl"].items()
            for place in places
        ]
        values, truth = (np.asarray(column, float) for column in zip(*pairs, strict=True))
        found.append(float(np.corrcoef(ranks_N(values), ranks_N(truth))[0, 1]))
    return float(np.mean(found))


def ranks_N(values_N: np.ndarray) -> np.ndarray:
    """From 0."""
    return values_N.argsort().argsort()


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{head['device']}; {head['threads']} thread(s); {head['seeds']} seed(s); codes by {head['rounding']}.",
        "",
        "| estimate | rank correlation with the true KL: 4 bits | 2 bits | all | KL in millinats of the widths it leads to, "
        "mean of 4 bits | 3 | 2.5 | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kl = " | ".join(f"{1000 * row['kl'][f'{mean:g}']:.2f}" for mean in MEANS)
        lines.append(
            f"| {row['estimate']} | {row['spearman_4']:.2f} | {row['spearman_2']:.2f} | {row['spearman_all']:.2f} | {kl} "
            f"| {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
