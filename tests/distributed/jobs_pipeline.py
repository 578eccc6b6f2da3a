"""What each rank does in test_pipeline.py."""

from typing import Any

import torch
from networks_of_ranks import Inverted, Language, built, drawn, model_of
from torch import Tensor, nn

from lighten.analyze.stages import stages
from lighten.core.data import Batch
from lighten.core.distributed import Distributed
from lighten.core.model import Model
from lighten.engine.losses import cross_entropy, next_token
from lighten.engine.mesh import mesh_of
from lighten.engine.pipeline import Pipeline
from lighten.engine.shard import Options, clip_gradients, shard, whole

SIZE = 8


def text() -> tuple[Model, Any]:
    """Tied embeddings: the first and the last stage share a tensor."""
    return model_of(built(Language), torch.zeros(SIZE, 6, dtype=torch.int64)), next_token


def images() -> tuple[Model, Any]:
    """Without the blocks of a list."""
    return model_of(built(Inverted), drawn(SIZE, 3, 8, 8)), cross_entropy


CASES = {"text": text, "images": images}


def batch_of(case: str, seed: int, rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if case == "text":
        ids = torch.randint(0, 24, (SIZE, 6), generator=generator)[rows]
        return Batch((ids,), None, tuple(range(len(ids))))
    values, target = drawn(SIZE, 3, 8, 8, seed=seed)[rows], torch.randint(0, 5, (SIZE,), generator=generator)[rows]
    return Batch((values,), target, tuple(range(len(values))))


def alone(case: str, steps: int = 2) -> dict[str, Tensor]:
    """By one process, on the network itself."""
    model, loss = CASES[case]()
    module: nn.Module = model.module
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(module, batch_of(case, step))
        value.backward()
        norms.append(clip_gradients(module.parameters()))
        optimizer.step()
        losses.append(float(value.detach()))
    tensors = {name: value.detach() for name, value in module.named_parameters()}
    return {**tensors, "losses": torch.tensor(losses), "norms": torch.tensor(norms)}


def behind(rank: int, case: str, microbatches: int, distributed: Distributed, steps: int = 2) -> dict[str, Any]:
    """By several, each with a stage."""
    model, loss = CASES[case]()
    mesh = mesh_of(distributed)
    pipeline = Pipeline(stages(model, distributed.pipeline), mesh["pipeline"], loss, microbatches=microbatches)
    shard(pipeline.module, mesh, Options(shard=distributed.shard == "full"))
    optimizer = torch.optim.SGD(pipeline.module.parameters(), 0.05, momentum=0.9)
    share = SIZE // distributed.data
    first = mesh["data"].get_local_rank() * share
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(
            pipeline.gradient(batch_of(case, step, slice(first, first + share)), ("ids_bt" if case == "text" else "x",))
        )
        pipeline.reduce()
        optimizer.step()
    tensors = {name: whole(value).numpy() for name, value in pipeline.tensors().items()}
    return {**tensors, "losses": losses, "held": sum(value.numel() for value in pipeline.module.parameters())}
