"""Ctrl-C while a result is being finished: it ends what can be left out, never what is done."""

from collections.abc import Callable
from typing import TypeVar

from lighten.core.run import Progress

Value = TypeVar("Value")


def insist(work: Callable[[], Value], *, progress: Progress, why: str) -> tuple[Value, bool]:
    """`work()`, and whether it was interrupted. The first KeyboardInterrupt says `why` and does the work again, the second
    goes on to the caller.

    work: may be stopped anywhere and done again from the start. Signals are left alone, so it behaves the same in a thread
    or a notebook.
    """
    try:
        return work(), False
    except KeyboardInterrupt:
        progress.say(f"Interrupted: {why} Once more stops at once.")
        return work(), True
