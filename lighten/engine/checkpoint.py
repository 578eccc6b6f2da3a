"""The state of a training on disk: one safetensors file whose header carries the facts as JSON.

One file, because two could be of different epochs after a power cut. It is written under a temporary name and moved.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lighten.core.run import Ranks
from lighten.engine.files import make_folder, write_atomic
from lighten.engine.shard import put, shaped_like, whole

FILE = "training.safetensors"
_FACTS = "facts"


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers on the CPU, a shared one once; whole ones of what is sharded, on every rank."""
    return {name: whole(value.detach()).to("cpu", copy=True).contiguous() for name, value in named_tensors(module).items()}


@torch.no_grad()
def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes a snapshot back, in place: whoever holds a parameter holds the new value."""
    for name, value in named_tensors(module).items():
        if name in tensors:
            put(value, tensors[name])


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in hexadecimal."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        result.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        result.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return result.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, as `parameter number/name`. Its settings are not kept: they follow from the knobs."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": whole(value.detach()).to("cpu", copy=True).contiguous()
        for number, facts in state.items()
        for name, value in facts.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer over the same parameters, sharded or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = shaped_like(parameters[int(number)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """parts: named dicts of contiguous CPU tensors. facts: JSON data. Raises InputError when the folder cannot be written."""
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    content = safetensors.torch.save(tensors, metadata={_FACTS: json.dumps(dict(facts))})
    write_atomic(make_folder(folder) / FILE, content)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The inverse of `save`; None where there is no such file, or one that is damaged."""
    try:
        with safetensors.safe_open(folder / FILE, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return _in_parts(tensors), facts


def load_shared(folder: Path | None, ranks: Ranks) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """What the first rank finds in its folder, on every rank."""
    loaded = load(folder) if folder is not None and ranks.number == 0 else None
    parts, facts = loaded or ({}, None)
    facts = ranks.share(facts)
    if facts is None:
        return None
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return _in_parts(ranks.share_tensors(tensors)), facts


def _in_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts
