"""Which rank is at fault when an exchange fails.

Each rank leaves the number of its latest exchange in the store that torchrun holds, which costs a microsecond. When the others
do not come, the one with the smaller number is the one they wait for. torch's monitored barrier names it too, at two messages a
step through one rank.
"""

import os
from typing import Any

from torch import distributed as dist

from lighten.core.errors import RankError

_KEY = "lighten/round"
_FAULT = "lighten/fault"
RESTART = "TORCHELASTIC_RESTART_COUNT"


def report_round(number: int, round: int) -> None:
    """Rank `number` is about to make its exchange `round`."""
    dist.distributed_c10d._get_default_store().set(f"{_KEY}/{number}", str(round))


def report_fault(number: int, message: str) -> None:
    """What stopped rank `number`, for those that will wait for it."""
    dist.distributed_c10d._get_default_store().set(f"{_FAULT}/{number}", message)


def refuse_faults(number: int, world: int) -> None:
    """Raises RankError with what another rank was stopped by."""
    store = dist.distributed_c10d._get_default_store()
    for rank in range(world):
        fault = "" if rank == number else _text(store, f"{_FAULT}/{rank}")
        if fault:
            raise RankError(f"Rank {rank}: {fault}", rank=rank)


def explained(error: RuntimeError, *, number: int, world: int, round: int) -> RankError:
    """The error of a rank that was left alone in its exchange `round`."""
    hint = "The same command goes on from the last checkpoint."
    try:
        store = dist.distributed_c10d._get_default_store()
        refuse_faults(number, world)
        rounds = {rank: int(_text(store, f"{_KEY}/{rank}") or 0) for rank in range(world) if rank != number}
    except RankError as fault:
        return fault
    except RuntimeError:
        return RankError("The process that started the ranks has gone.", is_lost=True, hint=hint)
    behind = min(rounds, key=lambda rank: rounds[rank])
    is_late = "timed out" in str(error).lower()
    if rounds[behind] < round:
        what = "does not answer" if is_late else "has gone"
        at = f"it made {rounds[behind]} exchanges with the others, which wait in exchange {round}"
        return RankError(f"Rank {behind} of {world} {what}: {at}.", rank=behind, is_lost=True, hint=hint)
    return RankError("The ranks lost each other: " + " ".join(str(error).split())[:200], is_lost=True, hint=hint)


def num_restarts() -> int:
    """How often torchrun has started the ranks anew."""
    return int(os.environ.get(RESTART, "0"))


def _text(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""
