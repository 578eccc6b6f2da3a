"""Which layer hurts, and what it buys: each layer alone at every width that the target stores, and each alone back in float."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lighten import catalog
from lighten.analyze.cost import costs
from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.data import Batch, Data
from lighten.core.errors import UnfitError
from lighten.core.export import Exporter
from lighten.core.method import Method, Prepared
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.recipe import Step
from lighten.core.run import Progress, Run, Silent
from lighten.core.spec import Keep
from lighten.data.source import load_data
from lighten.engine.threads import torch_threads
from lighten.evaluate.latency import time_interleaved
from lighten.evaluate.layers import layer_sqnr_db
from lighten.gather import device, versions
from lighten.read.source import load
from lighten.search.sensitivity import Answers, answers_to_judge_by, weights_of, with_widths
from lighten.search.trials import representative_batch

_SQNR_EXAMPLES = 8
_LEAST_NOISE = 0.02  # what equal files differ by on a quiet machine with calls this short
Source = Model | nn.Module | str | Path


@dataclass(frozen=True)
class _Bench:
    """What every layer is tried on. plan: everything in 8 bits. inputs: a few examples for the layers' own noise."""

    prepared: Prepared
    plan: Plan
    answers: Answers
    inputs: tuple[torch.Tensor, ...]
    exporter: Exporter
    run: Run


def sensitivity(
    model: Source,
    data: Data | str | Path | Iterable[Any],
    *,
    target: Target | str = "onnxruntime",
    timed: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Each linear layer and convolution quantized alone at every width that the target's file can hold, as JSON data.

    model, data: anything `lighten.load` and `lighten.load_data` read; labels are not needed. Measured on calibration examples:
    the noise and, for classes, the mean KL on the network's outputs, and the rise of the task's loss (where the data has no
    labels, against the network's own answers). Codes are rounded to the nearest: solved ones hurt less. timed: also writes one
    file for each layer, with that layer in float and all others in 8 bits, and times all of them interleaved.

    docs/report.md describes each key. Raises InputError or UnfitError as `compress` does, UnfitError too where no layer can be
    quantized.
    """
    target, progress = Target(target) if isinstance(target, str) else target, progress or Silent()
    exporter = catalog.exporter(target.runtime)
    model = model if type(model) is Model else load(model)
    data = data if type(data) is Data else load_data(data, model=model, seed=seed)
    run = Run(seed, target.threads, progress)
    with torch_threads(target.threads):
        method = cast(Method, catalog.build_method(Step("quantize")))
        prepared = method.prepare(model, trace(model), data=data, run=run)
        plan = prepared.proposals()[0]
        answers = answers_to_judge_by(prepared, data)
        inputs = next(iter(data.calibration.batches(_SQNR_EXAMPLES, _SQNR_EXAMPLES))).inputs
        bench = _Bench(prepared, plan, answers, inputs, exporter, run)
        layers = _layers(bench, model)
        price = _price(bench, [layer["site"] for layer in layers], representative_batch(data, target), target) if timed else {}
    harm = "kl" if all(width["kl"] is not None for layer in layers for width in layer["widths"]) else "noise"
    return {
        "model": {"source": model.origin.source, "kind": model.origin.kind, "task": data.task},
        "data": {"source": data.source, "num_examples": answers.num_examples, "digest": data.digest},
        "harm": harm,
        "widths": list(exporter.weight_widths()),
        "layers": [{**layer, **price.get(layer["site"], {})} for layer in layers],
        **({"all_in_8_bits": price[""]} if price else {}),
        "runtime": target.runtime,
        "threads": target.threads,
        "batch": target.batch,
        "seed": seed,
        "device": device(),
        "versions": versions(),
        "seconds": run.ledger.seconds(),
    }


def _layers(bench: _Bench, model: Model) -> list[dict[str, Any]]:
    """In execution order, each with what it is and what happens at each width."""
    weights = weights_of(bench.prepared.graph, bench.plan)
    if not weights:
        raise UnfitError("The network has no linear layer or convolution whose weights could be quantized.")
    cost = {one.site: one for one in costs(bench.prepared.graph.module, model.example)}
    widths = bench.exporter.weight_widths()
    pairs = [(site, bits) for site in weights for bits in widths]
    tried = bench.run.progress.track(pairs, what="trying widths", total=len(pairs))
    found: dict[str, list[dict[str, Any]]] = {site: [] for site in weights}
    for site, bits in tried:
        found[site].append({"bits": bits, "bytes": weights[site] * bits // 8, **_alone(bench, site, bits)})
    return [
        {"site": site, "kind": cost[site].kind, "weights": count, "macs": cost[site].macs, "widths": found[site]}
        for site, count in weights.items()
    ]


def _alone(bench: _Bench, site: str, bits: int) -> dict[str, float | None]:
    graph, original = bench.prepared.graph, bench.prepared.graph.module
    plan = with_widths(Plan({site: bench.plan[site]}), {site: bits})
    compressed = bench.prepared.realize(plan, repair=False)
    own = [one for one in graph.sites if one.name == site]
    noise = layer_sqnr_db(original, compressed.graph, own, inputs=bench.inputs)
    return {
        "weight_sqnr_db": compressed.sites.get(site, {}).get("weight_sqnr_db"),
        "output_sqnr_db": noise.get(site),
        **asdict(bench.answers.effect(compressed.graph)),
    }


def _price(bench: _Bench, names: list[str], batch: Batch, target: Target) -> dict[str, dict[str, float]]:
    """By site what keeping it in float adds to the file of all layers in 8 bits, in bytes and milliseconds of a call; under ""
    that file itself.
    """
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        files = {name: Path(folder) / f"{number}{bench.exporter.suffix}" for number, name in enumerate(["", *names])}
        sizes = {name: _written(bench, name, path) for name, path in _tracked(bench, files)}
        calls = {name: _call(bench.exporter, path, batch, target) for name, path in files.items()}
        timing = time_interleaved(calls)
    took = {name: timing.latencies[name].p50_ms for name in files}
    noise_ms = max(abs(timing.noise_ratio - 1), _LEAST_NOISE) * took[""]
    added = {
        name: {"float_cost_bytes": sizes[name] - sizes[""], "float_cost_ms": took[name] - took[""], "noise_ms": noise_ms}
        for name in names
    }
    return {"": {"size_bytes": sizes[""], "latency_ms_p50": took[""], "noise_ms": noise_ms}, **added}


def _tracked(bench: _Bench, files: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    return bench.run.progress.track(files.items(), what="writing files to time", total=len(files))


def _written(bench: _Bench, kept: str, path: Path) -> int:
    plan = bench.plan.replace({kept: Keep()}) if kept else bench.plan
    return bench.exporter.write(bench.prepared.realize(plan, repair=False), path).size_bytes


def _call(exporter: Exporter, path: Path, batch: Batch, target: Target) -> Any:
    session = exporter.open(path, target)
    return lambda: session(*batch.inputs)
