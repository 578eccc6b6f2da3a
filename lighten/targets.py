"""What each runtime executes, asked: a small network for each kind of layer and each form of it is written, opened in the
runtime and counted. `lighten targets` shows what was found; export/executed.json keeps it for plans.

Dimension key: B batch, C channels, T time, H height, W width.
"""

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lighten import catalog
from lighten.analyze.trace import trace
from lighten.core.errors import LightenError
from lighten.core.export import Exporter
from lighten.core.graph import Graph, Site
from lighten.core.method import Method, Prepared
from lighten.core.plan import Plan
from lighten.core.recipe import Step
from lighten.core.run import Run
from lighten.core.spec import Float, Keep, Quant, Spec
from lighten.data.source import load_data
from lighten.export.executed import executed
from lighten.gather import RUNTIMES, device

FORMS: Mapping[str, Spec] = {
    "float32": Keep(),
    "fp16 weights": Float("fp16"),
    "int8": Quant(),
    "int8 dynamic": Quant(dynamic=True),
    "int8 weights": Quant(8, None),
    "int4 weights": Quant(4, None, group=32),
}
_PARTS: Mapping[str, tuple[str, ...]] = {
    "conv": ("conv",),
    "linear": ("matmul", "gemm", "linear", "fullyconnected"),
    "matmul": ("matmul", "gemm", "fullyconnected"),
    "add": ("add", "eltwise"),
    "mul": ("mul", "eltwise"),
    "concat": ("concat", "cat"),
    "average_pool": ("pool", "reduce", "mean"),
    "embedding": ("gather", "embedding"),
    "lstm": ("lstm",),
    "gru": ("gru",),
}
"""What a runtime's operator may be called, by the beginning of the kind."""
_EXACT = ("add", "mul")  # "mul" is a part of "matmul"
_WIDTH = 32


class _Layers(nn.Module):
    """Layers between two of the same: what comes in and goes out is in integers too where the layer is."""

    def __init__(self, join: Callable[..., Tensor], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.join = nn.ModuleList(layers), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, *self.layers)


def _row(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """By kind: a network that has such a layer in the middle, and an example of two."""
    image, sequence, rows = torch.randn(2, _WIDTH, 8, 8), torch.randn(2, _WIDTH, 16), torch.randn(2, 8, _WIDTH)
    conv = [nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(3)]
    linear = [nn.Linear(_WIDTH, _WIDTH) for _ in range(3)]
    depthwise = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=_WIDTH)

    def both(how: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
        return _Layers(lambda x, a, b, last: last(how(a(x), b(x))), conv)

    return {
        "conv1d": (_Layers(_row, [nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(3)]), sequence),
        "conv2d": (_Layers(_row, conv), image),
        "depthwise conv2d": (_Layers(_row, [conv[0], depthwise, conv[1]]), image),
        "conv3d": (_Layers(_row, [nn.Conv3d(8, 8, 3, padding=1) for _ in range(3)]), torch.randn(2, 8, 4, 4, 4)),
        "conv_transpose2d": (_Layers(_row, [nn.ConvTranspose2d(_WIDTH, _WIDTH, 2, 2) for _ in range(2)]), image),
        "linear": (_Layers(_row, linear), rows),
        "matmul": (_Layers(lambda x, a, b, last: last(a(x) @ b(x).transpose(1, 2) @ x), linear), rows),
        "add": (both(torch.add), image),
        "mul": (both(torch.mul), image),
        "concat": (_Layers(lambda x, a, b, last: last(torch.cat([a(x), b(x)], 2)), conv), image),
        "average_pool": (_Layers(_row, [conv[0], nn.AvgPool2d(2), conv[1]]), image),
        "embedding": (_Layers(_row, [nn.Embedding(64, _WIDTH), linear[0]]), torch.randint(64, (2, 8))),
    }


def probe(runtime: str) -> dict[str, Any]:
    """Asks one runtime, on this machine: some seventy files, a minute or two. Raises InputError where it is not installed."""
    exporter = catalog.exporter(runtime)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        kinds = {kind: _kind(exporter, kind, *made, folder=Path(folder)) for kind, made in _networks().items()}
    return {"version": version(runtime), "device": device(), "kinds": kinds}


def version(runtime: str) -> str | None:
    """Of the runtime's package; None where it is not installed."""
    try:
        return importlib.metadata.version(RUNTIMES.get(runtime, runtime))
    except importlib.metadata.PackageNotFoundError:
        return None


def _kind(exporter: Exporter, kind: str, module: nn.Module, example: Tensor, *, folder: Path) -> dict[str, str]:
    from lighten.read.module import read_module

    model = read_module(module.eval(), example=example)
    graph = trace(model)
    np.savez(folder / "noise.npz", x=example.numpy(), y=np.zeros(len(example), np.int64))
    data = load_data(folder / "noise.npz", model=model)
    quantize = cast(Method, catalog.build_method(Step("quantize", {"samples": len(example)})))
    prepared = quantize.prepare(model, graph, data=data, run=Run())
    path = folder / f"probe{exporter.suffix}"
    wanted = {form: _plan(graph, kind, spec) for form, spec in FORMS.items()}
    return {form: _ask(exporter, kind, prepared, plan, path=path) for form, plan in wanted.items() if plan is not None}


def _plan(graph: Graph, kind: str, spec: Spec) -> Plan | None:
    """The spec for every site that can take it; None where no site of the kind can."""
    specs = {site.name: _spec(site, spec) for site in graph.sites}
    plan = {name: one for name, one in specs.items() if one is not None}
    if type(spec) is Keep:
        return Plan()
    is_asked = any(site.name in plan for site in graph.sites if site.kind == kind.removeprefix("depthwise "))
    return Plan(plan) if is_asked else None


def _spec(site: Site, spec: Spec) -> Spec | None:
    from lighten.methods.quantize.sites import takes

    if type(spec) is Quant and not site.weights:
        spec = Quant(None, spec.activations, dynamic=spec.dynamic) if spec.activations else Keep()
    return spec if type(spec) is not Keep and takes(site, spec) else None


def _ask(exporter: Exporter, kind: str, prepared: Prepared, plan: Plan, *, path: Path) -> str:
    try:
        exporter.write(prepared.realize(plan, repair=False), path)
        counts = exporter.operators(path)
    except LightenError:
        return "refused"
    names = next(names for start, names in _PARTS.items() if start in kind)
    found = {
        key.partition(":")[2].split()[0] for key in counts if ":" in key and _is_one_of(key.partition(":")[0].lower(), names)
    }
    return " ".join(sorted(found)) or "fused"


def _is_one_of(operator: str, names: tuple[str, ...]) -> bool:
    return any(operator == name if name in _EXACT else name in operator for name in names)


def targets(runtimes: Sequence[str] = (), *, probed: bool = False) -> dict[str, Any]:
    """By runtime, all where none is named: the version installed here (None where it is not), and what it executes, as kept
    with lighten, or asked anew on this machine where `probed`.

    Raises InputError for an unknown runtime, and, where `probed`, for one that is named and not installed.
    """
    known = executed()
    chosen = runtimes or catalog.names("exporters")
    asked = [name for name in chosen if probed and (runtimes or version(name) is not None)]
    for name in runtimes:
        catalog.get("exporters", name)
    found = {name: probe(name) if name in asked else known.get(name, {}) for name in chosen}
    return {name: {"installed": version(name), **facts} for name, facts in found.items()}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """For a terminal: a table a runtime, kinds of layers down, forms across."""
    return "\n\n".join(_table(name, facts) for name, facts in found.items())


def _table(name: str, facts: Mapping[str, Any]) -> str:
    installed = facts["installed"] or f"not installed: pip install 'lighten[{name}]'"
    head = f"{name}: {installed}"
    if not facts.get("kinds"):
        return f"{head}; not asked yet: lighten targets --probe {name}"
    rows = [["", *FORMS], *([kind, *(forms.get(form, "") for form in FORMS)] for kind, forms in facts["kinds"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{head}; executed by {facts['version']} on {facts['device']}:", *lines])
