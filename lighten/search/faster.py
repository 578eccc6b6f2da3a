"""int8 is not always faster: where the file is not, parts of it go back to float, one kind of layer at a time, measured.

The last resort stores every weight in int8 and computes in float: small, and as fast as the original.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lighten.core.graph import Graph, Site
from lighten.core.plan import Plan
from lighten.evaluate.latency import Timing
from lighten.search.trials import ORIGINAL, Trial, Trials

CHOSEN = "compressed"
_LEAST_NOISE = 0.02


@dataclass(frozen=True)
class Speed:
    """A trial and its time beside the original's. slower_parts: kinds of layers that went back to float because int8 was
    slower. against: the runtime of the original that was timed, where it may be another than the trial's.
    """

    trial: Trial
    timing: Timing
    slower_parts: tuple[str, ...] = ()
    against: str = ""

    @property
    def is_faster(self) -> bool:
        """True when the whole 95 % interval of the time ratio lies below 1 by more than the noise of this run.

        noise: how far the original's own second timing was from its first, at least 2 %: what a null comparison shows on a
        quiet machine with calls this short.
        """
        noise = max(abs(self.timing.noise_ratio - 1), _LEAST_NOISE)
        return self.ratio_interval[1] < 1 - noise

    @property
    def ratio(self) -> float:
        """Median time over the original's."""
        return self.timing.latencies[CHOSEN].p50_ms / self.timing.latencies[ORIGINAL].p50_ms

    @property
    def ratio_interval(self) -> tuple[float, float]:
        """95 % interval of `ratio`."""
        return self.timing.ratio_interval(CHOSEN, ORIGINAL)


def time_trial(trials: Trials, trial: Trial, *, rounds: int = 60) -> Speed:
    """The trial's file beside the original, interleaved."""
    return Speed(trial, trials.time({CHOSEN: trial.export.path}, rounds=rounds))


def make_faster(trials: Trials, graph: Graph, start: Speed, *, holds: Callable[[Trial], bool]) -> Speed:
    """`start` when it is faster than the original, else the fastest of its variants that still `holds`."""
    if start.is_faster or not start.trial.plan:
        return start
    best = start
    for kind in _kinds(graph, start.trial.plan):
        plan = _soften(trials, graph, best.trial.plan, kind=kind)
        if plan.key() == best.trial.plan.key():
            continue  # weights alone are quantized: no integers to take back
        variant = time_trial(trials, trials.attempt(plan, f"{kind} back to float"))
        if variant.ratio < best.ratio and holds(variant.trial):
            best = Speed(variant.trial, variant.timing, (*best.slower_parts, kind))
    if best.is_faster:
        return best
    softened = _soften(trials, graph, start.trial.plan, kind=None)
    if softened.key() == start.trial.plan.key():
        return best
    stored = trials.attempt(softened, "int8 storage, float computation")
    last = time_trial(trials, stored)
    return min((best, Speed(last.trial, last.timing, ("all",))), key=lambda speed: speed.ratio)


def _kinds(graph: Graph, plan: Plan) -> list[str]:
    sites = {site.name: site for site in graph.sites}
    return sorted({_kind(sites[name]) for name in plan})


def _kind(site: Site) -> str:
    return f"depthwise {site.kind}" if site.depthwise else site.kind


def _soften(trials: Trials, graph: Graph, plan: Plan, *, kind: str | None) -> Plan:
    """Computation in float for every site of a kind (all kinds when None); weights stay stored in int8."""
    sites = {site.name: site for site in graph.sites}
    chosen = [name for name, spec in plan.items() if (kind in (None, _kind(sites[name]))) and _computes(spec)]
    return plan.replace({name: trials.prepared.gentler(name, plan[name]) for name in chosen})


def _computes(spec: object) -> bool:
    return getattr(spec, "activations", None) is not None
