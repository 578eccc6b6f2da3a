"""The sum of layers' harms is not the network's: the plans that promise most are carried out, and the best one stays.

From a plan of widths, each layer in turn is denied the width it has and the rest is chosen anew, exactly, in the same room:
among these rivals is the second best plan of all (the first step of Lawler 1972, Management Science 18, 401-405). The most
promising are tried as they would be for the file, all layers at once, and judged on calibration examples; where one is better,
the search goes on from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lighten.core.run import Run
from lighten.search.harms import Harms

_TRIALS = 6
_LEAST_GAIN = 0.9  # of the harm: on 500 examples, plans whose harms are closer change places on other examples
Bits = Mapping[str, int]


@dataclass(frozen=True)
class Judged:
    """bits: by site. harm: of all together, on the examples judged on."""

    bits: dict[str, int]
    harm: float


def best_of_rivals(starts: Sequence[Bits], harms: Harms, room_bits: int, *, judge: Callable[[Bits], float], run: Run) -> Judged:
    """starts: widths within the room. judge: the harm of widths for all sites, smaller is better; called once for each start
    and 6 times for others at most.

    The result is never worse than any start on the examples judged on, and takes no more than the room.
    """
    tried = {_key(start) for start in starts}
    best = min((Judged(dict(start), judge(start)) for start in starts), key=lambda one: one.harm)
    queue = harms.rivals(best.bits, room_bits)
    for _ in run.progress.track(range(_TRIALS), what="trying other widths", total=_TRIALS):
        rival = next((bits for bits in queue if _key(bits) not in tried), None)
        if rival is None:
            break
        tried.add(_key(rival))
        found = Judged(rival, judge(rival))
        changed = sum(rival[site] != best.bits[site] for site in rival)
        run.ledger.note("try widths", layers_changed=changed, harm=found.harm, least_harm=best.harm)
        if found.harm < _LEAST_GAIN * best.harm:
            best = found
            queue = harms.rivals(best.bits, room_bits)
    return best


def _key(bits: Bits) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(bits.items()))
