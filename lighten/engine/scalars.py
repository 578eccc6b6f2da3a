"""Numbers over the steps of a training, for TensorBoard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.engine.files import make_folder
from lighten.engine.quiet import quiet

Log = Callable[[str, float, int], None]
"""(name, value, step) -> None."""


@contextmanager
def scalars(folder: Path | None, *, first_step: int = 0) -> Iterator[Log]:
    """A function that writes one number into an event file in `folder`; with None, one that drops it.

    first_step: what an interrupted run wrote there from this step on is hidden. Raises InputError when tensorboard is not
    installed or the folder cannot be written.
    """
    if folder is None:
        yield lambda name, value, step: None
        return
    writer = summary_writer()(str(make_folder(folder)), purge_step=first_step)
    try:
        yield writer.add_scalar
    finally:
        writer.close()


def summary_writer() -> type[Any]:
    """tensorboard's writer. Raises InputError when it is not installed."""
    try:
        with quiet():
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard logs need tensorboard.", hint="pip install 'lighten[tensorboard]'") from error
    return SummaryWriter
