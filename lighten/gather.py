"""From what a run measured to the report: plain data, every figure with where it came from."""

import base64
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lighten.analyze.cost import costs
from lighten.core.cost import Budget, LayerCost
from lighten.core.export import file_name
from lighten.core.graph import Graph
from lighten.core.pins import pinned
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe
from lighten.core.spec import Keep, Quant
from lighten.evaluate.flips import Change
from lighten.evaluate.memory import peak_bytes
from lighten.evaluate.metrics import log_softmax
from lighten.evaluate.zeros import zeros_in, zipped_bytes
from lighten.export.saturation import FULL_BITS
from lighten.report.specs import is_for_weights_alone, label, stored_bits
from lighten.search.faster import Speed
from lighten.search.gate import Gate
from lighten.search.trials import ORIGINAL, Trials

if TYPE_CHECKING:
    from lighten.analyze.reclass import Reclassed

_MOST_IMAGES = 24
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "executorch": "executorch", "litert": "ai-edge-litert"}
"""The package of each runtime."""
ROUNDING = 1e-9
"""Slack of every limit: 1 - 475 / 500 is 0.05 and a few last bits."""


@dataclass(frozen=True)
class Facts:
    """Everything a report is made of. original: the network as given. graph: what the steps before the last one made of it.
    reclassed: that in the class of the original, None where there are no such steps.
    """

    original: Graph
    graph: Graph
    budget: Budget
    recipe: Recipe
    trials: Trials
    speed: Speed
    interrupted: bool
    reclassed: "Reclassed | None" = None


def gather(facts: Facts, gate: Gate) -> dict[str, Any]:
    """The report as JSON data; docs/report.md describes each key."""
    trials, trial, speed = facts.trials, facts.speed.trial, facts.speed
    limits = contract(facts)
    return {
        "verdict": "met" if all(limit["holds"] for limit in limits.values()) else "infeasible",
        "contract": limits,
        "broken": broken(facts, limits),
        "interrupted": facts.interrupted,
        **_source(facts),
        **_scores(facts),
        **_sides(facts, gate),
        "runtime": trials.target.runtime,
        "file": file_name(trial.export.path),
        "baseline_runtime": speed.against,
        "threads": trials.target.threads,
        "batch": trials.target.batch,
        "input_shapes": [list(value.shape) for value in trials.timed_on.inputs],
        "seed": facts.recipe.seed,
        "device": device(),
        "operators": gate.operators,
        "parity_max_abs": gate.parity.max_abs,
        "parity": gate.parity.to_dict(),
        "speedup": 1 / speed.ratio,
        "speedup_interval": [1 / end for end in reversed(speed.ratio_interval)],
        "latency_noise_ratio": speed.timing.noise_ratio,
        "faster": speed.is_faster,
        "notes": notes(facts),
        "layers": layers(facts, gate),
        "widths": widths(facts),
        "zeros": zeros(facts),
        "candidates": candidates(facts),
        "plan": trial.plan.to_dict(),
        "steps": trials.run.ledger.entries,
        "seconds": trials.run.ledger.seconds(),
        "peak_memory_bytes": peak_bytes(),
        "versions": versions(),
    }


def contract(facts: Facts) -> dict[str, dict[str, Any]]:
    """Each limit the user set, what was measured, and whether it holds."""
    measured = {
        "max_drop": facts.speed.trial.comparison.drop,
        "size_bytes": facts.speed.trial.export.size_bytes,
        "latency_ms": facts.speed.timing.latencies["compressed"].p50_ms,
    }
    limits = {name: value for name, value in asdict(facts.budget).items() if value is not None}
    return {
        name: {"limit": limit, "measured": measured[name], "holds": _holds(measured[name], limit)}
        for name, limit in limits.items()
    }


def _holds(measured: float, limit: float) -> bool:
    return measured <= limit + ROUNDING


def broken(facts: Facts, limits: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The limits that do not hold, each with its number and the nearest that was found, in a sentence."""
    trials = facts.trials.seen.values()
    nearest = {
        "max_drop": ("drop", min(trial.comparison.drop for trial in trials)),
        "size_bytes": ("size in bytes", min(trial.export.size_bytes for trial in trials)),
        "latency_ms": ("latency in ms", limits.get("latency_ms", {}).get("measured", 0.0)),
    }
    return [
        {
            "constraint": name,
            "limit": limit["limit"],
            "measured": limit["measured"],
            "why": f"The {nearest[name][0]} is {limit['measured']:.6g}, above the limit of {limit['limit']:.6g}; "
            f"the least of any file tried is {nearest[name][1]:.6g}.",
        }
        for name, limit in limits.items()
        if not limit["holds"]
    ]


def notes(facts: Facts) -> list[str]:
    """What a reader must know beside the figures."""
    said = []
    speed, data = facts.speed, facts.trials.data
    low, high = speed.ratio_interval
    if speed.slower_parts == ("all",):
        said.append("int8 computation was not faster here; weights are stored in int8 and computed in float.")
    elif speed.slower_parts:
        said.append(f"int8 was slower than float for: {', '.join(speed.slower_parts)}. Those parts compute in float.")
    if not speed.is_faster:
        where = "the same runtime" if speed.against in ("", facts.trials.target.runtime) else speed.against
        said.append(f"Not faster than float32 in {where}: time ratio {speed.ratio:.2f} ({low:.2f} to {high:.2f}).")
    if data.train is None:
        said.append("The data has one split: activation ranges were calibrated on the test examples' inputs.")
    said += [*data.notes, *_class_notes(facts), *_sparse_notes(facts)]
    if facts.interrupted:
        said.append("The run was interrupted; this is the best result until then.")
    return said


def _class_notes(facts: Facts) -> list[str]:
    """What a user cannot have back, and why."""
    found, origin = facts.reclassed, facts.trials.model.origin
    if found is None or not found.reason:
        return []
    if found.module is None:
        return [f"The network in torch is a graph, not an instance of its class: {found.reason}"]
    return [f"Not written for from_pretrained: {found.reason}"] if origin.kind == "huggingface" else []


def layers(facts: Facts, gate: Gate) -> list[dict[str, Any]]:
    """One entry a site that has a cost or a spec."""
    plan, sqnr = facts.speed.trial.plan, gate.layers
    every = costs(facts.graph.module, facts.trials.model.example)
    shown = [(cost, cost.site) for cost in every if cost.params or cost.site in plan]
    return [{**_layer(facts, cost, sqnr.get(site)), **_alone(facts, cost), "why": _why(facts, site)} for cost, site in shown]


def widths(facts: Facts) -> list[dict[str, Any]]:
    """Channels of each group before the first and after the last pruning step."""
    found: dict[str, dict[str, Any]] = {}
    for entry in facts.trials.run.ledger.entries:
        for name, (before, after) in entry.get("widths", {}).items():
            found.setdefault(name, {"group": name, "before": before})["after"] = after
    return list(found.values())


def zeros(facts: Facts) -> list[dict[str, Any]]:
    """One entry a tensor that a step made sparse, counted in the weights that the chosen network computes with."""
    compressed = facts.speed.trial.compressed
    found = zeros_in(compressed, facts.trials.prepared.graph)
    patterns = compressed.model.sparse
    return [
        {"tensor": name, "pattern": patterns[name], "weights": one.where.numel(), "zeros": one.zeros}
        for name, one in found.items()
    ]


def _sparse_notes(facts: Facts) -> list[str]:
    """What zeros bring, and what not."""
    trials, trial = facts.trials, facts.speed.trial
    if not trial.compressed.model.sparse:
        return []
    before, after = (zipped_bytes(path) for path in (trials.original.path, trial.export.path))
    return [
        f"{trials.target.runtime} computes with zeros as with any number: they make the file smaller to store, not the "
        f"network faster. Zipped, it takes {after:,} bytes, the original {before:,}; the time ratio of the two is "
        f"{facts.speed.ratio:.2f}."
    ]


def _why(facts: Facts, site: str) -> str | None:
    """Why a site that could be int8 is not."""
    spec, could = facts.speed.trial.plan.spec(site), facts.trials.prepared.proposals()[0].spec(site)
    if type(could) is not Quant or spec == could:
        return None
    if type(pinned(Plan({site: could}), facts.recipe.sites)[site]) is Keep:
        return "pinned by the recipe"
    if type(spec) is Keep:
        return "in int8 it cost too much of the metric"
    return "int8 computation was not faster" if facts.speed.slower_parts else None


def _layer(facts: Facts, cost: LayerCost, sqnr_db: float | None) -> dict[str, Any]:
    spec, known = facts.speed.trial.plan.spec(cost.site), facts.speed.trial.compressed.sites.get(cost.site, {})
    # int8 with a scale a row: scales are below a percent and are counted in the file's size, not here
    after = cost.weight_bytes if type(spec) is Keep else cost.params * stored_bits(spec) // 8
    if "stored_bytes" in known:
        num_weights = round(8 * known["stored_bytes"] / known["bits_per_weight"])
        after = int(known["stored_bytes"]) + cost.weight_bytes * (cost.params - num_weights) // cost.params
    return {
        "site": cost.site,
        "kind": cost.kind,
        "spec": label(spec),
        "params": cost.params,
        "macs": cost.macs,
        "weight_bytes_before": cost.weight_bytes,
        "weight_bytes_after": after,
        "error_sqnr_db": sqnr_db,
        "keep_cost_bytes": cost.weight_bytes - after,
        **({"bits_per_weight": known["bits_per_weight"]} if "bits_per_weight" in known else {}),
        **({"runs": _runs(facts, cost.site)} if is_for_weights_alone(spec) else {}),
    }


def _runs(facts: Facts, site: str) -> str:
    """ "computed" where the runtime's operator reads the few bits, "stored" where it makes int8 or floats of them at load."""
    weights = next((one.weights for one in facts.graph.sites if one.name == site), ())
    return "computed" if facts.speed.trial.export.computed.intersection(weights) else "stored"


def _alone(facts: Facts, cost: LayerCost) -> dict[str, Any]:
    """What is known of the layer by itself: its weight's own noise, what it alone does to the network at the width it has,
    and what the next wider code would cost.
    """
    trial, bits = facts.speed.trial, stored_bits(facts.speed.trial.plan.spec(cost.site))
    weight_sqnr_db = trial.compressed.sites.get(cost.site, {}).get("weight_sqnr_db")
    known = {} if weight_sqnr_db is None else {"weight_sqnr_db": weight_sqnr_db}
    if bits < FULL_BITS:
        known["wider_cost_bytes"] = cost.params * bits // 8
    effect = facts.trials.effects.get(cost.site, {}).get(bits)
    return (
        known
        if effect is None
        else {**known, "noise_alone": effect.noise, "kl_alone": effect.kl, "loss_rise_alone": effect.loss_rise}
    )


def candidates(facts: Facts) -> list[dict[str, Any]]:
    """Every file that was made and scored."""
    chosen = facts.speed.trial.plan.key()
    return [
        {
            "name": trial.name,
            "score": trial.comparison.compressed_score,
            "drop": trial.comparison.drop,
            "size_bytes": trial.export.size_bytes,
            "chosen": key == chosen,
        }
        for key, trial in facts.trials.seen.items()
    ]


def _source(facts: Facts) -> dict[str, Any]:
    origin, data = facts.trials.model.origin, facts.trials.data
    return {
        "model": {"source": origin.source, "kind": origin.kind, "task": data.task},
        "data": {
            "source": data.source,
            "digest": data.digest,
            "num_test": len(data.test),
            "num_calibration": len(data.calibration),
            "labels": list(data.labels),
            "bad_rows": [asdict(row) for row in data.bad_rows],
        },
        "metric": data.metric,
    }


def _scores(facts: Facts) -> dict[str, Any]:
    comparison, tolerance = facts.speed.trial.comparison, facts.budget.max_drop
    decision = None
    if tolerance is not None:
        decision = {
            "answer": comparison.decides(tolerance),
            "needed_examples": comparison.needed_examples(tolerance),
            "sentence": comparison.explain(tolerance),
        }
    flips = comparison.flips
    return {
        "drop": comparison.drop,
        "drop_interval": list(comparison.drop_interval),
        "drop_method": comparison.method,
        "num_examples": comparison.num_examples,
        "mean_kl": comparison.mean_kl,
        "decision": decision,
        "flips": {
            "count": flips.num_changed,
            "per_class": flips.classes,
            "examples": [_change(facts, change, number) for number, change in enumerate(flips.examples)],
        },
    }


def _change(facts: Facts, change: Change, number: int) -> dict[str, Any]:
    example = facts.trials.data.test.describe(change.index)
    image = base64.b64encode(example.image_png).decode() if number < _MOST_IMAGES else ""
    before, after = (
        _confidence(facts, one.values, change.index) for one in (facts.trials.baseline, facts.speed.trial.predictions)
    )
    return {
        "index": change.index,
        "title": example.title,
        "text": example.text,
        "image_png_base64": image,
        "target": change.target,
        "before": change.original,
        "after": change.compressed,
        "confidence_before": before,
        "confidence_after": after,
    }


def _confidence(facts: Facts, values: Any, index: int) -> float | None:
    if not facts.trials.baseline.are_classes:
        return None
    row = int(np.flatnonzero(facts.trials.baseline.index == index)[0])
    return float(np.exp(log_softmax(values[row : row + 1])).max())


def _sides(facts: Facts, gate: Gate) -> dict[str, Any]:
    trials, trial, timing = facts.trials, facts.speed.trial, facts.speed.timing
    sides = {}
    for name, timed, score, size, peak, graph in (
        ("baseline", ORIGINAL, trial.comparison.original_score, trials.original.size_bytes, gate.peaks[0], facts.original),
        ("compressed", "compressed", trial.comparison.compressed_score, trial.export.size_bytes, gate.peaks[1], facts.graph),
    ):
        every = costs(graph.module, trials.model.example)
        latency = timing.latencies[timed]
        sides[name] = {
            "score": score,
            "size_bytes": size,
            "latency_ms_p50": latency.p50_ms,
            "latency_ms_p95": latency.p95_ms,
            "latency_count": latency.count,
            "peak_memory_bytes": peak,
            "params": sum(cost.params for cost in every),
            "macs": sum(cost.macs for cost in every),
        }
    return sides


def device() -> str:
    """The processor's name, as the system gives it, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere platform's name stands
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of everything that shapes the file."""
    names = ("lighten", "torch", "torchao", "onnx", "onnxscript", "numpy", *RUNTIMES.values())
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in names:
        try:
            found.setdefault(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue  # a plain checkout has no metadata of its own
    return found
