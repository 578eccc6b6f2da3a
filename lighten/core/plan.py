"""The plan: which site becomes what. Frozen, ordered, JSON there and back."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lighten.core.spec import Keep, Quant, Spec, from_dict, to_dict


class Plan(Mapping[str, Spec]):
    """An immutable mapping from site to Spec. A site that is not named is kept in float."""

    def __init__(self, specs: Mapping[str, Spec] | None = None) -> None:
        self._specs = dict(specs or {})

    def __getitem__(self, site: str) -> Spec:
        return self._specs[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return f"Plan({self._specs!r})"

    def spec(self, site: str) -> Spec:
        """The site's spec, Keep() where the plan does not name it."""
        return self._specs.get(site, Keep())

    def replace(self, changes: Mapping[str, Spec]) -> "Plan":
        """A new plan in which `changes` override this one's specs."""
        return Plan({**self._specs, **changes})

    def with_widths(self, bits: Mapping[str, int]) -> "Plan":
        """The plan with these bits for the weights of sites that it quantizes; other sites stay as they are."""
        specs = {site: spec for site, spec in self.items() if type(spec) is Quant and site in bits}
        return self.replace({site: replace(spec, weights=bits[site]) for site, spec in specs.items()})

    def key(self) -> str:
        """16 hex digits that are equal exactly when the plans are."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and YAML."""
        return {site: to_dict(spec) for site, spec in self._specs.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`. Raises InputError on an unknown spec."""
        return cls({site: from_dict(spec) for site, spec in fields.items()})
