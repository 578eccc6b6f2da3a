"""Runs a network over a split and keeps only what the metric reads.

Dimension key: B examples of a batch, C classes, E embedding, T tokens or frames, V vocabulary, K columns kept.

The first output is scored. Everything is kept on the CPU; the logits of a language model are reduced to one log-likelihood a
window as they come, those of a speech recognizer to its wrong words, because a split's worth of them (N x T x V) fits
nowhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lighten.core.data import Batch, Runner, Split
from lighten.core.errors import InputError, ParityError, UnfitError
from lighten.core.recipe import refuse_unknown
from lighten.evaluate.metrics import word_errors
from lighten.evaluate.predictions import Array, Pass, Predictions

Reading = Callable[[Tensor, Batch, Split], Tensor]


@dataclass(frozen=True)
class Pair:
    """Two networks' predictions on the same examples. mean_kl: mean KL(original || compressed) in nats, per token for language
    models and per example for classifiers; None for other tasks.
    """

    original: Predictions
    compressed: Predictions
    mean_kl: float | None


def collect(runner: Runner, split: Split, *, how: Pass, what: str) -> Predictions:
    """What `runner` says about the split. what: shown with the progress and named in errors, e.g. "scoring the original".

    Raises ParityError naming the example when an output is not finite, UnfitError when the output's shape does not suit the
    task, InputError when a target is not finite.
    """
    rows = _Rows(how.task)
    for batch in how.batches(split, what):
        rows.add(outputs(runner, batch)[0], batch, split=split, what=what)
    return rows.predictions()


def collect_pair(original: Runner, compressed: Runner, *, split: Split, how: Pass, what: str) -> Pair:
    """Both networks batch by batch, and the mean KL divergence between them. Raises as `collect` does."""
    rows, other_rows = _Rows(how.task), _Rows(how.task)
    total, num_terms = 0.0, 0
    for batch in how.batches(split, what):
        logits, other_logits = outputs(original, batch)[0], outputs(compressed, batch)[0]
        rows.add(logits, batch, split=split, what=f"{what}, original")
        other_rows.add(other_logits, batch, split=split, what=f"{what}, compressed")
        batch_divergence, batch_terms = divergence(logits, other_logits, batch=batch, task=how.task)
        total, num_terms = total + batch_divergence, num_terms + batch_terms
    first = rows.predictions()
    return Pair(first, other_rows.predictions(), total / num_terms if num_terms else None)


def outputs(runner: Runner, batch: Batch) -> tuple[Tensor, ...]:
    """All outputs of one batch, float32 on the CPU where they are floating point, without gradients."""
    with torch.no_grad():
        result = runner(*batch.inputs)
    tensors = (result,) if isinstance(result, Tensor) else tuple(result)
    return tuple(t.detach().cpu().float() if t.is_floating_point() else t.detach().cpu() for t in tensors)


def example_name(split: Split, index: int) -> str:
    """An example as an error message names it."""
    return f"example {index} ({split.describe(index).title})"


class _Rows:
    """Rows of a Predictions in the making."""

    def __init__(self, task: str) -> None:
        refuse_unknown("task", task, _READINGS)
        self.task = task
        self.read = _READINGS[task]
        self.values: list[Array] = []
        self.targets: list[Array] = []
        self.index: list[int] = []

    def add(self, output: Tensor, batch: Batch, *, split: Split, what: str) -> None:
        values = self.read(output, batch, split).numpy()
        if len(values) != len(batch.index):
            raise UnfitError(f"{what}: {len(values)} rows came out for {len(batch.index)} examples.")
        _refuse_non_finite(values, batch, split=split, error=ParityError, what=f"{what}: the output")
        self.values.append(values)
        self.index.extend(batch.index)
        if batch.target is not None and self.task != "speech-recognition":  # there the values hold what was said
            targets = batch.target.detach().cpu()
            kept = targets.double().numpy() if targets.is_floating_point() else targets.long().numpy()
            _refuse_non_finite(kept, batch, split=split, error=InputError, what="The target")
            self.targets.append(kept)

    def predictions(self) -> Predictions:
        targets = np.concatenate(self.targets) if self.targets else None
        if targets is not None and len(targets) != len(self.index):
            raise InputError(f"{len(self.index)} examples have {len(targets)} targets; each needs one, or none may have any.")
        return Predictions(self.task, np.concatenate(self.values), targets, np.asarray(self.index, dtype=np.int64))


def _refuse_non_finite(
    values: Array, batch: Batch, *, split: Split, error: type[ParityError] | type[InputError], what: str
) -> None:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        index = batch.index[int(np.argmin(finite))]
        raise error(f"{what} is not finite (NaN or infinity) for {example_name(split, index)}.")


def _logits_BC(output: Tensor, batch: Batch, split: Split) -> Tensor:
    if output.ndim > 2:
        raise UnfitError(
            f"Classification needs an output of shape (examples, classes). Got {tuple(output.shape)}.",
            hint="Return one row an example, for instance by pooling over positions.",
        )
    return output.reshape(len(output), -1)


def _outputs_BK(output: Tensor, batch: Batch, split: Split) -> Tensor:
    return output.float().reshape(len(output), -1)


def _cosine_B(output: Tensor, batch: Batch, split: Split) -> Tensor:
    """First texts in the first half of the rows, second texts in the second half."""
    if output.ndim != 2 or len(output) % 2:
        raise UnfitError(f"Sentence pairs need an output of shape (2 x pairs, embedding). Got {tuple(output.shape)}.")
    first_BE, second_BE = output.chunk(2)
    return functional.cosine_similarity(first_BE, second_BE, dim=1)


def _window_losses_B2(output: Tensor, batch: Batch, split: Split) -> Tensor:
    """Negative log-likelihood in nats summed over a window's scored tokens, and how many there are."""
    if output.ndim != 3:
        raise UnfitError(f"A language model's output has shape (windows, tokens, vocabulary). Got {tuple(output.shape)}.")
    ids_BT, scored_BT = batch.inputs[0].cpu().long(), _scored_BT(batch)
    rows = []
    for logits_TV, ids_T, scored_T in zip(output, ids_BT, scored_BT, strict=True):  # a window at a time bounds the memory
        losses_T = functional.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none")
        rows.append([float(losses_T[scored_T].double().sum()), float(scored_T.sum())])
    return torch.tensor(rows, dtype=torch.float64)


def _word_errors_B2(output: Tensor, batch: Batch, split: Split) -> Tensor:
    """Wrong, missing and extra words of a recording, and how many were said. NaN where a frame's scores are not finite."""
    if output.ndim != 3:
        raise UnfitError(f"A speech recognizer's output has shape (recordings, frames, tokens). Got {tuple(output.shape)}.")
    alphabet = getattr(split, "alphabet", None)
    if alphabet is None or batch.target is None:
        raise InputError("The data does not say what its recordings say.", hint="Give a .csv with audio and text.")
    rows = []
    for logits_TV, ids_L in zip(output, batch.target.cpu(), strict=True):
        if not bool(torch.isfinite(logits_TV).all()):
            rows.append((math.nan, math.nan))
            continue
        said = alphabet.spell(ids_L[ids_L >= 0].tolist())
        rows.append(word_errors(alphabet.spell(best_path(logits_TV, alphabet.blank)), said))
    return torch.tensor(rows, dtype=torch.float64)


def best_path(logits_TV: Tensor, blank: int) -> list[int]:
    """Greedy CTC decoding: the likeliest token of each frame, repeats merged, then blanks dropped (Graves et al. 2006, ICML,
    "Connectionist Temporal Classification", section 3.2). It is not always the likeliest text; a beam search is left out so
    that the score is the network's own.
    """
    merged = torch.unique_consecutive(logits_TV.argmax(-1))
    return [int(token) for token in merged if token != blank]


def _scored_BT(batch: Batch) -> Tensor:
    """True where token t + 1 is predicted from token t and both are real; one column fewer than the input has tokens."""
    ids_BT = batch.inputs[0].cpu()
    mask_BT = batch.inputs[1].cpu().bool() if len(batch.inputs) > 1 else torch.ones_like(ids_BT, dtype=torch.bool)
    return mask_BT[:, :-1] & mask_BT[:, 1:]


_READINGS: dict[str, Reading] = {
    "image-classification": _logits_BC,
    "audio-classification": _logits_BC,
    "text-classification": _logits_BC,
    "classification": _logits_BC,
    "sentence-similarity": _cosine_B,
    "language-model": _window_losses_B2,
    "regression": _outputs_BK,
    "speech-recognition": _word_errors_B2,
}


def divergence(logits: Tensor, other_logits: Tensor, *, batch: Batch, task: str) -> tuple[float, int]:
    """KL(original || compressed) summed, and the number of terms; (0.0, 0) for tasks without classes."""
    if task == "language-model":
        scored_BT = _scored_BT(batch)
        windows = zip(logits, other_logits, scored_BT, strict=True)
        total = sum(float(_kl(a[:-1], b[:-1])[scored_T].sum()) for a, b, scored_T in windows)
        return total, int(scored_BT.sum())
    if task.endswith("classification") and logits.ndim == 2 and logits.shape[1] >= 2:
        return float(_kl(logits, other_logits).sum()), len(logits)
    return 0.0, 0


def _kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL over the last dimension, in nats, float64. A class of probability 0 in the original adds nothing."""
    log_p, log_q = logits.log_softmax(-1), other_logits.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1, dtype=torch.float64)
