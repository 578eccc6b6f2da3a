"""name -> class, loaded when asked for. The one place that knows what there is; plug-ins add to it through entry points.

A plug-in package declares, for instance, `[project.entry-points."lighten.methods"] mine = "package.module:Class"`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from lighten.core.errors import InputError
from lighten.core.export import Exporter
from lighten.core.method import Method, Rewrite
from lighten.core.recipe import Step, refuse_unknown
from lighten.engine.quiet import quiet

METHODS: Mapping[str, str] = {
    "distill": "lighten.methods.distill.distill:Distill",
    "finetune": "lighten.methods.finetune:Finetune",
    "keep": "lighten.methods.keep:KeepFloat",
    "prune": "lighten.methods.prune.prune:Prune",
    "qat": "lighten.methods.quantize.qat:Qat",
    "quantize": "lighten.methods.quantize.integer:Quantize",
    "share": "lighten.methods.share:Share",
    "sparsify": "lighten.methods.sparsify.sparsify:Sparsify",
}
EXPORTERS: Mapping[str, str] = {
    "executorch": "lighten.export.executorch:ExecutorchExporter",
    "litert": "lighten.export.litert:LitertExporter",
    "onnxruntime": "lighten.export.onnx:OnnxExporter",
    "openvino": "lighten.export.openvino:OpenVinoExporter",
}
SUFFIXES: Mapping[str, str] = {".onnx": "onnxruntime", ".xml": "openvino", ".pte": "executorch", ".tflite": "litert"}
"""The runtime of an exported file, by the ending of its name."""
READERS: Mapping[str, str] = {
    "module": "lighten.read.module:read_module",
    "huggingface": "lighten.read.huggingface:read_huggingface",
    "saved": "lighten.read.saved:load_saved",
    "onnx": "lighten.read.onnx:read_onnx",
    "exported": "lighten.read.exported:read_exported",
}
# part of the design, not of this version: asked for, they deserve a better answer than the nearest name
PLANNED: Mapping[str, tuple[str, ...]] = {
    "methods": ("factor",),
    "exporters": ("compressed_tensors", "gguf"),
    "readers": ("keras",),
}
_KINDS: Mapping[str, Mapping[str, str]] = {"methods": METHODS, "exporters": EXPORTERS, "readers": READERS}


_WORDS = {"methods": "method", "exporters": "target", "readers": "reader"}


def names(kind: str) -> list[str]:
    """Every name of a kind ("methods", "exporters" or "readers"), plug-ins included."""
    return sorted(_known(kind))


def get(kind: str, name: str) -> Any:
    """The class behind a name. Raises InputError with the nearest name for an unknown one, and when a plug-in cannot be
    loaded.
    """
    known, word = _known(kind), _WORDS[kind]
    if name in PLANNED[kind] and name not in known:
        available = f"Available: {', '.join(sorted(known))}."
        raise InputError(f"The {word} {name!r} is not available in this version.", hint=available)
    refuse_unknown(word, name, known)
    module, _, attribute = known[name].partition(":")
    try:
        with quiet():
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The {word} {name!r} cannot be loaded from {known[name]}: {error}.") from error


def exporter(name: str) -> Exporter:
    """The exporter for a target runtime. Raises InputError for an unknown one."""
    return cast(Exporter, get("exporters", name)())


def build_method(step: Step) -> Method | Rewrite:
    """The step's method with its knobs. Raises InputError for an unknown method or knob, naming the nearest, and for a bad
    value.
    """
    cls = get("methods", step.method)
    try:
        known = [field.name for field in dataclasses.fields(cls)]
    except TypeError as error:
        raise InputError(f"The method {step.method!r} is no dataclass, so it has no knobs to set.") from error
    for knob in step.knobs:
        refuse_unknown(f"knob of {step.method}", knob, known)
    try:
        return cast(Method | Rewrite, cls(**step.knobs))
    except TypeError as error:
        raise InputError(f"The knobs of {step.method} do not fit: {error}.") from error


def _known(kind: str) -> dict[str, str]:
    """A plug-in adds a name; it does not replace one of ours."""
    plug_ins = {entry.name: entry.value for entry in entry_points(group=f"lighten.{kind}")}
    return {**plug_ins, **_KINDS[kind]}
