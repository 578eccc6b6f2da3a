"""The user's pins: what must stay as it is, by name or pattern."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from lighten.core.plan import Plan
from lighten.core.recipe import refuse_unknown
from lighten.core.spec import Keep


def is_pinned(name: str, pins: Iterable[str]) -> bool:
    """A pin is a name, the path of a module above it, or a pattern with * and ?."""
    return any(fnmatchcase(name, pin) or name.startswith(f"{pin}.") for pin in pins)


def pinned(plan: Plan, pins: Mapping[str, str]) -> Plan:
    """The plan with every pinned site kept."""
    return plan.replace({name: Keep() for name in plan if is_pinned(name, pins)})


def refuse_unknown_pins(pins: Iterable[str], names: Iterable[str]) -> None:
    """Raises InputError with the nearest of `names` for a pin that matches none of them."""
    known = list(names)
    for pin in pins:
        if not any(is_pinned(name, [pin]) for name in known):
            refuse_unknown("site", pin, known)
