"""The recipe: ordered steps, each a method's name and its knobs; YAML for people, the same object in Python."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lighten.core.distributed import Distributed
from lighten.core.errors import InputError
from lighten.core.plan import Plan

_KEYS = ("steps", "sites", "seed", "plan", "distributed")
_LARGEST_SEED = 2**63 - 1  # what every generator takes


@dataclass(frozen=True)
class Step:
    """method: a catalog key. knobs: its fields, plain data."""

    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """steps: in order. sites: pattern (fnmatch) -> "keep", the user's pins. plan: a resolved plan; when given, nothing is
    searched and the run replays it. seed: of every random choice, from 0 to 2^63 - 1. Raises InputError for another.
    distributed: how the run is spread over processes; None for as many replicas as were started.
    """

    steps: tuple[Step, ...] = (Step("quantize", {"bits": 8}),)
    sites: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    plan: Plan | None = None
    distributed: Distributed | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed <= _LARGEST_SEED:
            raise InputError(f"seed must be an integer >= 0 and below 2^63. Got {self.seed!r}.")

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back to an equal recipe."""
        fields: dict[str, Any] = {"steps": [{step.method: dict(step.knobs)} for step in self.steps]}
        fields |= {"sites": dict(self.sites)} if self.sites else {}
        fields |= {"plan": self.plan.to_dict()} if self.plan is not None else {}
        fields |= {"distributed": self.distributed.to_dict()} if self.distributed is not None else {}
        return yaml.safe_dump({**fields, "seed": self.seed}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Raises InputError with the nearest known name for an unknown key, and on anything that is not a recipe."""
        try:
            fields = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"The recipe is not valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(fields, dict):
            raise InputError(f"A recipe is a mapping with `steps`. Got {type(fields).__name__}.")
        for key in fields:
            refuse_unknown("recipe key", str(key), _KEYS)
        plan = fields.get("plan")
        if plan is not None and not isinstance(plan, dict):
            raise InputError(f"plan must map sites to specs. Got {plan!r}.")
        distributed = fields.get("distributed")
        if distributed is not None and not isinstance(distributed, dict):
            raise InputError(f"distributed must be a mapping, e.g. `{{data: 2}}`. Got {distributed!r}.")
        return cls(
            steps=tuple(_step(entry) for entry in _list(fields.get("steps", [{"quantize": {"bits": 8}}]))),
            sites=_sites(fields.get("sites") or {}),
            seed=fields.get("seed", 0),
            plan=None if plan is None else Plan.from_dict(plan),
            distributed=None if distributed is None else Distributed.from_dict(distributed),
        )

    @classmethod
    def from_file(cls, path: Path) -> "Recipe":
        """Reads a YAML file. Raises InputError when it cannot be read or is not a recipe."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read the recipe {path}: {error}.") from error
        return cls.from_yaml(text)


def refuse_unknown(what: str, name: str, known: Iterable[str]) -> None:
    """Raises InputError naming the nearest of `known` when `name` is not among them."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
    raise InputError(f"Unknown {what} {name!r}.", hint=hint)


def _list(steps: Any) -> list[Any]:
    if not isinstance(steps, list) or not steps:
        raise InputError(f"steps must be a list with at least one step. Got {steps!r}.")
    return steps


def _step(entry: Any) -> Step:
    if isinstance(entry, str):
        return Step(entry)
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError(f"A step is one method's name and its knobs, e.g. `quantize: {{bits: 8}}`. Got {entry!r}.")
    method, knobs = next(iter(entry.items()))
    if knobs is not None and not isinstance(knobs, dict):
        raise InputError(f"The knobs of {method!r} must be a mapping. Got {knobs!r}.")
    return Step(str(method), {str(key): value for key, value in (knobs or {}).items()})


def _sites(sites: Any) -> dict[str, str]:
    if not isinstance(sites, dict) or any(value != "keep" for value in sites.values()):
        raise InputError(f"sites maps a name or pattern to `keep`. Got {sites!r}.")
    return {str(pattern): "keep" for pattern in sites}
