"""What the ranks of tests/distributed/test_training.py do, and one process too."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from networks import Tensors
from torch import Tensor, nn
from torch import distributed as dist

from lighten.core.data import Batch
from lighten.core.distributed import Distributed
from lighten.core.errors import LightenError, RankError
from lighten.core.run import Ranks, Run
from lighten.engine.holdout import loss_on
from lighten.engine.losses import cross_entropy
from lighten.engine.ranks import Group, joined
from lighten.engine.schedule import Training
from lighten.engine.train import Extras, train

Result = dict[str, Any]
SGD = Training(epochs=3, batch_size=32, lr=0.05)


def points(count: int, seed: int = 1) -> Tensors:
    """Three classes; the last batch of an epoch is left out."""
    generator = torch.Generator().manual_seed(seed)
    target_B = torch.randint(3, (count,), generator=generator)
    x_BI = 0.3 * torch.randn(count, 6, generator=generator)
    x_BI[torch.arange(count), target_B] += 1
    return Tensors((x_BI,), target_B)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


class Halves(nn.Module):
    """An example goes through one of two halves, so that a rank may not reach every weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 3)
        for part, is_its in zip(self.parts, (x[:, 5] > 0, x[:, 5] <= 0), strict=True):
            if is_its.any():
                y[is_its] = part(x[is_its])
        return y


TRAININGS: Mapping[str, tuple[Callable[[], nn.Module], Training, Distributed]] = {
    "sgd": (dense, SGD, Distributed()),
    "clipped and accumulated": (dense, replace(SGD, clip_norm=0.1, accumulate=2), Distributed()),
    "adamw, averaged": (dense, replace(SGD, optimizer="adamw", lr=0.003, ema=0.9), Distributed()),
    "uneven shares": (dense, replace(SGD, batch_size=31), Distributed()),
    "synced norms": (normed, SGD, Distributed()),
    "uneven synced norms": (normed, replace(SGD, batch_size=31), Distributed()),
    "averaged in every step": (dense, SGD, Distributed(average_every=1)),
    "norms of their own": (normed, SGD, Distributed(sync_norm=False)),
    "parts not reached": (Halves, replace(SGD, batch_size=4), Distributed()),
    "averaged now and then": (dense, SGD, Distributed(average_every=4)),
    "diloco": (dense, replace(SGD, optimizer="adamw"), Distributed(average_every=4, outer_lr=0.7, outer_momentum=0.9)),
}


def trainings() -> dict[str, Result]:
    """Every one of TRAININGS on the ranks there are, by name: losses, validations, weights, bytes sent."""
    with joined(None) as (ranks, _):
        return {name: _one(ranks, *of) for name, of in TRAININGS.items()}


def of_four(rank: int) -> dict[str, Result]:
    """The same for on_ranks."""
    del rank
    return trainings()


def _one(ranks: Ranks, network: Callable[[], nn.Module], training: Training, distributed: Distributed) -> Result:
    module, before = network(), ranks.sent_bytes
    run = Run(ranks=ranks, distributed=replace(distributed, data=ranks.world))
    validate = loss_on(points(41, seed=2), cross_entropy, batch_size=16, run=run)
    done = train(module, points(93), loss=cross_entropy, training=training, run=run, extras=Extras(validate=validate))
    return {
        "losses": [epoch.loss for epoch in done.history[1:]],
        "validations": [epoch.validation for epoch in done.history],
        "weights": weights(module),
        "sent_bytes": ranks.sent_bytes - before,
        "num_steps": done.num_steps,
    }


def weights(module: nn.Module) -> dict[str, list[float]]:
    return {name: value.double().flatten().tolist() for name, value in module.state_dict().items()}


def own_data(rank: int) -> Result:
    """Each rank has other examples, and another number of them."""
    split = points(93 - 60 * rank, seed=1 + rank)
    with joined(None) as (ranks, _):
        run = Run(ranks=ranks, distributed=Distributed(data=ranks.world, own_data=True, average_every=2))
        module = dense()
        done = train(module, split, loss=cross_entropy, training=SGD, run=run)
        return {"weights": weights(module), "num_steps": done.num_steps, "loss": done.history[-1].loss}


def everything(rank: int) -> Result:
    """All that two ranks are asked, in one go: to start them takes longer."""
    failed = {f"{how} {every}": failing(rank, how, every) for how in ("nan", "raises") for every in (None, 4)}
    found = {"trainings": trainings(), "own data": own_data(rank), "failing": failed, "differing": differing(rank)}
    return {**found, "exchanges": exchanges(rank), "hanging": hanging(rank, 1.0)}


def failing(rank: int, how: str, every: int | None) -> Result:
    """What a training says in which rank 1 is at fault in its third step, and the network's weights."""
    calls = 0

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        value = cross_entropy(module, batch)
        if rank != 1 or calls != 3:
            return value
        if how == "raises":
            raise ValueError("no such image")
        return value * torch.nan

    module = dense()
    with joined(None) as (ranks, _):
        run = Run(ranks=ranks, distributed=Distributed(data=2, average_every=every))
        try:
            train(module, points(93), loss=loss, training=SGD, run=run)
        except LightenError as error:
            return {"kind": type(error).__name__, "text": str(error), "weights": weights(module)}
    return {}


def differing(rank: int) -> str:
    """What a training says whose networks differ."""
    module = dense()
    with torch.no_grad():
        module[0].weight[0, 0] += rank
    with joined(None) as (ranks, _):
        try:
            train(module, points(93), loss=cross_entropy, training=SGD, run=Run(ranks=ranks))
        except LightenError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def hanging(rank: int, seconds: float) -> str:
    """What rank 0 says of the other, which does not come."""
    group = Group(dist.new_group(timeout=timedelta(seconds=seconds)))
    group.gather(rank)
    if rank:
        time.sleep(2 * seconds)
        return ""
    try:
        group.gather(rank)
    except RankError as error:
        return f"{error.rank} {error.is_lost} {error}"
    return ""


def exchanges(rank: int) -> Result:
    """What two ranks get from each other, in every form."""
    with joined(None) as (ranks, _):
        tensors = [torch.full((3,), 1.0 + rank), torch.full((2, 2), 10 * rank), torch.zeros(0), torch.tensor(0.5)]
        ranks.add(tensors)
        before = ranks.sent_bytes
        ranks.add([torch.zeros(1000)])
        counted = ranks.sent_bytes - before
        named = {"a": torch.arange(3) + rank, "b": torch.tensor(rank == 0), "c": torch.zeros(0, 2)}
        shared = {name: value.tolist() for name, value in ranks.share_tensors(named).items()}
        told = ranks.share({"from": rank}, is_patient=True), ranks.gather(["é", rank, None])
        return {"added": [value.tolist() for value in tensors], "shared": shared, "told": told, "bytes": counted}
