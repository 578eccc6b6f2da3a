"""Resizing and sampling.

Where torch's interpolation says the same it is used, so that exporters find it. Else each dimension is done by itself: for each
place of the result the places it is made of and their weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value, constant
from lighten.read.onnx_operators.numbers import sizes

_MODES = {"linear": ("linear", "bilinear", "trilinear"), "nearest": ("nearest",) * 3, "cubic": ("", "bicubic", "")}


def resize(x: Tensor, scales: Any, wanted: Any, *, settings: dict[str, Any]) -> Tensor:
    """scales or wanted sizes, one for each of settings["axes"] (None: all); the other is None.

    settings: mode, coordinates, nearest, cubic, exclude, policy, region, extrapolation.
    """
    axes = list(range(x.dim())) if settings["axes"] is None else [dim % x.dim() for dim in settings["axes"]]
    given = [x.shape[dim] for dim in axes]
    if wanted is not None and sizes(wanted):
        targets = sizes(wanted)
        ratios = [target / size for target, size in zip(targets, given, strict=True)]
        if settings["policy"] != "stretch":
            ratio = min(ratios) if settings["policy"] == "not_larger" else max(ratios)
            targets, ratios = [math.floor(ratio * size + 0.5) for size in given], [ratio] * len(given)
    else:
        ratios = [float(ratio) for ratio in sizes(scales)]
        targets = [_floor(ratio, size) for ratio, size in zip(ratios, given, strict=True)]
    plan = [entry for entry in zip(axes, targets, ratios, strict=True) if not (isinstance(entry[2], float) and entry[2] == 1)]
    quick = _torch_mode(settings, plan, x.dim())
    if quick is not None and plan:
        rank = x.dim() - 2
        chosen = {dim: (target, ratio) for dim, target, ratio in plan}
        both = [chosen.get(dim, (x.shape[dim], 1.0)) for dim in range(2, 2 + rank)]
        return functional.interpolate(x, [target for target, _ in both], **quick)
    for number, (dim, target, ratio) in enumerate(plan):
        region = None if settings["region"] is None else _region(settings["region"], len(axes), axes.index(dim))
        x = _along(x, dim, target, {**settings, "ratio": ratio, "region": region, "number": number})
    return x


def _floor(ratio: float, size: Any) -> Any:
    """Whole ratios keep sizes symbolic."""
    return int(ratio) * size if ratio.is_integer() else math.floor(size * ratio)


def _torch_mode(settings: dict[str, Any], plan: list[tuple[int, Any, Any]], rank: int) -> dict[str, Any] | None:
    """What torch.nn.functional.interpolate must be told, where it does the same."""
    if not 3 <= rank <= 5 or any(dim < 2 for dim, _, _ in plan) or settings["exclude"] or settings["policy"] != "stretch":
        return None
    mode, coordinates = settings["mode"], settings["coordinates"]
    if not all(settings["exact"]):
        return None
    name = _MODES.get(mode, ("",) * 3)[rank - 3]
    if mode == "nearest":
        return {"mode": "nearest"} if coordinates == "asymmetric" and settings["nearest"] == "floor" else None
    if not name or (mode == "cubic" and settings["cubic"] != -0.75):
        return None
    if coordinates == "align_corners":
        return {"mode": name, "align_corners": True}
    is_point = coordinates == "pytorch_half_pixel" and any(target == 1 for _, target, _ in plan)
    is_half = coordinates in ("half_pixel", "pytorch_half_pixel") and not is_point
    return {"mode": name, "align_corners": False} if is_half else None


def _along(x: Tensor, dim: int, target: Any, settings: dict[str, Any]) -> Tensor:
    """One dimension, to `target` places."""
    size = x.shape[dim]
    place = _coordinates(torch.arange(target, dtype=torch.float32), size, target, settings)
    found: Any = 0.0
    for tap, weight in _taps(place, size, settings):
        shape = [1] * x.dim()
        shape[dim] = -1
        taken = x.index_select(dim, tap.clamp(0, size - 1))
        found = taken if weight is None else found + taken * weight.to(x.dtype).reshape(shape)
    if settings["coordinates"] == "tf_crop_and_resize":
        shape = [1] * x.dim()
        shape[dim] = -1
        outside = ((place < 0) | (place > size - 1)).reshape(shape)
        found = torch.where(outside, torch.tensor(settings["extrapolation"], dtype=x.dtype), found)
    return found  # type: ignore[no-any-return]


def _coordinates(index: Tensor, size: Any, target: Any, settings: dict[str, Any]) -> Any:
    """Where each place of the result lies in the input, in float32 as in ONNX Runtime: near halves the rounding decides."""
    kind, ratio = settings["coordinates"], settings["ratio"]
    if kind == "asymmetric":
        return index / ratio
    if kind == "align_corners":
        return index * (size - 1) / (target - 1) if target != 1 else index * 0
    if kind == "tf_crop_and_resize":
        start, end = settings["region"]
        return start * (size - 1) + index * (end - start) * (size - 1) / max(target - 1, 1)
    if kind == "pytorch_half_pixel" and target == 1:
        return index * 0
    if kind == "half_pixel_symmetric":
        shift = size / 2 * (1 - target / (ratio * size))
        return shift + (index + 0.5) / ratio - 0.5
    return (index + 0.5) / ratio - 0.5


def _taps(place: Tensor, size: Any, settings: dict[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Places of the input and their weights."""
    if settings["mode"] == "nearest":
        return [(_nearest(place, settings["nearest"]).to(torch.int64), None)]
    first = place.floor()
    rest = place - first
    if settings["mode"] == "linear":
        taps = [(first, 1 - rest), (first + 1, rest)]
    else:
        a = settings["cubic"]
        taps = [(first + step, _cubic((rest - step).abs(), a)) for step in (-1, 0, 1, 2)]
    if settings["exclude"]:
        inside = [(tap, weight * ((tap >= 0) & (tap < size))) for tap, weight in taps]
        total = sum(weight for _, weight in inside)
        taps = [(tap, weight / total) for tap, weight in inside]
    return [(tap.to(torch.int64), weight) for tap, weight in taps]


def _nearest(place: Tensor, kind: str) -> Tensor:
    """Halves go down with round_prefer_floor, up with round_prefer_ceil."""
    found = {
        "floor": place.floor,
        "ceil": place.ceil,
        "round_prefer_floor": (place - 0.5).ceil,
        "round_prefer_ceil": (place + 0.5).floor,
    }
    return found[kind]()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _region(region: Any, count: int, number: int) -> tuple[float, float]:
    return region[number], region[number + count]


def grid_sample(x: Tensor, grid: Tensor, *, mode: str, padding: str, align: bool) -> Tensor:
    """x at the places that the grid names."""
    return functional.grid_sample(x, grid, mode, padding, align)


def affine_grid(theta: Tensor, size: Any, *, align: bool) -> Tensor:
    """Places for `grid_sample`."""
    return functional.affine_grid(theta, sizes(size), align)


def _resize(step: Step, build: Build) -> Value:
    is_old = step.opset < 11
    region = None if is_old else step.numbers("roi", 1)
    scales = step.setting("scales", 1 if is_old else 2)
    scales = None if scales is None else constant(scales, "scales of a resizing")
    scales = scales.tolist() if isinstance(scales, torch.Tensor) else scales
    wanted = None if is_old else step.input(3)
    scales = None if isinstance(scales, list) and not scales else scales
    if step.get("antialias", 0):
        raise UnfitError("resizing with antialiasing is not read.")
    settings = {
        "axes": step.get("axes"),
        "mode": step.get("mode", "nearest"),
        "coordinates": "asymmetric" if is_old else step.get("coordinate_transformation_mode", "half_pixel"),
        "nearest": "floor" if is_old else step.get("nearest_mode", "round_prefer_floor"),
        "cubic": step.get("cubic_coeff_a", -0.75),
        "exclude": bool(step.get("exclude_outside", 0)),
        "policy": step.get("keep_aspect_ratio_policy", "stretch"),
        "region": region or None,
        "extrapolation": step.get("extrapolation_value", 0.0),
        # torch goes by the ratio of sizes: the same where scales hit whole sizes
        "exact": [wanted is not None or float(scale) == 1 or float(scale).is_integer() for scale in scales or [1]],
    }
    return build.emit(
        resize, step.input(0), scales if wanted is None or not _has_any(wanted) else None, wanted, settings=settings
    )


def _has_any(wanted: Value) -> bool:
    return not (isinstance(wanted, list) and not wanted)


def _grid_sample(step: Step, build: Build) -> Value:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(step.get("mode", "linear"), step.get("mode"))
    settings = {
        "mode": mode or "bilinear",
        "padding": step.get("padding_mode", "zeros"),
        "align": bool(step.get("align_corners", 0)),
    }
    return build.emit(grid_sample, *step.inputs, **settings)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = {
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "AffineGrid": lambda step, build: build.emit(affine_grid, *step.inputs, align=bool(step.get("align_corners", 0))),
}
