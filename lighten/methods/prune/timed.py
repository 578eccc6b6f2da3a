"""Terms of a cut that are measured on the target, not assumed.

Multiply-accumulates promise time; kernels that work in blocks, and operators that only move memory, keep some of it. So cut
networks are written and timed, beside the intact one, before any is chosen (as NetAdapt does, Yang et al. 2018,
arXiv:1804.03230, one layer at a time): coarser widths where they are faster, the multiply-accumulates that a latency takes,
and groups whose cut gains nothing left whole. Timed are widths alone: which channels go does not matter to a kernel.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import lcm
from typing import Any

from torch import Tensor

from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model
from lighten.core.run import Clock, Progress, Times
from lighten.engine.checkpoint import digest, snapshot
from lighten.methods.prune.amount import Amount
from lighten.methods.prune.budget import Choice, Terms, restored, widths
from lighten.ops.groups import Selection

_MULTIPLES = (1, 8, 16, 32)  # of channels: vectors and blocks of the kernels there are
_HALVINGS = 7  # of the share: to less than a hundredth
_MOST_UNITS = 8
_SECONDS = 600.0  # no further candidate is built after it
_INTACT, _CUT = "intact", "cut"
Kept = Mapping[str, Tensor]


@dataclass
class Bench:
    """Where cuts of one network are timed. build: the network with only the kept channels. macs: of given counts. probes: every
    cut that was timed, for the ledger, JSON data.
    """

    intact: Model
    build: Callable[[Kept], Model]
    macs: Amount
    clock: Clock
    progress: Progress
    probes: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    _built: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._digest = digest(snapshot(self.intact.module))[:16]

    def time(self, cuts: Mapping[str, Kept]) -> Times:
        """The cuts beside the intact network, which is called "intact"."""
        keys = {name: f"{self._digest} {sorted(widths(kept).items())}" for name, kept in cuts.items()}
        self._built |= {*keys.values()}
        builds = {keys[name]: partial(self.build, kept) for name, kept in cuts.items()}
        measured = self.clock({self._digest: lambda: self.intact, **builds})
        named = {_INTACT: self._digest, **keys}
        times = Times({name: measured.seconds[key] for name, key in named.items()}, measured.noise)
        self.probes += [self._probe(name, kept, times) for name, kept in cuts.items()]
        return times

    def share(self, selection: Selection) -> float:
        """Of the multiply-accumulates, that stays."""
        return self.macs(widths(selection.kept)) / self.macs.total

    def _probe(self, name: str, kept: Kept, times: Times) -> dict[str, Any]:
        share, ratio = self.macs(widths(kept)) / self.macs.total, times.ratio(name, _INTACT)
        return {"cut": name, "macs": round(share, 4), "latency": round(ratio, 4), "noise": round(times.noise, 4)}

    def num_affordable(self, most: int) -> int:
        """How many more candidates the time allows, judging by those so far."""
        spent = time.perf_counter() - self.started
        each = spent / max(len(self._built), 1)
        return max(0, min(most, int((_SECONDS - spent) / each))) if each else most


def timed_terms(choice: Choice, terms: Terms, bench: Bench, *, latency: float | None, is_for_speed: bool) -> Terms:
    """The terms as measuring them leaves them. latency: the fraction of the intact network's time that may stay, else None;
    then terms.budget is only where the search begins. is_for_speed: whether a cut that gains no time is worth nothing.

    Raises InputError when the latency cannot be reached, UnfitError when no cut is faster than the intact network and
    is_for_speed.
    """
    terms = _grain(choice, terms, bench)
    if latency is not None:
        terms = _reach(choice, terms, bench, latency=latency)
    cut = choice.select(terms)
    terms, ratio = _without_useless(choice, terms, bench, cut=cut, keeps_budget=latency is None)
    if ratio < 1:
        return terms
    said = f"The cut network takes {ratio:.2f} of the intact one's time on the target"
    if is_for_speed:
        raise UnfitError(
            f"{said}: cutting gains nothing here.", hint="Try a larger batch, a smaller budget, or only_faster: false."
        )
    bench.progress.say(f"{said}; it is only smaller.")
    return terms


def _grain(choice: Choice, terms: Terms, bench: Bench) -> Terms:
    """The finest multiple than which no coarser one saves more time for its multiply-accumulates, within the same budget."""
    multiples = dict.fromkeys(lcm(terms.round_to, multiple) for multiple in _MULTIPLES)
    every = [replace(terms, round_to=multiple) for multiple in multiples]
    cuts: dict[str, tuple[Terms, Selection]] = {}
    for one in every:
        selection = choice.select(one)
        seen = [widths(other.kept) for _, other in cuts.values()]
        if (selection.is_within or one is every[0]) and widths(selection.kept) not in seen:
            cuts[f"multiples of {one.round_to}"] = one, selection
    times = bench.time({name: selection.kept for name, (_, selection) in cuts.items()})
    best, *coarser = cuts
    for name in coarser:
        # rounded down a cut is smaller: so much less time was promised
        smaller = bench.share(cuts[best][1]) - bench.share(cuts[name][1])
        if times.ratio(name, _INTACT) < times.ratio(best, _INTACT) - smaller - times.noise:
            best = name
    return cuts[best][0]


def _reach(choice: Choice, terms: Terms, bench: Bench, *, latency: float) -> Terms:
    """The most multiply-accumulates whose cut takes at most `latency` of the intact network's time, by bisection."""
    low, high, best = 0.0, 1.0, None
    measured: dict[tuple[int, ...], float] = {}
    share = terms.budget / choice.total
    for _ in range(_HALVINGS):
        now = replace(terms, budget=share * choice.total)
        selection = choice.select(now)
        counts = tuple(widths(selection.kept).values())
        if counts not in measured:
            measured[counts] = _ratio(bench, selection)
        if measured[counts] <= latency:
            low, best = share, now
        else:
            high = share
        share = (low + high) / 2
    if best is None:
        best = replace(terms, budget=choice.least(terms))
        least = _ratio(bench, choice.select(best))
        if least > latency:
            hint = "Lower `least` or `round_to`, or cut more kinds of units."
            raise InputError(f"prune: latency {latency:g} cannot be reached; the least is {least:.3f}.", hint=hint)
    return best


def _ratio(bench: Bench, selection: Selection) -> float:
    return bench.time({_CUT: selection.kept}).ratio(_CUT, _INTACT)


def _without_useless(choice: Choice, terms: Terms, bench: Bench, *, cut: Selection, keeps_budget: bool) -> tuple[Terms, float]:
    """Without the cuts that gain no time, and what the result takes of the intact network's time.

    keeps_budget: what other groups lose in their place, as far as the limits allow; else the budget follows.
    """
    units = _units(choice, bench, cut)
    variants = {f"{label} whole": restored(cut.kept, names) for label, names in units.items()}
    times = bench.time({_CUT: cut.kept, **variants})
    before = times.ratio(_CUT, _INTACT)
    useless = sorted(
        (gain, sorted(names))
        for label, names in units.items()
        if _is_useless(gain := times.ratio(f"{label} whole", _CUT) - 1, _promise(bench, cut, names), times.noise)
    )
    given = terms
    for _, names in useless:
        more = replace(terms, whole=(*terms.whole, *names))
        if not keeps_budget:
            now = restored(choice.select(terms).kept, names)
            terms = replace(more, budget=bench.macs(widths(now)))
        elif choice.select(more).is_within:
            terms = more
    if terms == given:
        return given, before
    after = choice.select(terms)
    times = bench.time({_CUT: cut.kept, "without useless cuts": after.kept})
    if times.ratio("without useless cuts", _CUT) > 1 + times.noise:
        return given, before
    return terms, times.ratio("without useless cuts", _INTACT)


def _is_useless(gain: float, promise: float, noise: float) -> bool:
    """gain: of time, by the cut, relative; promise: of multiply-accumulates. What promises less than the noise is not judged,
    unless it is plainly slower.
    """
    return gain < -noise or (promise > 2 * noise and gain < noise)


def _promise(bench: Bench, cut: Selection, names: Collection[str]) -> float:
    counts = widths(cut.kept)
    return bench.macs({name: count for name, count in counts.items() if name not in names}) / bench.macs(counts) - 1


def _units(choice: Choice, bench: Bench, cut: Selection) -> dict[str, frozenset[str]]:
    """Sets of cut groups to judge: each alone; where there are many, those of one structure and size, and the rest, pooled."""
    changed = [name for name, kept_C in cut.kept.items() if len(kept_C) < len(choice.scores[name])]
    most = bench.num_affordable(_MOST_UNITS)
    keys: dict[str, Any] = {name: name for name in changed}
    if len(changed) > most:
        keys = {name: (choice.structures[name], len(choice.scores[name])) for name in changed}
    units: dict[Any, set[str]] = {}
    for name in changed:
        units.setdefault(keys[name], set()).add(name)
    ranked = sorted(units.values(), key=lambda names: -_promise(bench, cut, names))
    pooled = [*ranked[: most - 1], set[str]().union(*ranked[most - 1 :])] if 0 < most < len(ranked) else ranked[:most]
    return {_label(names): frozenset(names) for names in pooled}


def _label(names: set[str]) -> str:
    first = sorted(names)[0]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
