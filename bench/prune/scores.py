"""Which score, ranking, normalization and aggregate prune best before any training: what the defaults of `prune` rest on.

    python bench/prune/scores.py FOLDER [--seed 0] [--images 3000] [--threads 1]

Cuts the residual CNN of network.py (trained in FOLDER if need be) to 50 % and 30 % of its multiply-accumulates in every
combination, repairs it, and scores images from the end of the training split: calibration takes its beginning, and the test
images choose nothing. Writes scores.json and scores.md beside this script.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from network import load_images, trained
from torch import Tensor, fx

from lighten.analyze.coupling import Coupling, couple
from lighten.analyze.cut import cut, kept_positions
from lighten.analyze.trace import traced
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.gather import device
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.amount import Amount, amount
from lighten.methods.prune.budget import RANKINGS, Choice, Terms
from lighten.methods.prune.prune import structure
from lighten.methods.prune.repair import repair
from lighten.methods.prune.score import SCORES, Evidence, score_groups
from lighten.ops.groups import AGGREGATES, NORMALIZATIONS, normalize

HERE = Path(__file__).parent
SHARES, MULTIPLES = (0.5, 0.3), (1, 8)
SAMPLES, LEAST = 256, 0.1


def main() -> None:
    """Cuts, repairs, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the data and the trained network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=3000, help="from the end of the training split")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_images(arguments.folder)
    bench = Bench(trained(arguments.folder, data, seed=arguments.seed, threads=arguments.threads), data, arguments.images)
    rows = []
    for score, how in itertools.product(SCORES, AGGREGATES):
        rows += list(bench.rows(score, how))
        print(json.dumps(max(rows, key=lambda row: row["mean"])), flush=True)
    facts = {"device": device(), "seed": arguments.seed, "images": arguments.images, "intact": bench.accuracy(bench.intact)}
    write_atomic(HERE / "scores.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    write_atomic(HERE / "scores.md", table(rows))


class Bench:
    """The network that every combination cuts."""

    def __init__(self, model: Model, data: Data, num_images: int) -> None:
        assert data.train is not None
        self.intact: fx.GraphModule = traced(model)
        self.coupling: Coupling = couple(self.intact)
        self.cost: Amount = amount(self.intact, model.example, self.coupling, measure="macs")
        self.data, self.inputs = data, one_batch(data, SAMPLES).inputs
        batches = list(data.train.batches(500))[-num_images // 500 :]
        self.images = [(batch.inputs[0], batch.target) for batch in batches]

    def rows(self, score: str, how: str) -> Iterator[dict[str, Any]]:
        """Accuracy for every ranking and normalization. "uniform" compares nothing between groups: one normalization stands
        for all.
        """
        evidence = Evidence(self.data, SAMPLES, Run())
        found = score_groups(self.intact, self.coupling.groups, score=score, how=how, evidence=evidence)
        for ranking, scale in itertools.product(RANKINGS, NORMALIZATIONS):
            if ranking == "uniform" and scale != "mean":
                continue
            scaled = {name: normalize(score_C, scale) for name, score_C in found.items()}
            cases = {f"{share} by {multiple}": (share, multiple) for share in SHARES for multiple in MULTIPLES}
            hits = {name: self._accuracy(scaled, ranking, *case) for name, case in cases.items()}
            facts = {"score": score, "aggregate": how, "ranking": ranking, "normalize": scale}
            yield {**facts, **hits, "mean": round(mean(hits.values()), 4)}

    def _accuracy(self, scores: Mapping[str, Tensor], ranking: str, share: float, multiple: int) -> float:
        groups = self.coupling.groups
        structures = {group.name: structure(self.intact, group) for group in groups}
        fewest = {group.name: -int(-LEAST * group.size // 1) for group in groups}
        choice = Choice(scores, structures, ranking, fewest, self.cost)
        kept = choice.select(Terms(share * choice.total, multiple)).kept
        smaller = cut(self.intact, self.coupling, kept)
        repair(self.intact, smaller, partial(kept_positions, self.coupling, kept), inputs=self.inputs, seed=0)
        return self.accuracy(smaller)

    @torch.no_grad()
    def accuracy(self, module: fx.GraphModule) -> float:
        """Share of the held-out images that are told right."""
        hits = sum(int((module(x).argmax(1) == target).sum()) for x, target in self.images)
        return round(hits / sum(len(x) for x, _ in self.images), 4)


def table(rows: list[dict[str, Any]]) -> str:
    """The best combination of each score, best first."""
    best = [max((row for row in rows if row["score"] == score), key=lambda row: row["mean"]) for score in SCORES]
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in sorted(best, key=lambda row: -row["mean"])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
