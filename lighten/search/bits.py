"""Each layer's weights get the bits at which the network loses least: under a size that 8 bits do not hold, or at a mean width.

The harm of each layer alone, at each width, is taken to add up, and the widths are chosen exactly under the limit
(search.harms). Two things are then put right on the real network, since the sum of layers' errors is not the network's error,
and names and scales take bytes too: the plan becomes a file that is scored and weighed, and one that is still too large is
tried again with less; and the next best plans in the same room are carried out and judged on calibration examples
(search.rivals). The test examples choose nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lighten.analyze.cost import total
from lighten.core.graph import Graph
from lighten.core.plan import Plan
from lighten.export.saturation import FULL_BITS
from lighten.search.harms import Harms
from lighten.search.rivals import best_of_rivals
from lighten.search.sensitivity import SOLVED_ON, Answers, Trying, answers_to_judge_by, effects_alone, weights_of, with_widths
from lighten.search.trials import Trial, Trials

_TRIES = 4
_QUICK_MACS = 1e12
"""About two minutes on a core: as much may be spent on trying each layer with its codes solved for; beyond, they are rounded to
the nearest, which foretells less well which layers bear few bits."""


@dataclass(frozen=True)
class Limits:
    """size_bytes: of the file. mean_bits: of a weight, over the linear layers and convolutions that the plan quantizes. None
    leaves one open.
    """

    size_bytes: int | None = None
    mean_bits: float | None = None


def fit_widths(trials: Trials, graph: Graph, start: Trial, *, limits: Limits) -> Trial:
    """The best plan found within the limits, else the smallest file made. start: the same plan in 8 bits."""
    weights = weights_of(graph, start.plan)
    if not weights:
        return start
    answers = answers_to_judge_by(trials.prepared, trials.data)
    harms = harms_of(trials, start.plan, weights, answers=answers)
    fixed = start.export.size_bytes - sum(weights.values())
    room = int((limits.mean_bits or FULL_BITS) * sum(weights.values()))
    if limits.size_bytes is not None:
        room = min(room, 8 * (limits.size_bytes - fixed))
    best = start
    for _ in range(_TRIES):
        bits, chosen = harms.within(room)
        trial = _attempt(trials, start.plan, bits, harms)
        best = min(best, trial, key=lambda one: one.export.size_bytes)
        excess = 0 if limits.size_bytes is None else trial.export.size_bytes - limits.size_bytes
        if not chosen.is_within:
            return trial if excess <= 0 else best
        if excess <= 0:
            rival = _rival(trials, start.plan, bits, harms=harms, room=room, answers=answers)
            return trial if rival is None or _exceeds(rival, limits) else rival
        room -= 8 * excess
    return best


def harms_of(trials: Trials, plan: Plan, weights: Mapping[str, int], *, answers: Answers) -> Harms:
    """Of the widths that the target stores, each tried on one layer alone."""
    how = Trying(trials.exporter.weight_widths(), repair=_is_quick(trials, len(weights)))
    effects = effects_alone(trials.prepared, plan, weights, answers=answers, how=how, run=trials.run)
    trials.effects.update({site: dict(zip(how.widths, found, strict=True)) for site, found in effects.items()})
    return Harms(weights, how.widths, {site: [effect.harm for effect in found] for site, found in effects.items()})


def _rival(trials: Trials, plan: Plan, bits: Mapping[str, int], *, harms: Harms, room: int, answers: Answers) -> Trial | None:
    """The plan that is better than `bits` in the same room, as a file; None where none was found."""

    def judge(widths: Mapping[str, int]) -> float:
        made = with_widths(plan, widths)
        known = trials.seen.get(made.key())
        compressed = trials.prepared.realize(made) if known is None else known.compressed
        return answers.effect(compressed.graph).harm

    found = best_of_rivals([bits, *harms.uniform(room)], harms, room, judge=judge, run=trials.run)
    return None if found.bits == bits else _attempt(trials, plan, found.bits, harms)


def _attempt(trials: Trials, plan: Plan, bits: Mapping[str, int], harms: Harms) -> Trial:
    return trials.attempt(with_widths(plan, bits), f"{harms.mean_bits(bits):.1f}-bit weights")


def _exceeds(trial: Trial, limits: Limits) -> bool:
    return limits.size_bytes is not None and trial.export.size_bytes > limits.size_bytes


def _is_quick(trials: Trials, num_layers: int) -> bool:
    """Whether a pass over the examples that codes are solved on, for each layer and width, is affordable."""
    macs = total(trials.prepared.graph.module, trials.model.example).macs
    passes = num_layers * len(trials.exporter.weight_widths()) * min(SOLVED_ON, len(trials.data.calibration))
    return macs * passes <= _QUICK_MACS
