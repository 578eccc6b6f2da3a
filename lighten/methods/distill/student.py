"""A smaller network made from the one that stands: layers and channels chosen by their scores, the rest kept as it is.

The student begins as the part of its teacher that matters most, with the layers behind a cut fitted again (methods.prune), not
from random weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lighten.analyze.blocks import blocks
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run
from lighten.methods.prune.prune import Prune
from lighten.methods.training import own_graph

SIZES = ("width", "depth", "params", "macs")
_KNOBS = (*SIZES, "score", "round_to", "samples")


def check_student(asked: Any) -> None:
    """Raises InputError for what says no size of a student."""
    for name in asked if isinstance(asked, Mapping) else ():
        refuse_unknown("knob of distill's student", str(name), _KNOBS)
    if not isinstance(asked, Mapping) or not any(asked.get(name) is not None for name in SIZES):
        raise InputError(f"distill: student must say a size, e.g. {{width: 0.5, depth: 0.5}}. Got {asked!r}.")
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
    taken where the scores are lowest. Depth goes first. Raises UnfitError or InputError as methods.prune does.
    """
    for step in _steps(asked, model):
        model = step.rewrite(model, data=data, run=run, pins=pins)
    return model


def check_makeable(asked: Mapping[str, Any], model: Model, *, data: Data) -> None:
    """Raises what `make_student` would, as far as the network tells before any cut."""
    for step in _steps(asked, model):
        step.check(model, data=data)


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
