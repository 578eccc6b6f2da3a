"""What each rank does in test_tensor_parallel.py."""

from typing import Any

import torch
from networks_of_ranks import Block, Inverted, built, drawn, model_of
from torch import Tensor, nn

from lighten.analyze.tensor_plan import tensor_plan
from lighten.core.distributed import Distributed
from lighten.engine.mesh import mesh_of
from lighten.engine.shard import Options, clip_gradients, shard, whole

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (4, 6)),
    "attention": (lambda: nn.Sequential(Block(), Block()), (4, 5, 16)),
    "convolutions": (Inverted, (4, 3, 8, 8)),
}


def trained(case: str, steps: int = 3) -> dict[str, Tensor]:
    """By one process."""
    make, shape = CASES[case]
    return _train(built(make), shape, slice(None), steps)


def shared(rank: int, case: str, distributed: Distributed, steps: int = 3) -> dict[str, Any]:
    """By several, all of which give the same."""
    make, shape = CASES[case]
    module = built(make)
    mesh = mesh_of(distributed)
    plan = tensor_plan(model_of(module, drawn(*shape)), distributed.tensor)
    shard(module, mesh, Options(tensor_plan=plan, shard=distributed.shard == "full"))
    share = shape[0] // distributed.data
    first = mesh["data"].get_local_rank() * share
    found = _train(module, shape, slice(first, first + share), steps)
    return {name: value.numpy() for name, value in found.items()}


def _train(module: nn.Module, shape: tuple[int, ...], mine: slice, steps: int) -> dict[str, Tensor]:
    """Weights, buffers, losses and gradient norms of a few steps."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses, norms = [], []
    for step in range(steps):
        x = drawn(*shape, seed=step)[mine]
        optimizer.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        norms.append(clip_gradients(module.parameters(), 1.0))
        optimizer.step()
        losses.append(float(loss.detach()))
    tensors = {name: whole(value.detach()) for name, value in module.state_dict().items()}
    return {**tensors, "norms": torch.tensor(norms), "losses": torch.tensor(losses)}
