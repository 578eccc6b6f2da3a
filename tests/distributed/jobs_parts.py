"""What each rank does in test_parts.py: the one training loop on parameters in parts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jobs_methods import KNOBS, REWRITES
from jobs_training import SGD, dense, normed, points, weights
from networks_of_ranks import model_of
from small import data, model
from torch import Tensor, nn

from lighten.analyze.trace import trace, traced
from lighten.core.distributed import Distributed
from lighten.core.errors import LightenError
from lighten.core.run import Run
from lighten.engine.holdout import loss_on
from lighten.engine.losses import cross_entropy
from lighten.engine.ranks import joined
from lighten.engine.train import Extras, train
from lighten.engine.zeros import keep_zeros
from lighten.methods.quantize.qat import Qat
from lighten.read.module import read_module


def sparse() -> nn.Module:
    module = dense()
    with torch.no_grad():
        module[0].weight[:, ::2] = 0
    return module


def graph() -> nn.Module:
    return traced(model_of(sparse(), torch.zeros(4, 6)))


TRAININGS = {
    "sgd, zeros kept": (sparse, replace(SGD, clip_norm=0.1)),
    "graph, adamw, averaged": (graph, replace(SGD, optimizer="adamw", lr=0.003, ema=0.9, accumulate=2)),
    "uneven shares, norms": (normed, replace(SGD, batch_size=31)),
}


def everything(rank: int, folder: str) -> dict[str, Any]:
    """Every training, one that is resumed, and a penalty."""
    del rank
    with joined(None) as (ranks, _):
        run = Run(ranks=ranks, distributed=Distributed(data=ranks.world, shard="full" if ranks.world > 1 else "none"))
        found = {name: one(run, *of) for name, of in TRAININGS.items()}
        make, training = TRAININGS["graph, adamw, averaged"]
        # three epochs are half of six, but for the schedule: the same training, stopped and taken up again
        found["resumed"] = resumed(run, make(), training, Path(folder))
        found["penalty"] = one(run, dense, SGD, penalty=decay)
    return found


def decay(module: nn.Module, progress: float) -> Tensor:
    """A term of the weights that grows."""
    return progress * sum((value.square().sum() for value in module.parameters()), torch.zeros(()))


def one(run: Run, make: Any, training: Any, penalty: Any = None) -> dict[str, Any]:
    module = make()
    validate = loss_on(points(41, seed=2), cross_entropy, batch_size=16, run=run)
    again = keep_zeros(module, [name for name, _ in module.named_parameters()])
    extras = Extras(validate=validate, after_step=again, penalty=penalty)
    done = train(module, points(93), loss=cross_entropy, training=training, run=run, extras=extras)
    return {
        "losses": [epoch.loss for epoch in done.history[1:]],
        "validations": [epoch.validation for epoch in done.history],
        "weights": weights(module),
        "is_own": done.module is module,
    }


def resumed(run: Run, module: nn.Module, training: Any, folder: Path) -> dict[str, Any]:
    class Stop(Exception):
        pass

    def stop(step: int, progress: float) -> None:
        if progress > 0.6:
            raise Stop

    try:
        train(module, points(93), loss=cross_entropy, training=training, run=run, extras=Extras(folder=folder, after_step=stop))
    except Stop:
        is_whole = all(value.numel() for value in module.parameters())
    # from the beginning, as a new process would
    again = graph()
    done = train(again, points(93), loss=cross_entropy, training=training, run=run, extras=Extras(folder=folder))
    plain = graph()
    train(plain, points(93), loss=cross_entropy, training=training, run=run)
    return {"weights": weights(done.module), "plain": weights(plain), "is_whole": is_whole, "notes": len(done.history)}


def methods(rank: int) -> dict[str, Any]:
    """Weights after every method that trains, in parts; the error where one cannot."""
    torch.set_num_threads(1)
    network, example = model()
    made, given, found = read_module(network, example=example), data(), dict[str, Any]()
    del rank
    with joined(Distributed(data=2, shard="full")) as (ranks, distributed):
        run = Run(ranks=ranks, distributed=distributed)
        for name, step in REWRITES.items():
            found[name] = outcome(lambda step=step: step.rewrite(made, data=given, run=run).module)
        found["qat"] = outcome(lambda: Qat(**KNOBS).prepare(made, trace(made), data=given, run=run).graph.module)
    return found


def outcome(work: Callable[[], nn.Module]) -> Any:
    try:
        return weights(work())
    except (LightenError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
