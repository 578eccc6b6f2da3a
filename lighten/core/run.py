"""What a piece of work needs from its surroundings; passed in, there is no global session."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lighten.core.ledger import Ledger

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows long work with the time left."""

    def track(self, items: Iterable[Item], *, what: str, total: int) -> Iterator[Item]:
        """Yields `items` unchanged while showing `what`."""

    def say(self, line: str) -> None:
        """One line of news."""


class Memory(Protocol):
    """Finished work that a resumed run need not repeat. Values are JSON data, or a flat dict of tensors under `tensors`."""

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The stored JSON value of `key`, else `compute()`, stored."""

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same for a flat dict of tensors."""


class Silent:
    """Progress that shows nothing."""

    def track(self, items: Iterable[Item], *, what: str, total: int) -> Iterator[Item]:
        yield from items

    def say(self, line: str) -> None:
        pass


class Forgetful:
    """Memory that keeps nothing: every key is computed."""

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        return compute()

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return compute()


@dataclass(frozen=True)
class Run:
    """seed: of every random choice. threads: torch's and the runtime's intra-op threads."""

    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=Silent)
    memory: Memory = field(default_factory=Forgetful)
    ledger: Ledger = field(default_factory=Ledger)
