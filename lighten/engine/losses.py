"""What a training minimizes, by task, on the batches of core.data.

Dimension key: B examples, C classes, K outputs, E embedding, T tokens or frames, V vocabulary, L longest transcript.
"""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.data import Batch
from lighten.core.errors import InputError, UnfitError
from lighten.core.recipe import refuse_unknown

_COSINE_SCALE = 20.0  # 1 / temperature, as in the text that introduced the loss


class Loss(Protocol):
    """A scalar to minimize. It runs the module itself, so that a loss may look inside or run a second network beside it."""

    def __call__(self, module: nn.Module, batch: Batch, /) -> Tensor: ...


def loss_for(task: str, *, label_smoothing: float = 0.0, blank: int | None = None) -> Loss:
    """The usual loss of a task (core.model.TASKS). label_smoothing in [0, 1): for classification only. blank: the blank token,
    which speech recognition needs.

    Raises InputError for an unknown task. A sentence encoder that is scored by a probe has no loss of its own: distil it.
    """
    refuse_unknown("task", task, _LOSSES)
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be in [0, 1). Got {label_smoothing!r}.")
    if label_smoothing and _LOSSES[task] is cross_entropy:
        return partial(cross_entropy, label_smoothing=label_smoothing)
    if _LOSSES[task] is ctc and blank is None:
        raise InputError("Speech recognition needs the number of its blank token.", hint="The split's alphabet knows it.")
    return partial(ctc, blank=blank) if blank is not None and _LOSSES[task] is ctc else _LOSSES[task]


def first_output(module: nn.Module, batch: Batch) -> Tensor:
    """The output that is scored, in float32: bf16 has too few digits for a loss."""
    result = module(*batch.inputs)
    output = result if isinstance(result, Tensor) else result[0]
    if not isinstance(output, Tensor):
        raise UnfitError(f"The network's first output is a {type(output).__name__}, not a tensor.")
    return output.float()


def cross_entropy(module: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean negative log-likelihood of the labels, in nats. Raises UnfitError when the output is not (examples, classes)."""
    logits_BC, target_B = first_output(module, batch), _target(batch)
    if logits_BC.dim() != 2 or logits_BC.shape[1] < 2 or target_B.shape != logits_BC.shape[:1]:
        raise UnfitError(
            f"Cross-entropy needs logits of shape (examples, classes) and a class for each. Got {tuple(logits_BC.shape)} and "
            f"{tuple(target_B.shape)}."
        )
    if int(target_B.max()) >= logits_BC.shape[1]:
        raise InputError(f"A label is {int(target_B.max())}, the network has {logits_BC.shape[1]} classes (0 is the first).")
    return functional.cross_entropy(logits_BC, target_B.long(), label_smoothing=label_smoothing)


def mean_squared(module: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error over all outputs. Raises UnfitError when outputs and targets differ in number."""
    output = first_output(module, batch)
    output_BK, target_BK = output.reshape(len(output), -1), _target(batch).float()
    if output_BK.numel() != target_BK.numel():
        raise UnfitError(f"The network gives {tuple(output.shape)}, the targets are {tuple(target_BK.shape)}.")
    return functional.mse_loss(output_BK, target_BK.reshape(output_BK.shape))


def next_token(module: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats of each token given those before it, where both are real."""
    ids_BT = batch.inputs[0].long()
    logits_BTV = first_output(module, batch)
    if logits_BTV.dim() != 3:
        raise UnfitError(f"A language model's output has shape (windows, tokens, vocabulary). Got {tuple(logits_BTV.shape)}.")
    mask_BT = batch.inputs[1].bool() if len(batch.inputs) > 1 else torch.ones_like(ids_BT, dtype=torch.bool)
    scored_BT = mask_BT[:, :-1] & mask_BT[:, 1:]
    losses_BT = functional.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return losses_BT[scored_BT].sum() / scored_BT.sum().clamp_min(1)


def cosine_order(module: nn.Module, batch: Batch) -> Tensor:
    """log(1 + sum exp(20 (cos_j - cos_i))) over all i, j where pair i is rated above pair j.

    CoSENT (Su 2022, kexue.fm/archives/8847). Only the order of the ratings counts, as in the Spearman metric, so their scale
    does not matter. First texts lie in the first half of the rows, second texts in the second.
    """
    output, target_B = first_output(module, batch), _target(batch)
    if output.dim() != 2 or len(output) != 2 * len(target_B):
        raise UnfitError(f"Sentence pairs need an output of shape (2 x pairs, embedding). Got {tuple(output.shape)}.")
    first_BE, second_BE = output.chunk(2)
    cosine_B = _COSINE_SCALE * functional.cosine_similarity(first_BE, second_BE, dim=1)
    is_above_BB = target_B[:, None] > target_B[None, :]
    excess_BB = (cosine_B[None, :] - cosine_B[:, None]).masked_fill(~is_above_BB, -torch.inf)
    return torch.cat([excess_BB.new_zeros(1), excess_BB.flatten()]).logsumexp(0)


def ctc(module: nn.Module, batch: Batch, *, blank: int = 0) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006, ICML, eq. 8), each recording's loss divided by its tokens.

    Targets are (recordings, tokens) with -1 behind the last. A transcript that does not fit into the frames adds nothing.
    """
    logits_BTV, target_BL = first_output(module, batch), _target(batch)
    if logits_BTV.dim() != 3:
        raise UnfitError(f"A speech recognizer's output has shape (recordings, frames, tokens). Got {tuple(logits_BTV.shape)}.")
    log_p_TBV = logits_BTV.log_softmax(-1).transpose(0, 1)
    frames_B = target_BL.new_full((len(target_BL),), len(log_p_TBV))
    tokens_B = (target_BL >= 0).sum(1)
    return functional.ctc_loss(log_p_TBV, target_BL.clamp_min(0), frames_B, tokens_B, blank=blank, zero_infinity=True)


def _target(batch: Batch) -> Tensor:
    if batch.target is None:
        raise InputError("The training data has no labels.", hint="Distillation from the original network needs none.")
    return batch.target


_LOSSES: dict[str, Loss] = {
    "image-classification": cross_entropy,
    "audio-classification": cross_entropy,
    "speech-recognition": ctc,
    "text-classification": cross_entropy,
    "classification": cross_entropy,
    "sentence-similarity": cosine_order,
    "language-model": next_token,
    "regression": mean_squared,
}
