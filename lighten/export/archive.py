"""The part of the folder that lighten itself can load again: structure.json, weights.safetensors and the preprocessing
files.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.files import make_folder, write_atomic
from lighten.engine.quiet import quiet
from lighten.engine.structure import to_structure

PRETRAINED = "pretrained"


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


def write_pretrained(network: Any, model: Model, folder: Path) -> list[str]:
    """`pretrained` in `folder`: config.json, model.safetensors and the preprocessing files, which `from_pretrained` and
    `lighten.load` read. Returns the names, relative to `folder`.

    network: has save_pretrained. Raises InputError when a preprocessing file cannot be read or the folder not be written.
    """
    place = make_folder(folder / PRETRAINED)
    with quiet():
        network.save_pretrained(place)
    own = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    copied = replace(model, origin=replace(model.origin, files=tuple(name for name in model.origin.files if name not in own)))
    return [f"{PRETRAINED}/{name}" for name in sorted({*own, *_copy_preprocessing(copied, place)})]


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
    kept = {"sparse": dict(model.sparse), "shared": dict(model.shared)}
    return {"inputs": inputs, "outputs": list(model.output_names), "origin": origin, **kept}


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
