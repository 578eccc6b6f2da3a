"""Progress with the time left: a bar on a terminal, a line now and then elsewhere. Always on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lighten.core.run import What

Item = TypeVar("Item")
_LINE_SECONDS = 10.0


class Bar:
    """core.run.Progress for a terminal, drawn by rich."""

    def track(self, items: Iterable[Item], *, what: What, total: int) -> Iterator[Item]:
        """Yields `items` behind a bar that disappears when it is done."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(_text(what), total=total)
            for item in items:
                yield item
                progress.update(task, advance=1, description=_text(what))

    def say(self, line: str) -> None:
        """One line of news."""
        print(line, file=sys.stderr)


class Lines:
    """core.run.Progress for a log file: one line a job, and one every ten seconds of it."""

    def track(self, items: Iterable[Item], *, what: What, total: int) -> Iterator[Item]:
        """Yields `items`; says how far it is and how long it still takes."""
        began = said = time.monotonic()
        for number, item in enumerate(items):
            now = time.monotonic()
            if number and now - said > _LINE_SECONDS:
                left = (now - began) / number * (total - number)
                self.say(f"{_text(what)}: {number} of {total}, {left:.0f} s left")
                said = now
            yield item
        self.say(f"{_text(what)}: {total} in {time.monotonic() - began:.1f} s")

    def say(self, line: str) -> None:
        """One line of news."""
        print(line, file=sys.stderr)


def _text(what: What) -> str:
    return what if isinstance(what, str) else what()


def progress_for(*, quiet: bool) -> "Bar | Lines | None":
    """None when quiet, a bar on a terminal, lines elsewhere."""
    if quiet:
        return None
    return Bar() if sys.stderr.isatty() else Lines()
