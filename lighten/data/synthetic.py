"""`--data synthetic[:N]`: examples made from the network itself, for when none may leave its owner.

Real-valued inputs come from the running statistics of its batch norms (engine.synthesize), texts from a language model's own
expectations (engine.sampling). A network with neither keeps no record of what its inputs were, and is refused.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lighten.core.data import Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.data.iterable import load_iterable

SYNTHETIC = "synthetic"
_INPUTS, _TEXTS = 256, 32
_FEWEST = 16  # 8 to calibrate on, 8 to score on
_TOKENS = 64
_REAL = "Give real inputs, or batches from Python that look like them."


def synthetic_count(source: Any) -> int | None:
    """How many examples "synthetic" (0: as many as suit the network) or "synthetic:N" asks for; None for any other source, and
    for a file or folder of that name.

    Raises InputError where N is no whole number.
    """
    name, colon, number = str(source).partition(":")
    if not isinstance(source, str | Path) or name != SYNTHETIC or Path(source).exists():
        return None
    if not colon:
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", number) or int(number) < _FEWEST:
        raise InputError(f"{source}: N must be a whole number of {_FEWEST} or more.", hint="For instance synthetic:256.")
    return int(number)


def load_synthetic(model: Model, count: int, *, run: Run, is_divided: bool = True) -> Data:
    """`count` examples, or as many as suit the network for 0; the same for the same run.seed. is_divided: the first half is the
    training split, for calibration, and the second is scored on; else all are one split.

    Without labels: classifiers are scored by agreement with the original, language models by perplexity.
    Raises InputError where the network cannot give any.
    """
    if model.origin.kind == "saved":
        raise InputError(f"{model.origin.source} is a network that lighten wrote: its batch norms are folded.", hint=_REAL)
    if model.origin.task == "language-model":
        inputs, note = _texts(model, count or _TEXTS, run)
    else:
        inputs, note = _inputs(model, count or _INPUTS, run)
    half = len(inputs[0]) // 2
    parts = [tuple(value[:half] for value in inputs)], [tuple(value[half:] for value in inputs)]
    made = load_iterable(parts if is_divided else [inputs], model=model, source=f"{SYNTHETIC}:{len(inputs[0])}")
    scored = f"Scored on {note} That says little about real inputs: score those before you rely on it."
    notes = (scored,) if is_divided else (f"Calibrated on {note}",)
    return Data(made.source, made.task, made.metric, made.test, made.train, made.labels, (), made.digest, notes=notes)


def _texts(model: Model, count: int, run: Run) -> tuple[tuple[Tensor, ...], str]:
    from lighten.engine.sampling import sample_texts

    dims = model.origin.dynamic[0] if model.origin.dynamic else {}
    length = _TOKENS if 1 in dims else model.example[0].shape[1]
    ids_BT = _made(model, lambda: sample_texts(model.module, count, length, is_padded=1 not in dims, run=run))
    return (ids_BT, ids_BT.new_ones(ids_BT.shape)), f"texts of {length} tokens that the network wrote itself."


def _inputs(model: Model, count: int, run: Run) -> tuple[tuple[Tensor, ...], str]:
    from lighten.engine.synthesize import synthesize

    made = _made(model, lambda: synthesize(model.module, model.example, count, run=run))
    left = f"mismatch {made.mismatch:.2g}, of noise {made.beginning:.2g}"
    return made.inputs, f"inputs synthesized from the statistics of {made.num_norms} batch norms ({left})."


def _made(model: Model, make: Any) -> Any:
    try:
        return make()
    except (InputError, UnfitError) as error:
        raise InputError(f"{model.origin.source} gives no synthetic data: {error.message}", hint=error.hint or _REAL) from error
