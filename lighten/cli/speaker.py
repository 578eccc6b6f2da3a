"""Which of several ranks speaks: torchrun tells each its number in the environment."""

import os

from lighten.core.errors import RankError


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def number() -> int:
    """Of this rank, 0 for the only process."""
    return int(os.environ["RANK"]) if is_rank() else 0


def is_first() -> bool:
    """The first rank, or the only process."""
    return number() == 0


def speaks(error: BaseException) -> bool:
    """The first rank, unless it is the one that is gone."""
    if isinstance(error, RankError) and error.rank == 0:
        return number() == 1
    return is_first()


def may_start_again() -> bool:
    """Whether torchrun starts the ranks anew when this one fails."""
    done, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return done < most
