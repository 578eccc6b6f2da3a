"""Standard output carries the result and nothing else, so that it can be piped."""

import errno
import json
import os
from collections.abc import Callable
from typing import Any, TextIO

from lighten.core.errors import InputError

Show = Callable[[str], None]
"""Prints a command's result."""


def as_json(value: Any) -> str:
    """JSON that every parser takes, in ASCII. Numbers that are not finite become null, as in report.json."""
    from lighten.report.write import encode

    return json.dumps(json.loads(encode(value)), indent=2)


def show(text: str, stream: TextIO) -> None:
    """Prints and flushes. What the stream's encoding has no sign for is written as an escape; a reader that has gone, as in
    `| head`, has seen enough. Raises InputError when the text cannot be written, for instance into a file on a full disk.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        _discard(stream)
        if error.errno != errno.EPIPE:
            raise InputError(f"Cannot write to standard output: {error.strerror}.") from error


def _discard(stream: TextIO) -> None:
    """Sends what the stream still holds nowhere: the interpreter would fail on it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
