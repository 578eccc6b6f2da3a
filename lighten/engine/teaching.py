"""A teacher beside a loss: the student learns what another network says, with labels or without.

The losses themselves are ops.distill and ops.features. Here is which of them suits a task, on which rows of an output it is
taken, and how it is added to the task's own loss.

Dimension key: B examples, T tokens or frames, C classes, vocabulary or embedding, N rows that are compared.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.recipe import refuse_unknown
from lighten.engine.losses import Loss, first_output
from lighten.ops import distill, features

Teacher = Callable[[Batch], Tensor]
"""What a teacher says to a batch: its first output, float32, in the shape of the student's."""

_CLASSES = ("kd", "mse", "dkd", "dist", "reverse_kl", "skew_kl", "jensen_shannon")
_FITTING: Mapping[str, tuple[str, ...]] = {
    "image-classification": _CLASSES,
    "audio-classification": _CLASSES,
    "text-classification": _CLASSES,
    "classification": _CLASSES,
    "language-model": _CLASSES,
    "speech-recognition": tuple(kind for kind in _CLASSES if kind != "dkd"),  # a frame has no right class
    "regression": ("kd", "mse"),
    "sentence-similarity": ("kd", "mse", "cosine", "relations"),
}
KINDS = (*_CLASSES, "cosine", "relations")


def taught(
    loss: Loss | None,
    teacher: Teacher,
    task: str,
    *,
    kind: str = "kd",
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> Loss:
    """(1 - alpha) loss + alpha (what the student's first output lacks of the teacher's); without `loss` the second alone, which
    needs no labels. The student runs once for both.

    kind: "kd" is what suits the task: soft labels at a temperature where the output is a distribution (of an example, token or
    frame), mean squared error for regression, cosine and relative distances for embeddings. The others are named in
    ops.distill: mse, dkd, dist, reverse_kl, skew_kl, jensen_shannon for distributions; mse, cosine, relations for embeddings.
    Rows that the attention mask leaves out do not count. temperature: > 0, of distributions. alpha: in [0, 1].

    Raises InputError where the kind does not suit the task or a value is out of range; the loss raises it where the two outputs
    differ in shape.
    """
    check_values(temperature, alpha)
    check_suits(task, kind)
    soft = soft_loss(task, kind, temperature=temperature, has_labels=loss is not None)

    def both(module: nn.Module, batch: Batch) -> Tensor:
        student = Remembering(module)
        own = None if loss is None else loss(student, batch)
        with torch.no_grad():
            wanted = teacher(batch)
        learned = soft(first_output(student, batch), wanted, batch)
        return learned if own is None else (1 - alpha) * own + alpha * learned

    return both


def check_values(temperature: float, alpha: float) -> None:
    """Raises InputError where one is out of range."""
    for name, value, allowed in (("temperature", temperature, "> 0"), ("alpha", alpha, "in [0, 1]")):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (value <= 0 if name == "temperature" else not 0 <= value <= 1):
            raise InputError(f"{name} must be {allowed}. Got {value!r}.")


def check_suits(task: str, kind: str) -> None:
    """Raises InputError naming what suits the task where `kind` does not."""
    refuse_unknown("distillation loss", kind, KINDS)
    refuse_unknown("task", task, _FITTING)
    if kind not in _FITTING[task]:
        raise InputError(f"The distillation loss {kind!r} does not suit {task}.", hint=f"Try {', '.join(_FITTING[task])}.")


def soft_loss(
    task: str, kind: str, *, temperature: float, has_labels: bool = True
) -> Callable[[Tensor, Tensor, Batch], Tensor]:
    """(student's output, teacher's output, batch) -> scalar, 0 where they agree. has_labels: where "dkd" finds the right class;
    otherwise the teacher's first choice is taken for it.
    """

    def learned(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        refuse_other_shape(student, teacher, kind)
        is_real = _is_real(student, batch)
        rows_NC, wanted_NC = _rows(student, is_real), _rows(teacher.float(), is_real)
        if kind == "dkd":
            target_N, is_known_N = _targets(teacher, batch, is_real, has_labels=has_labels)
            return distill.decoupled(rows_NC[is_known_N], wanted_NC[is_known_N], target_N, temperature=temperature)
        return compare(rows_NC, wanted_NC)

    compare = _comparison(task, kind, temperature)
    return learned


class Remembering(nn.Module):
    """A network that is run once for a batch: asked again with the same inputs, it gives what it gave."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.seen: tuple[tuple[Tensor, ...], object] | None = None

    def forward(self, *inputs: Tensor) -> object:
        is_same = self.seen is not None and all(one is other for one, other in zip(self.seen[0], inputs, strict=True))
        if self.seen is None or not is_same:
            self.seen = (inputs, self.module(*inputs))
        return self.seen[1]


def refuse_other_shape(student: Tensor, teacher: Tensor, kind: str) -> None:
    """Raises InputError where outputs cannot be compared. Relations compare rows with rows, so widths may differ."""
    fits = student.shape[:-1] == teacher.shape[:-1] if kind == "relations" else student.shape == teacher.shape
    if not fits:
        raise InputError(
            f"The student's output has shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}.",
            hint="Both must answer the same question: the same classes, tokens or frames.",
        )


def _comparison(task: str, kind: str, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    if task == "sentence-similarity" and kind in ("kd", "cosine"):
        return _embeddings if kind == "kd" else distill.embeddings
    if kind == "relations":
        return features.distances
    if task == "regression" or kind == "mse":
        return distill.logits
    return partial(distill.LOSSES[kind], temperature=temperature)


def _embeddings(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    return distill.embeddings(student_NC, teacher_NC) + features.distances(student_NC, teacher_NC)


def _is_real(output: Tensor, batch: Batch) -> Tensor | None:
    """The attention mask, where the output has a row for each token; None where every row counts."""
    if output.dim() != 3 or len(batch.inputs) < 2 or batch.inputs[1].shape != output.shape[:2]:
        return None
    return batch.inputs[1].bool()


def _rows(output: Tensor, is_real: Tensor | None) -> Tensor:
    if output.dim() == 1:
        return output[:, None]
    return output.flatten(0, -2) if is_real is None else output[is_real]


def _targets(teacher: Tensor, batch: Batch, is_real: Tensor | None, *, has_labels: bool) -> tuple[Tensor, Tensor]:
    """The right class of each row that has one, and which rows these are."""
    choice = teacher.argmax(-1)
    is_known = torch.ones_like(choice, dtype=torch.bool)
    if has_labels and choice.dim() == 2:
        following_BT = batch.inputs[0].long().roll(-1, dims=1)
        follows_BT = is_known if is_real is None else is_real.roll(-1, dims=1)
        is_known = follows_BT.clone()
        is_known[:, -1] = False
        choice = following_BT
    elif has_labels and batch.target is not None:
        choice = batch.target.long()
    kept, known = (value.flatten() if is_real is None else value[is_real] for value in (choice, is_known))
    return kept[known], known
