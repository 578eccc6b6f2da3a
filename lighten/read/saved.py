"""A folder that lighten wrote: structure.json and weights.safetensors. Needs neither pickle nor the original's source."""

import json
from pathlib import Path
from typing import Any

import torch

from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.structure import from_structure


def load_saved(folder: Path) -> Model:
    """The compressed network as saved, integer weights and all.

    Raises InputError when a file is missing, corrupt or names an operator that is unknown here.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        structure = json.loads((folder / "structure.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be read: {error}.", hint="structure.json and weights.safetensors are needed."
        ) from error
    try:
        return _model(structure, from_structure(structure["graph"], tensors), folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'structure.json'} is malformed: {error!r}.") from error


def _model(structure: dict[str, Any], module: torch.nn.Module, folder: Path) -> Model:
    origin = structure["origin"]
    example = tuple(_example(entry) for entry in structure["inputs"])
    return Model(
        module,
        example,
        Origin(
            kind="saved",
            source=str(folder),
            task=origin["task"],
            folder=folder if origin["files"] else None,
            files=tuple(origin["files"]),
            labels=tuple(origin["labels"]),
            dynamic=tuple({int(dim): name for dim, name in entry["dynamic"].items()} for entry in structure["inputs"]),
        ),
        input_names=tuple(entry["name"] for entry in structure["inputs"]),
        output_names=tuple(structure["outputs"]),
        sparse=_there(module, structure.get("sparse", {})),  # folders of before have neither
        shared=_there(module, structure.get("shared", {})),
    )


def _there(module: torch.nn.Module, names: dict[str, Any]) -> dict[str, Any]:
    """Of the tensors that are still there: codes take the place of quantized ones."""
    tensors = module.state_dict()
    return {name: value for name, value in names.items() if name in tensors}


def _example(entry: dict[str, Any]) -> torch.Tensor:
    """Zeros for real inputs, ones for tokens and masks: always valid."""
    dtype = getattr(torch, entry["dtype"])
    return torch.zeros(entry["shape"], dtype=dtype) if dtype.is_floating_point else torch.ones(entry["shape"], dtype=dtype)
