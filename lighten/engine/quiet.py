"""Silence around library code whose warnings say nothing that a user of lighten could act on."""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_STDERR = 2  # the file descriptor
_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.utils._pytree",
    "torch.fx",
    "torch.export",
    "torchao",
    "transformers",
    "onnxscript",
    "onnx_ir",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block warnings are dropped, loggers of torch, torchao, transformers and the ONNX exporter are silent, and
    nothing reaches standard error: torch.export prints the graph it has so far there before it raises.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def mute() -> Iterator[None]:
    """Inside the block the process itself writes nothing to its standard error: some runtimes log there from C++, past Python.
    What the program under test may have put in place of `sys.stderr` is not touched.
    """
    with quiet(), open(os.devnull, "w") as nowhere:
        kept = os.dup(_STDERR)
        os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
