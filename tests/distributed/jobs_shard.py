"""What each rank does in test_mesh.py, test_shard.py and test_dcp.py."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from networks_of_ranks import drawn, model_of, perceptron
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lighten.analyze.trace import traced
from lighten.core.distributed import Distributed
from lighten.core.errors import InputError
from lighten.engine import checkpoint, dcp
from lighten.engine.mesh import mesh_of
from lighten.engine.modes import set_training
from lighten.engine.shard import Options, clip_gradients, shard, whole
from lighten.engine.zeros import keep_zeros


class Masked(nn.Module):
    """Zeros that stay: a parametrization with a mask of its own and a scale without dimensions."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (weight.abs() > 0.2).to(weight.dtype))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask * self.scale


def masked() -> nn.Module:
    module = perceptron()
    parametrize.register_parametrization(module[2], "weight", Masked(module[2].weight.detach()))
    return module


def graph() -> nn.Module:
    return traced(model_of(perceptron(), torch.zeros(4, 6)))


NETWORKS = {"blocks": perceptron, "masked": masked, "graph": graph}


def coordinates(rank: int, *grids: Distributed) -> list[Any]:
    """Where the rank lies in each grid, or what is wrong."""
    return [_coordinates(distributed) for distributed in grids]


def _coordinates(distributed: Distributed) -> Any:
    try:
        mesh = mesh_of(distributed)
    except InputError as error:
        return str(error)
    return {name: mesh[name].get_local_rank() for name in mesh.mesh_dim_names or ()}


def train(module: nn.Module, mine: slice, *, steps: int = 3) -> dict[str, Tensor]:
    """On this rank's part of each batch. Zeros of the first layer stay."""
    again = keep_zeros(module, ["0.weight"])
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    norms = []
    for step in range(steps):
        x, y = drawn(8, 6, seed=step)[mine], drawn(8, 1, seed=10 + step)[mine]
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        norms.append(clip_gradients(module.parameters(), 0.1))
        optimizer.step()
        again(step, 0.0)
    memory = {name: whole(value.detach()) for name, value in dcp.training_tensors(module, optimizer).items()}
    return {**memory, "norms": torch.tensor(norms)}


def made(network: str) -> nn.Module:
    """With half of the first weights zero."""
    module = NETWORKS[network]()
    with torch.no_grad():
        dict(module.named_parameters())["0.weight"][:, ::2] = 0
    set_training(module, True)
    return module


def sharded(rank: int, world: int, *cases: tuple[str, Options]) -> list[dict[str, Any]]:
    """Trains each network on a part of each batch; also says how much of the parameters this rank holds."""
    return [_sharded(rank, network, options, world) for network, options in cases]


def _sharded(rank: int, network: str, options: Options, world: int) -> dict[str, Any]:
    module = made(network)
    shard(module, mesh_of(Distributed(data=world, shard="full")), options)
    share = 8 // world
    found = {name: value.float().numpy() for name, value in train(module, slice(rank * share, rank * share + share)).items()}
    held = sum(local(value).numel() for value in module.parameters())
    return {**found, "held": held, "names": [name for name, _ in module.named_parameters()]}


def local(value: Any) -> Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def snapshots(rank: int) -> bool:
    """Whether a snapshot is the whole network, and goes into another, sharded or not, and back."""
    module, other = perceptron(), perceptron()
    expected = checkpoint.snapshot(module)
    mesh = mesh_of(Distributed(data=2))
    shard(module, mesh)
    found = checkpoint.snapshot(module)
    changed = {name: value + rank * 0 + 1 for name, value in found.items()}
    checkpoint.restore(module, changed)
    checkpoint.restore(other, checkpoint.snapshot(module))
    return checkpoint.digest(found) == checkpoint.digest(expected) and checkpoint.digest(
        checkpoint.snapshot(other)
    ) == checkpoint.digest(changed)


def saved(rank: int, folder: str, world: int) -> dict[str, Any]:
    """Trains and saves two checkpoints, and trains on while the last one is written."""
    module = perceptron()
    shard(module, mesh_of(Distributed(data=world)))
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    checkpoints = dcp.ShardedCheckpoints(Path(folder))
    for number in range(2):
        step(module, optimizer, number)
        facts = {"step": number + 1, "optimizer": dcp.optimizer_keys(optimizer)}
        checkpoints.save(number, dcp.training_tensors(module, optimizer), facts)
    held = {name: whole(value).numpy().copy() for name, value in dcp.training_tensors(module, optimizer).items()}
    step(module, optimizer, 2)  # must not reach the disk
    checkpoints.wait()
    return held


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    module(drawn(8, 6, seed=seed)).square().mean().backward()
    optimizer.step()


def loaded(rank: int, folder: str, world: int, steps: int = 0) -> dict[str, Any]:
    """On any number of ranks, into other weights; trains on."""
    module = perceptron()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    shard(module, mesh_of(Distributed(data=world)))
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    checkpoints = dcp.ShardedCheckpoints(Path(folder))
    facts = checkpoints.facts() or {}
    dcp.blank_optimizer(optimizer, facts["optimizer"])
    checkpoints.load(dcp.training_tensors(module, optimizer))
    for more in range(steps):
        step(module, optimizer, facts["step"] + more)
    tensors = {name: whole(value).numpy() for name, value in dcp.training_tensors(module, optimizer).items()}
    return {**tensors, "step": facts["step"]}


def interrupted(rank: int, folder: str) -> str:
    """The disk takes no more of rank 1's part: no checkpoint appears, and every rank is told."""
    checkpoints = dcp.ShardedCheckpoints(Path(folder))
    if rank == 1:
        dcp._Writer.write_data = _refuse  # type: ignore[method-assign]
    checkpoints.save(7, {"x": _split(rank)}, {})
    try:
        checkpoints.wait()
    except InputError as error:
        return str(error)
    return "written"


def _split(rank: int) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    mesh = mesh_of(Distributed(data=dist.get_world_size()))["data"]
    return DTensor.from_local(torch.full((2,), float(rank)), mesh, [Shard(0)])


def _refuse(*arguments: Any, **keywords: Any) -> Any:
    raise OSError(28, "No space left on device", "shard-2")
