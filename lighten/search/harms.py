"""What each layer's widths cost the network, added up, and the widths that cost least, exactly: for bits, operations or time.

Dimension key: L layers, N options of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lighten.core.errors import UnfitError
from lighten.ops.allocate import Allocation, allocate

_NANOSECONDS = 1e9


@dataclass(frozen=True)
class Harms:
    """weights: number by site. widths: bits that a weight may have, the widest first. alone: by site, the harm of quantizing it
    alone at each of them.
    """

    weights: Mapping[str, int]
    widths: Sequence[int]
    alone: Mapping[str, Sequence[float]]

    def within(self, room_bits: int, *, but: Mapping[str, int] | None = None) -> tuple[dict[str, int], Allocation]:
        """The widths of least total harm in the room. but: a width that a site must not have."""
        allowed = {site: [bits for bits in self.widths if bits != (but or {}).get(site)] for site in self.weights}
        harms = [[self.alone[site][self.widths.index(bits)] for bits in widths] for site, widths in allowed.items()]
        costs = [[self.weights[site] * bits for bits in widths] for site, widths in allowed.items()]
        found = allocate(harms, costs, room_bits)
        return {site: allowed[site][option] for site, option in zip(allowed, found.choice, strict=True)}, found

    def rivals(self, bits: Mapping[str, int], room_bits: int) -> list[dict[str, int]]:
        """The best widths in the room that differ at each site in turn, the least harm first."""
        found = [self.within(room_bits, but={site: width}) for site, width in bits.items()]
        return [widths for widths, chosen in sorted(found, key=lambda one: one[1].loss) if chosen.is_within]

    def uniform(self, room_bits: int) -> list[dict[str, int]]:
        """One width for all, the widest in the room, in a list; an empty one where none is."""
        count = sum(self.weights.values())
        fitting = [bits for bits in self.widths if count * bits <= room_bits]
        return [dict.fromkeys(self.weights, fitting[0])] if fitting else []

    def mean_bits(self, bits: Mapping[str, int]) -> float:
        """Of a weight."""
        return sum(count * bits[site] for site, count in self.weights.items()) / sum(self.weights.values())


def within_bit_operations(
    harms: Sequence[Sequence[float]], macs: Sequence[int], widths: Sequence[tuple[int, int]], *, budget: int
) -> Allocation:
    """The choice of least total harm among those of at most `budget` bit operations: multiply-accumulates times the bits of the
    weight times those of the activation (HAWQ-V3, arXiv:2011.10680).

    harms: each layer's, at each of `widths`. macs: by layer, of one example. widths: (weight, activation) bits of each option.
    """
    costs = [[count * weight * activation for weight, activation in widths] for count in macs]
    return allocate(harms, costs, budget)


def within_seconds(
    harms: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]], *, budget: float, noise: float
) -> Allocation:
    """The choice of least total harm among those that take at most `budget` seconds. seconds: measured, of each layer at each
    option, at least 0. noise: a fraction; options of one layer that differ by less are one and the same to the clock.

    Raises UnfitError where no layer has options that differ: time then says nothing about widths.
    """
    equal = [max(options) - min(options) <= noise * max(options) for options in seconds]
    if all(equal):
        raise UnfitError(
            "No layer's time differs between widths by more than the clock's noise.",
            hint="Limit the size instead: the runtime's kernels take the same time at every width.",
        )
    alike = [[sum(one) / len(one)] * len(one) if same else one for one, same in zip(seconds, equal, strict=True)]
    costs = [[round(_NANOSECONDS * value) for value in options] for options in alike]
    return allocate(harms, costs, round(_NANOSECONDS * budget))
