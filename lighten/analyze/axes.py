"""The algebra of axes: what the positions along one dimension of a tensor are made of.

A dimension starts as one atom. Later uses show what it is: the same as another dimension (unify), a product in row-major
order (heads x width, after a view), or a sum of parts that follow one another (a concatenation, after a slice). An atom that
turns out to be more is linked to what it is, and every dimension that holds it sees the change: union-find (Tarjan 1975,
doi:10.1145/321879.321884) over trees instead of elements.

Atoms that are fixed carry the reason. Layouts without a common refinement (6 x 4 against 4 x 6) are a Misfit, which fixes
both: a dimension may be declared fixed needlessly, never free wrongly.

Sizes are integers, or the symbolic expressions of torch for dynamic dimensions, which are always fixed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ATOM, PRODUCT, SUM = "atom", "product", "sum"
DYNAMIC = "is dynamic"
Size = Any  # int, or a sympy expression of torch's dynamic shapes


class Misfit(Exception):
    """Two layouts of the same positions have no common refinement."""


@dataclass(eq=False, slots=True)
class Axis:
    """joint: how `parts` make it. reason: why an atom cannot be cut, "" while it can. link: what an atom turned out to be."""

    size: Size
    joint: str = ATOM
    parts: tuple["Axis", ...] = ()
    reason: str = ""
    link: "Axis | None" = field(default=None, repr=False)


def atom(size: Size, reason: str = "") -> Axis:
    """A fresh axis of which nothing is known; of size 1 it has no choice to offer, and is the empty product."""
    if isinstance(size, int):
        return Axis(size, reason=reason) if size != 1 else Axis(1, PRODUCT)
    return Axis(size, reason=reason or DYNAMIC)


def product(parts: Iterable[Axis]) -> Axis:
    """Row-major: the last part varies fastest. A sum in front is multiplied out, since (a + b) x c = a x c + b x c."""
    factors: list[Axis] = []
    for part in parts:
        factors += part.parts if part.joint == PRODUCT else [part]
    if len(factors) == 1:
        return factors[0]
    if factors and factors[0].joint == SUM:
        return total(product((term, *factors[1:])) for term in factors[0].parts)
    size: Size = 1
    for factor in factors:
        size = size * factor.size
    return Axis(size, PRODUCT, tuple(factors))


def total(parts: Iterable[Axis]) -> Axis:
    """One part after another: a concatenation."""
    terms: list[Axis] = []
    for part in parts:
        terms += part.parts if part.joint == SUM else [part]
    terms = [term for term in terms if term.size != 0]
    if len(terms) == 1:
        return terms[0]
    return Axis(sum((term.size for term in terms), 0), SUM, tuple(terms))


def normal(axis: Axis) -> Axis:
    """What the axis is known to be by now: no links, no product in a product, no sum in a sum or at the front of a product."""
    if axis.joint == ATOM:
        return _follow(axis)
    make = product if axis.joint == PRODUCT else total
    return make([normal(part) for part in axis.parts])


def atoms(axis: Axis) -> Iterator[Axis]:
    """The atoms of its normal form, from left to right, repeats included."""
    axis = normal(axis)
    if axis.joint == ATOM:
        yield axis
    for part in axis.parts:
        yield from atoms(part)


def fix(axis: Axis, reason: str) -> None:
    """Declares that no part of it can be cut; an earlier reason stays."""
    for part in atoms(axis):
        part.reason = part.reason or reason


def is_fixed(axis: Axis) -> bool:
    """Whether none of its atoms can be cut."""
    return all(part.reason for part in atoms(axis))


def reason_of(axis: Axis) -> str:
    """Why it cannot be cut, of the first of its atoms that says so."""
    return next((part.reason for part in atoms(axis) if part.reason), "is taken apart position by position")


def unify(left: Axis, right: Axis, reason: str) -> None:
    """The two are the same positions from now on. Where their layouts do not fit, both are fixed for `reason`."""
    try:
        _align(normal(left), normal(right))
    except Misfit:
        fix(left, reason)
        fix(right, reason)


def take(axis: Axis, start: int, stop: int) -> Axis:
    """The positions from start up to stop. Raises Misfit where they cut through the inside of a product."""
    axis = normal(axis)
    if (start, stop) == (0, axis.size):
        return axis
    if not isinstance(axis.size, int) or is_fixed(axis):
        return atom(stop - start, reason_of(axis))
    if axis.joint == ATOM:
        pieces = [atom(size) for size in (start, stop - start, axis.size - stop)]
        _become(axis, total(pieces))
        return pieces[1]
    if axis.joint == PRODUCT:
        inner = axis.size // axis.parts[0].size
        if start % inner or stop % inner:
            raise Misfit
        return product((take(axis.parts[0], start // inner, stop // inner), *axis.parts[1:]))
    return total(_overlaps(axis.parts, start, stop))


def split(axis: Axis, inner: Size) -> tuple[Axis, Axis]:
    """The axis as outer x inner, where the inner one has size `inner`. Raises Misfit where it cannot be seen so."""
    axis = normal(axis)
    outer = quotient(axis.size, inner)
    if outer is None:
        raise Misfit
    if inner == 1 or outer == 1:
        return (axis, atom(1)) if inner == 1 else (atom(1), axis)
    if axis.joint == ATOM:
        reason = "" if axis.reason == DYNAMIC else axis.reason
        halves = atom(outer, reason), atom(inner, reason)
        if not reason:
            _become(axis, product(halves))
        return halves
    if axis.joint == SUM:
        pairs = [split(part, inner) for part in axis.parts]
        for _, other in pairs[1:]:
            _align(normal(pairs[0][1]), normal(other))
        return total(normal(pair[0]) for pair in pairs), normal(pairs[0][1])
    return _split_product(list(axis.parts), inner)


def reshape(axes: Iterable[Axis], sizes: Iterable[Size]) -> list[Axis]:
    """The axes of a view of the same elements with other sizes. Raises Misfit."""
    waiting = list(axes)[::-1]
    return [_gather(waiting, size) for size in sizes]


def quotient(whole: Size, part: Size) -> Size | None:
    """whole / part where that is exact, None otherwise."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    ratio = whole / part
    if getattr(ratio, "is_Integer", False):
        return int(ratio)
    return ratio if ratio.as_numer_denom()[1] == 1 else None


def _follow(axis: Axis) -> Axis:
    links = []
    while axis.joint == ATOM and axis.link is not None:
        links.append(axis)
        axis = axis.link
    end = axis if axis.joint == ATOM else normal(axis)
    for link in links:
        link.link = end
    return end


def _become(axis: Axis, other: Axis) -> None:
    # a dynamic size may have factors that are not, as in batch x heads
    if axis.reason not in ("", DYNAMIC):
        fix(other, axis.reason)
    axis.link = other


def _align(left: Axis, right: Axis) -> None:
    if left is right:
        return
    if left.size != right.size:
        raise Misfit
    if ATOM in (left.joint, right.joint):
        (known, new) = (right, left) if left.joint == ATOM else (left, right)
        _become(new, known)
    elif is_fixed(left) and is_fixed(right):
        return
    elif SUM in (left.joint, right.joint):
        _align_sums(left, right)
    else:
        _align_products(left, right)


def _align_sums(left: Axis, right: Axis) -> None:
    """Walks both from the front; the longer of the two first terms is cut where the shorter one ends."""
    ours, theirs = ([*reversed(axis.parts)] if axis.joint == SUM else [axis] for axis in (left, right))
    while ours and theirs:
        one, two = normal(ours.pop()), normal(theirs.pop())
        if one.size != two.size and not (isinstance(one.size, int) and isinstance(two.size, int)):
            raise Misfit
        shared = one.size if one.size == two.size else min(one.size, two.size)
        for term, rest in ((one, ours), (two, theirs)):
            if term.size != shared:
                rest.append(take(term, shared, term.size))
        _align(normal(_front(one, shared)), normal(_front(two, shared)))


def _front(axis: Axis, size: Size) -> Axis:
    return axis if axis.size == size else take(axis, 0, size)


def _align_products(left: Axis, right: Axis) -> None:
    """Walks both from the front; the larger of the two first factors is split so that its outer part fits the smaller."""
    ours, theirs = [*reversed(left.parts)], [*reversed(right.parts)]
    while ours and theirs:
        one, two = _pop(ours), _pop(theirs)
        if one.size == two.size:
            _align(normal(one), normal(two))
            continue
        (large, small, rest) = (one, two, ours) if quotient(one.size, two.size) is not None else (two, one, theirs)
        inner_size = quotient(large.size, small.size)
        if inner_size is None:
            raise Misfit
        outer, inner = split(large, inner_size)
        rest.append(inner)
        _align(normal(outer), normal(small))


def _pop(stack: list[Axis]) -> Axis:
    """The next factor; one that turned out to be a product gives its factors one by one."""
    axis = normal(stack.pop())
    while axis.joint == PRODUCT and axis.parts:
        stack += reversed(axis.parts)
        axis = normal(stack.pop())
    return axis


def _overlaps(terms: tuple[Axis, ...], start: int, stop: int) -> Iterator[Axis]:
    offset = 0
    for term in terms:
        first, last = max(start - offset, 0), min(stop - offset, term.size)
        if first < last:
            yield take(term, first, last)
        offset += term.size


def _split_product(factors: list[Axis], inner: Size) -> tuple[Axis, Axis]:
    inside: list[Axis] = []
    while inner != 1:
        factor = normal(factors.pop())
        rest = quotient(inner, factor.size)
        if rest is not None:
            inside.append(factor)
            inner = rest
            continue
        outer_half, inner_half = split(factor, inner)
        factors.append(outer_half)
        inside.append(inner_half)
        inner = 1
    return product(normal(factor) for factor in factors), product(normal(factor) for factor in reversed(inside))


def _gather(waiting: list[Axis], size: Size) -> Axis:
    """Takes factors from the stack until their sizes multiply to `size`; the last one may have to be split."""
    found: list[Axis] = []
    while size != 1:
        if not waiting:
            raise Misfit
        factor = _pop(waiting)
        rest = quotient(size, factor.size)
        if rest is not None:
            found.append(factor)
            size = rest
            continue
        inner_size = quotient(factor.size, size)
        if inner_size is None:
            raise Misfit
        outer, inner = split(factor, inner_size)
        found.append(outer)
        waiting.append(inner)
        size = 1
    return product(normal(factor) for factor in found)
