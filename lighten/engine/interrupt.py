"""Ctrl-C while a result is being finished: it ends what can be left out, never what is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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


@contextmanager
def deferred(is_on: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises nothing in the block, whose value tells whether it was pressed: ranks that wait for each other must stop at
    the same place. What nobody asked about is raised behind the block. Only in the main thread, and only when `is_on`.
    """
    asked: list[bool] = []
    if not is_on or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def take(number: int, frame: Any) -> None:
        del number, frame
        asked.append(False)

    def is_asked() -> bool:
        asked[:] = [True] * len(asked)
        return bool(asked)

    before = signal.signal(signal.SIGINT, take)
    try:
        yield is_asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked and not all(asked):
        raise KeyboardInterrupt
