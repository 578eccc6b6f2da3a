"""`lighten.load`: every source becomes a Model."""

import difflib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError
from lighten.core.model import TASKS, Model
from lighten.core.recipe import refuse_unknown

_NOT_READ = {".h5": "Keras", ".keras": "Keras", ".tflite": "LiteRT", ".pb": "TensorFlow", ".gguf": "GGUF"}
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_TORCHSCRIPT = (".jit", ".torchscript", ".ts")
_READ = "an nn.Module, package.module:callable, an .onnx or .pt2 file, a Hugging Face folder, or a folder that lighten wrote"


def load(
    source: nn.Module | Model | str | Path,
    *,
    weights: str | Path | None = None,
    example: tuple[Tensor, ...] | Tensor | None = None,
    task: str | None = None,
) -> Model:
    """The model behind `source`: an nn.Module, "package.module:callable", an .onnx file, a .pt2 file (torch.export.save), a
    Hugging Face checkpoint folder, or a folder that lighten wrote.

    weights: a .safetensors file for package.module:callable (.pt, .pth and .bin only as plain tensors, never by unpickling
    code).
    example: one batch of inputs, needed for a plain module (or an attribute `example_inputs`: a tuple, or a callable that gives
    one), and for an .onnx file with an input of which neither size nor value can be guessed. Dimension 0 is the batch. task:
    one of core.model.TASKS where the reader cannot know it.

    Raises InputError when the source is missing, corrupt, of another kind, or holds NaN.
    """
    if task is not None:
        refuse_unknown("task", task, TASKS)
    model = _reader(source)(source, weights, example)
    _refuse_bad_weights(model.module)
    if task is None:
        return model
    from dataclasses import replace

    return replace(model, origin=replace(model.origin, task=task))


Reader = Callable[..., Model]


def _reader(source: nn.Module | Model | str | Path) -> Reader:
    if type(source) is Model:
        return lambda source, weights, example: source
    if isinstance(source, nn.Module):
        from lighten.read.module import read_module

        return lambda source, weights, example: read_module(source, example=example, weights=weights)
    if not isinstance(source, str | Path):
        raise InputError(f"A {type(source).__name__} is not a model.", hint=f"A model is {_READ}.")
    text = str(source)
    path = Path(text)
    if path.is_dir():
        return _folder_reader(path)
    if path.is_file() and path.suffix.lower() in _FILES:
        return _FILES[path.suffix.lower()](path)
    if ":" in text and not path.exists():
        from lighten.read.module import read_callable

        return lambda source, weights, example: read_callable(str(source), example=example, weights=weights)
    raise _refusal(path)


def _onnx_reader(path: Path) -> Reader:
    from lighten.read.onnx import read_onnx

    return lambda source, weights, example: read_onnx(_without(path, weights), example=example)


def _exported_reader(path: Path) -> Reader:
    from lighten.read.exported import read_exported

    return lambda source, weights, example: read_exported(_complete(path, weights, example))


def _folder_reader(folder: Path) -> Reader:
    if (folder / "structure.json").is_file():
        from lighten.read.saved import load_saved

        return lambda source, weights, example: load_saved(_complete(folder, weights, example))
    if (folder / "config.json").is_file():
        from lighten.read.huggingface import read_huggingface

        return lambda source, weights, example: read_huggingface(_complete(folder, weights, example))
    raise InputError(f"{folder} has neither structure.json nor config.json.", hint=f"A model is {_READ}.")


def _without(path: Path, weights: str | Path | None) -> Path:
    if weights is not None:
        raise InputError(f"{path} has weights of its own.", hint="Leave out --weights, or name a package.module:callable.")
    return path


def _complete(folder: Path, weights: str | Path | None, example: object) -> Path:
    _without(folder, weights)
    if example is not None:
        raise InputError(f"{folder} says itself what its inputs are.", hint="Leave out example.")
    return folder


def _refusal(path: Path) -> InputError:
    if path.exists() and path.suffix.lower() in _TORCHSCRIPT:
        return InputError(
            f"{path} is a TorchScript file, whose code lighten never runs.",
            hint="Save the network by torch.export.save(torch.export.export(module, example), 'x.pt2').",
        )
    if path.exists():
        kind = _NOT_READ.get(path.suffix.lower())
        said = f"{kind} files are not read yet" if kind else f"a {path.suffix or 'plain'} file is not a model"
        if path.suffix.lower() in _WEIGHTS:
            return InputError(
                f"{path} holds weights only.", hint=f"Name the network too: package.module:callable --weights {path}"
            )
        return InputError(f"{path}: {said}.", hint=f"A model is {_READ}.")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"Did you mean {path.parent / near[0]}?" if near else f"A model is {_READ}."
    return InputError(f"{path} does not exist.", hint=hint)


_FILES: dict[str, Callable[[Path], Reader]] = {".onnx": _onnx_reader, ".pt2": _exported_reader}


def _refuse_bad_weights(module: nn.Module) -> None:
    learned = dict(module.named_parameters())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        # infinity in a buffer is allowed: masks of minus infinity are kept there on purpose
        bad = torch.isnan if name not in learned else lambda tensor: ~torch.isfinite(tensor)
        if value.is_floating_point() and bool(bad(value).any()):
            raise InputError(f"The weights hold NaN or infinity: {name}.", hint="The checkpoint is damaged or diverged.")
