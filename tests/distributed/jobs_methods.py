"""What the ranks of tests/distributed/test_methods.py do, and one process too."""

import torch
from jobs_training import weights
from small import data, model

from lighten.analyze.trace import trace
from lighten.core.run import Run
from lighten.engine.ranks import joined
from lighten.methods.distill.distill import Distill
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune
from lighten.methods.quantize.qat import Qat
from lighten.methods.sparsify.sparsify import Sparsify
from lighten.read.module import read_module

KNOBS = {"epochs": 2, "batch_size": 32, "lr": 0.02}
REWRITES = {
    "finetune": Finetune(**KNOBS),
    "distill": Distill(**KNOBS),
    "sparsify": Sparsify(ratio=0.6, schedule="cubic", epochs=2, training={"batch_size": 32, "lr": 0.02}),
    "prune": Prune(macs=0.6, schedule="iterative", rounds=2, training={"epochs": 1, "batch_size": 32, "lr": 0.02}),
}


def methods(rank: int = 0) -> dict[str, dict[str, list[float]]]:
    """Weights after every method that trains."""
    del rank
    torch.set_num_threads(1)
    network, example = model()
    made, given = read_module(network, example=example), data()
    results = {}
    with joined(None) as (ranks, distributed):
        run = Run(ranks=ranks, distributed=distributed)
        for name, step in REWRITES.items():
            results[name] = weights(step.rewrite(made, data=given, run=run).module)
        # at a higher rate a code at the edge between two values falls to the other side on two ranks
        prepared = Qat(**{**KNOBS, "lr": 0.001}).prepare(made, trace(made), data=given, run=run)
        results["qat"] = weights(prepared.graph.module)
    return results
