"""The part of the folder that lighten itself can load again: structure.json, weights.safetensors and the preprocessing
files.
"""

import json
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.files import make_folder, write_atomic
from lighten.engine.structure import to_structure


def write_archive(compressed: Compressed, folder: Path) -> list[str]:
    """Writes the files and returns their names, relative to `folder`.

    Raises UnfitError when the graph holds something that has no name, InputError when the folder cannot be written.
    """
    import safetensors.torch

    model = compressed.model
    graph, tensors = to_structure(compressed.graph)
    structure = {"graph": graph, "plan": compressed.plan.to_dict(), **_interface(model)}
    write_atomic(folder / "structure.json", json.dumps(structure, indent=1) + "\n")
    # tied weights share memory; safetensors wants each name to own its bytes
    write_atomic(
        folder / "weights.safetensors", safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()})
    )
    return ["structure.json", "weights.safetensors", *_copy_preprocessing(model, folder)]


def _interface(model: Model) -> dict[str, Any]:
    dynamic = model.origin.dynamic or tuple({} for _ in model.example)
    inputs = [
        {
            "name": name,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "dynamic": {str(dim): label for dim, label in dims.items()},
        }
        for name, value, dims in zip(model.input_names, model.example, dynamic, strict=True)
    ]
    origin = {"task": model.origin.task, "files": list(model.origin.files), "labels": list(model.origin.labels)}
    return {"inputs": inputs, "outputs": list(model.output_names), "origin": origin}


def _copy_preprocessing(model: Model, folder: Path) -> list[str]:
    """Tokenizers and processors travel with the model, so that the folder can be scored on raw data again."""
    names = []
    for name in model.origin.files:
        source = (model.origin.folder or Path()) / name
        destination = folder / name
        if source.resolve() == destination.resolve():
            raise InputError(f"{folder} is the model's own folder.", hint="Choose another --out.")
        make_folder(destination.parent)
        write_atomic(destination, _content(source))
        names.append(name)
    return names


def _content(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"Cannot read {source}: {reason}.", hint="The model's own folder is needed until it is saved."
        ) from error
