"""A limit on the size that 8 bits do not hold: each layer's weights get the bits at which the network loses least.

The noise that each layer alone puts on the network's output, at each width, is taken to add up, and the widths are chosen
exactly under the limit (ops.allocate). The sum of layers' errors is not the network's error, and names and scales take bytes
too, so the plan becomes a file that is scored and weighed, and a file that is still too large is tried again with less.
"""

from collections.abc import Mapping

from torch import Tensor

from lighten.core.graph import Graph
from lighten.core.method import Prepared
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Quant
from lighten.export.saturation import FULL_BITS
from lighten.ops.allocate import allocate
from lighten.search.restore import output_noise
from lighten.search.trials import Trial, Trials

WIDTHS = (FULL_BITS, 4, 2)
"""Of a weight in the file; ONNX has no others, and codes of 3 bits take 4."""
_KINDS = ("conv1d", "conv2d", "conv3d", "linear")
_TRIES = 4


def fit_size(trials: Trials, graph: Graph, start: Trial, *, limit: int, inputs: tuple[Tensor, ...]) -> Trial:
    """The first trial within `limit` bytes, else the smallest made. start: the same plan in 8 bits. inputs: a few examples."""
    weights = _weights(graph, start.plan)
    if not weights:
        return start
    noise = output_noise_by_width(trials.prepared, start.plan, weights, inputs=inputs, run=trials.run)
    fixed = start.export.size_bytes - sum(weights.values())
    best, room = start, limit - fixed
    for _ in range(_TRIES):
        costs = [[count * bits // 8 for bits in WIDTHS] for count in weights.values()]
        chosen = allocate([noise[site] for site in weights], costs, room)
        specs = {site: WIDTHS[option] for site, option in zip(weights, chosen.choice, strict=True)}
        trial = trials.attempt(_narrowed(start.plan, specs), f"{_mean(weights, specs):.1f}-bit weights")
        best = min(best, trial, key=lambda one: one.export.size_bytes)
        excess = trial.export.size_bytes - limit
        if excess <= 0 or not chosen.is_within:
            return trial if excess <= 0 else best
        room -= excess
    return best


def output_noise_by_width(
    prepared: Prepared, plan: Plan, weights: Mapping[str, int], *, inputs: tuple[Tensor, ...], run: Run
) -> dict[str, list[float]]:
    """By site, the relative noise on the network's output with this site alone at each of WIDTHS, rounded to nearest."""
    pairs = [(site, bits) for site in weights for bits in WIDTHS]

    def measure() -> list[float]:
        tracked = run.progress.track(pairs, what="trying widths", total=len(pairs))
        alone = (_narrowed(Plan({site: plan[site]}), {site: bits}) for site, bits in tracked)
        return list(output_noise(prepared, alone, inputs=inputs))

    found = iter(run.memory.remember(f"widths-{plan.key()}", measure))
    return {site: [next(found) for _ in WIDTHS] for site in weights}


def _weights(graph: Graph, plan: Plan) -> dict[str, int]:
    """Number of weights of each site whose width may change."""
    values = dict(graph.module.named_parameters()) | dict(graph.module.named_buffers())
    sites = [site for site in graph.sites if site.kind in _KINDS and site.weights and type(plan.spec(site.name)) is Quant]
    return {site.name: values[site.weights[0]].numel() for site in sites}


def _narrowed(plan: Plan, bits: Mapping[str, int]) -> Plan:
    """Sites that get the full width keep what they have, which may be 7 bits."""
    return plan.with_widths({site: width for site, width in bits.items() if width < FULL_BITS})


def _mean(weights: Mapping[str, int], bits: Mapping[str, int]) -> float:
    return sum(weights[site] * bits[site] for site in weights) / sum(weights.values())
