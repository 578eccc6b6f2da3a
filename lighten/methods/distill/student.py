"""A smaller network made from the one that stands: layers and channels chosen by their scores, the rest kept as it is.

The student begins as the part of its teacher that matters most, with the layers behind a cut fitted again (methods.prune), not
from random weights. One that a Hugging Face config describes begins with random weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lighten.analyze.blocks import blocks
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run
from lighten.engine.files import sha256_of
from lighten.methods.prune.prune import Prune
from lighten.methods.training import own_graph

CONFIG = "config"
SIZES = ("width", "depth", "params", "macs")
_KNOBS = (*SIZES, "score", "round_to", "samples")


def check_student(asked: Any) -> None:
    """Raises InputError for what says no size of a student, and no config."""
    if isinstance(asked, Mapping) and CONFIG in asked:
        if set(asked) != {CONFIG} or not isinstance(asked[CONFIG], str | Path):
            raise InputError(f"distill: a student from a config is {{config: path}} and nothing else. Got {asked!r}.")
        return
    for name in asked if isinstance(asked, Mapping) else ():
        refuse_unknown("knob of distill's student", str(name), _KNOBS)
    if not isinstance(asked, Mapping) or not any(asked.get(name) is not None for name in SIZES):
        raise InputError(f"distill: student must say a size, e.g. {{width: 0.5, depth: 0.5}}, or {{config}}. Got {asked!r}.")
    across = [name for name in SIZES if name != "depth" and asked.get(name) is not None]
    if len(across) > 1:
        raise InputError(f"distill: student takes one of width, params and macs. Got {' and '.join(across)}.")
    for name in SIZES:
        value = asked.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not is_number or not 0 < value <= 1):
            raise InputError(f"distill: student's {name} must be in (0, 1]. Got {value!r}.")
    _channels(asked)


def make_student(asked: Mapping[str, Any], model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
    """The smaller network; the given one is not changed. asked: depth: fraction of the layers (of the residual blocks where no
    layer repeats) that stays. width: fraction of the channels of every group that stays; or params or macs: fraction of all,
    taken where the scores are lowest. Depth goes first. config: a config.json or its folder (`read.huggingface`), whose network
    begins with random weights of run.seed. Raises UnfitError or InputError as methods.prune and read.huggingface do.
    """
    if CONFIG in asked:
        return _from_config(Path(asked[CONFIG]), model, data, seed=run.seed)
    for step in _steps(asked, model):
        model = step.rewrite(model, data=data, run=run, pins=pins)
    return model


def check_makeable(asked: Mapping[str, Any], model: Model, *, data: Data) -> None:
    """Raises what `make_student` would, as far as the network tells before any cut; InputError where the outputs of a network
    from a config have other sizes than the model's.
    """
    if CONFIG in asked:
        _from_config(Path(asked[CONFIG]), model, data, seed=0)
        return
    for step in _steps(asked, model):
        step.check(model, data=data)


def config_digest(asked: Mapping[str, Any] | None) -> str:
    """sha256 over the config that the knob names: a recipe does not hold it. "" where it names none."""
    path = Path(asked[CONFIG]) if asked is not None and CONFIG in asked else None
    path = path / "config.json" if path is not None and path.is_dir() else path
    return sha256_of(path) if path is not None and path.is_file() else ""


def _from_config(path: Path, model: Model, data: Data, *, seed: int) -> Model:
    """A network of its own that takes what the model takes and answers as it does."""
    from lighten.read.huggingface import build_huggingface

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        wanted = _first(model.module(*model.example))
        torch.manual_seed(seed)
        module, names = build_huggingface(path, task=model.origin.task or data.task, num_labels=wanted.shape[-1])
        if len(names) != len(model.example):
            raise InputError(f"{path}: the network takes {', '.join(names)}, the model {', '.join(model.input_names)}.")
        try:
            given = _first(module(*model.example))
        except Exception as error:  # the network may be anything
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"The network of {path} does not take the model's inputs: {first[:200]}") from error
    if given.shape != wanted.shape:
        raise InputError(
            f"The network of {path} answers with shape {tuple(given.shape)}, the model with {tuple(wanted.shape)}.",
            hint="Vocabulary, classes and widths of embeddings must be the model's.",
        )
    return replace(model, module=module, sparse={}, shared={})


def _first(result: Any) -> Tensor:
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


def _steps(asked: Mapping[str, Any], model: Model) -> list[Prune]:
    steps = []
    depth = asked.get("depth")
    if depth is not None and depth < 1:
        kinds = {block.kind for block in blocks(own_graph(model), model.example)}
        samples = {"samples": asked["samples"]} if "samples" in asked else {}
        steps.append(Prune(ratio=1 - depth, unit="layer" if "layer" in kinds else "block", **samples))
    return steps + _channels(asked)


def _channels(asked: Mapping[str, Any]) -> list[Prune]:
    knobs = {name: asked[name] for name in ("score", "round_to", "samples") if name in asked}
    knobs["only_faster"] = False  # the size was asked for
    width = asked.get("width")
    if width is not None and width < 1:
        return [Prune(ratio=1 - width, ranking="uniform", **knobs)]
    sizes = {name: asked[name] for name in ("params", "macs") if asked.get(name) is not None and asked[name] < 1}
    return [Prune(**sizes, **knobs)] if sizes else []
