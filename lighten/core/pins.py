"""The user's pins: sites, by name or pattern, that must stay in float."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from lighten.core.plan import Plan
from lighten.core.recipe import refuse_unknown
from lighten.core.spec import Keep


def pinned(plan: Plan, pins: Mapping[str, str], sites: Iterable[str]) -> Plan:
    """The plan with every pinned site kept. A pin is a site's name, the path of a module above it, or a pattern with * and ?.

    Raises InputError with the nearest name when a pin matches nothing.
    """
    names = list(sites)
    kept: set[str] = set()
    for pin in pins:
        found = {name for name in names if fnmatchcase(name, pin) or name.startswith(f"{pin}.")}
        if not found:
            refuse_unknown("site", pin, names)
        kept |= found
    return plan.replace({name: Keep() for name in plan if name in kept})
