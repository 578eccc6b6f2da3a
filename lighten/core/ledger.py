"""Every change, cost and score of a run, in order; what the report draws."""

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """entries: plain dicts, each with `what` (a short verb phrase) and `seconds` since the run began."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def note(self, what: str, **facts: Any) -> None:
        """Appends an entry; `facts` must be JSON data."""
        self.entries.append({"what": what, "seconds": round(time.perf_counter() - self.started, 3), **facts})

    def seconds(self) -> float:
        """Wall-clock seconds since the run began."""
        return time.perf_counter() - self.started
