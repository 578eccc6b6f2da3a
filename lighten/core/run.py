"""What a piece of work needs from its surroundings; passed in, there is no global session."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from lighten.core.distributed import Distributed
from lighten.core.ledger import Ledger
from lighten.core.model import Model

Item = TypeVar("Item")
What = str | Callable[[], str]
"""What long work is called: a few words, or a function that gives them anew each time they are shown."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C in work that has something to show for it. result: the best so far, what the work would have returned."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Progress(Protocol):
    """Shows long work with the time left."""

    def track(self, items: Iterable[Item], *, what: What, total: int) -> Iterator[Item]:
        """Yields `items` unchanged while showing `what`."""

    def say(self, line: str) -> None:
        """One line of news."""


class Memory(Protocol):
    """Finished work that a resumed run need not repeat. Values are JSON data, or a flat dict of tensors under `tensors`."""

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The stored JSON value of `key`, else `compute()`, stored."""

    def remember_tensors(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same for a flat dict of tensors."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call on the target, measured interleaved. seconds: medians by name. noise: a fraction; two of equal speed
    differ by so much.
    """

    seconds: Mapping[str, float]
    noise: float

    def ratio(self, name: str, other: str) -> float:
        """seconds of `name` over those of `other`."""
        return self.seconds[name] / self.seconds[other]


class Clock(Protocol):
    """Times networks where they will run, as the files that they become."""

    def __call__(self, models: Mapping[str, Callable[[], Model]], /) -> Times:
        """All of them in one measurement. models: what builds each, called once for a name, whose network must stay the same.
        Raises UnfitError where one cannot be written for the target.
        """


class Ranks(Protocol):
    """The processes of a distributed run, which all make the same calls in the same order. number: of this one, from 0. world:
    how many. local: how many of them are on this machine. sent_bytes: what this one has sent so far, as counted by the
    algorithm of each exchange. Every call raises RankError where a rank is gone or does not answer in time.
    """

    number: int
    world: int
    local: int
    sent_bytes: int

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks, in place; the bytes are the same on all of them."""

    def share(self, value: Any, *, is_patient: bool = False) -> Any:
        """The first rank's value, JSON data. is_patient: the others wait for it without a limit."""

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors, on the CPU."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, JSON data, in order."""


class Alone:
    """Ranks of one process: nothing is exchanged."""

    number, world, local, sent_bytes = 0, 1, 1, 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        pass

    def share(self, value: Any, *, is_patient: bool = False) -> Any:
        return value

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Silent:
    """Progress that shows nothing."""

    def track(self, items: Iterable[Item], *, what: What, total: int) -> Iterator[Item]:
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
    """seed: of every random choice. threads: torch's and the runtime's intra-op threads. folder: where long training may keep
    checkpoints; None keeps none. tensorboard: where the curves of a training go. clock: how long a network takes on the
    target; without one nothing is timed. original: the network before any step of the recipe. ranks, distributed: the processes
    of the run, and what each of them does. `folder` and `tensorboard` are the first rank's to read and write.
    """

    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=Silent)
    memory: Memory = field(default_factory=Forgetful)
    ledger: Ledger = field(default_factory=Ledger)
    folder: Path | None = None
    tensorboard: Path | None = None
    clock: Clock | None = None
    original: Model | None = None
    ranks: Ranks = field(default_factory=Alone)
    distributed: Distributed = field(default_factory=Distributed)
