"""The end of a run: the best file of each runtime timed anew, checked, one of them chosen, and the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lighten.core.errors import ParityError
from lighten.core.export import file_name
from lighten.engine.interrupt import insist
from lighten.gather import RUNTIMES, Facts, gather, versions
from lighten.result import Result
from lighten.search.faster import CHOSEN
from lighten.search.gate import Gate, pass_gate
from lighten.search.runtimes import Contender, best, race
from lighten.search.trials import ORIGINAL

if TYPE_CHECKING:
    from lighten.analyze.reclass import Reclassed

KEEPING = "Interrupted: keeping the best result so far."
_ROUNDS = 100
_WHY = "the best result is being checked and kept."


@dataclass(frozen=True)
class Found:
    """What the searches found. facts: one a runtime. refused: by runtime, why it has no file."""

    facts: Sequence[Facts]
    refused: Mapping[str, str]


def finish(found: Found, *, reclassed: "Callable[[], Reclassed | None]") -> Result:
    """The chosen file, reported. An interrupt leaves out the timing, never the check."""
    first = found.facts[0]
    progress = first.trials.run.progress
    contenders, interrupted = _timed(found.facts)
    (gates, refused), stopped = insist(lambda: _gates(contenders), progress=progress, why=_WHY)
    contenders = [one for one in contenders if one.runtime in gates]
    chosen = best(contenders, first.budget)
    kept, again = insist(reclassed, progress=progress, why=_WHY)
    facts = replace(next(one for one in found.facts if one.trials is chosen.trials), speed=chosen.speed)
    facts = replace(facts, interrupted=interrupted or stopped or again, reclassed=kept)
    rows = [_row(one, gates[one.runtime], is_recommended=one is chosen) for one in contenders]
    rows += [{"runtime": runtime, "why": why} for runtime, why in {**found.refused, **refused}.items()]
    report, _ = insist(lambda: gather(facts, gates[chosen.runtime]), progress=progress, why=_WHY)
    return _result(facts, report | {"runtimes": rows}, contenders)


def _row(one: Contender, gate: Gate, *, is_recommended: bool) -> dict[str, Any]:
    """One runtime's line of the report: its file beside its own float32 file, all timed in one run."""
    trials, trial, latency = one.trials, one.speed.trial, one.speed.timing.latencies[CHOSEN]
    original_ms = one.original_ms or (one.speed.timing.latencies[ORIGINAL].p50_ms, one.speed.timing.latencies[ORIGINAL].p95_ms)
    return {
        "runtime": one.runtime,
        "version": versions().get(RUNTIMES.get(one.runtime, one.runtime)),
        "files": {file_name(path): path.stat().st_size for path in trial.export.files},
        "plan": trial.name,
        "size_bytes": trial.export.size_bytes,
        "latency_ms_p50": latency.p50_ms,
        "latency_ms_p95": latency.p95_ms,
        "score": trial.comparison.compressed_score,
        "drop": trial.comparison.drop,
        "parity": gate.parity.to_dict(),
        "operators": gate.operators,
        "peak_memory_bytes": gate.peaks[1],
        "original": {
            "score": trial.comparison.original_score,
            "size_bytes": trials.original.size_bytes,
            "latency_ms_p50": original_ms[0],
            "latency_ms_p95": original_ms[1],
            "peak_memory_bytes": gate.peaks[0],
        },
        "recommended": is_recommended,
    }


def _timed(facts: Sequence[Facts]) -> tuple[list[Contender], bool]:
    """Timed anew, as the best of several timings is too good by luck; and whether the user has cut the work short."""
    contenders = [Contender(one.trials, one.speed) for one in facts]
    if any(one.interrupted for one in facts):
        return contenders, True
    try:
        return race(contenders, rounds=_ROUNDS), False
    except KeyboardInterrupt:
        facts[0].trials.run.progress.say(KEEPING)
        return contenders, True


def _gates(contenders: Sequence[Contender]) -> tuple[dict[str, Gate], dict[str, str]]:
    """By runtime; and why one has failed, where another has not."""
    gates: dict[str, Gate] = {}
    refused: dict[str, ParityError] = {}
    for one in contenders:
        try:
            gates[one.runtime] = pass_gate(one.trials, one.speed.trial)
        except ParityError as error:
            refused[one.runtime] = error
    if not gates:
        raise next(iter(refused.values()))
    return gates, {runtime: error.message for runtime, error in refused.items()}


def _result(facts: Facts, report: dict[str, Any], contenders: Sequence[Contender]) -> Result:
    recipe, trial = facts.recipe, facts.speed.trial
    replay = replace(recipe, plan=trial.plan)
    others = {
        file_name(path): path.read_bytes()
        for one in contenders
        for path in one.speed.trial.export.files
        if path != trial.export.path
    }
    return Result(report, trial.compressed, replay, trial.export.path.read_bytes(), facts.reclassed, others)
