"""What a teacher says to every example, computed once: an epoch then costs the student alone.

The largest logits of each row are kept in half precision, and how much is left for the others together, which then share it
equally. Where there are few outputs all are kept. One safetensors file, whose header says of which teacher and examples it is.

Dimension key: N rows of all examples (one of each for a classifier, else tokens, frames, or the two texts of a pair), K kept
logits, C outputs, E examples.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import Batch, Split
from lighten.core.errors import InputError
from lighten.core.run import Run
from lighten.engine.files import check_writable, make_folder, write_atomic

FILE = "soft_labels.safetensors"
_FACTS = "facts"
_BATCH = 64
_PROBED = 32  # examples that tell how large the file will be
_LARGEST = 65_504.0  # of half precision
_PARTS = ("kept_NK", "place_NK", "rest_N", "start_E", "count_E")


@dataclass(frozen=True)
class Rows:
    """A teacher's outputs. kept_NK: float16, less the row's largest where classes are left out. place_NK: int32, their classes;
    empty where every output is kept. rest_N: the logarithm of what the others share. start_E, count_E: an example's first row
    and number of rows. width: C. is_flat: the output has no dimension for tokens or frames.
    """

    kept_NK: Tensor
    place_NK: Tensor
    rest_N: Tensor
    start_E: Tensor
    count_E: Tensor
    width: int
    is_flat: bool

    def __call__(self, batch: Batch) -> Tensor:
        """What the teacher said to these examples, float32; zeros where the attention mask leaves a token out."""
        said_NC = self._logits(self._rows_of(batch)).to(batch.inputs[0].device)
        if self.is_flat:
            return said_NC.reshape(len(batch.index), -1, self.width).transpose(0, 1).flatten(0, 1)
        is_real = real_tokens(batch)
        if is_real is None:
            return said_NC.reshape(len(batch.index), -1, self.width)
        whole = said_NC.new_zeros(*is_real.shape, self.width)
        whole[is_real] = said_NC
        return whole

    def _rows_of(self, batch: Batch) -> Tensor:
        index_B = torch.tensor(batch.index)
        first_B, count_B = self.start_E[index_B], self.count_E[index_B]
        before_B = count_B.cumsum(0) - count_B
        return torch.arange(int(count_B.sum())) + (first_B - before_B).repeat_interleave(count_B)

    def _logits(self, rows_N: Tensor) -> Tensor:
        kept_NK = self.kept_NK[rows_N].float()
        if not self.place_NK.numel():
            return kept_NK
        others = math.log(self.width - self.kept_NK.shape[1])
        said_NC = (self.rest_N[rows_N].float() - others)[:, None].repeat(1, self.width)
        return said_NC.scatter_(1, self.place_NK[rows_N].long(), kept_NK)


def soft_labels(
    split: Split,
    say: Callable[[Batch], Tensor],
    *,
    path: Path | None,
    teacher: str,
    top: int,
    run: Run,
) -> Rows:
    """Of every example of `split`, from the file where it has been written, else from the teacher, and then written. path: None
    keeps them in memory. teacher: its digest; "" takes what it says to the first examples for one. top: K at most.

    Raises InputError where the file is of another teacher, other examples or another `top`, or cannot be written.
    """
    facts = facts_of(split, say, teacher=teacher, top=top)
    known = None if path is None else read(path, facts)
    if known is not None:
        return known
    _forecast(split, say, path=path, top=top, run=run)
    batches = split.batches(_BATCH)
    tracked = run.progress.track(batches, what="asking the teacher", total=-(-len(split) // _BATCH))
    rows = _gathered(((batch, say(batch)) for batch in tracked), len(split), top)
    if path is not None:
        _write(path, rows, facts)
    return rows


def facts_of(split: Split, say: Callable[[Batch], Tensor], *, teacher: str, top: int) -> dict[str, Any]:
    """What a file of soft labels belongs to. data: sha256 over the inputs of every example."""
    digest = hashlib.sha256()
    for batch in split.batches(256):
        for value in batch.inputs:
            digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if not teacher:
        said = say(next(iter(split.batches(_PROBED, _PROBED))))
        teacher = hashlib.sha256(said.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    return {"teacher": teacher, "data": digest.hexdigest(), "examples": len(split), "top": top}


def read(path: Path, facts: Mapping[str, Any]) -> Rows | None:
    """None where there is no such file. Raises InputError where it is damaged, or belongs to something else."""
    import safetensors
    from safetensors import SafetensorError

    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[_FACTS])
            parts = {name: file.get_tensor(name) for name in _PARTS}
            rows = Rows(**parts, width=found.pop("width"), is_flat=found.pop("is_flat"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no file of soft labels: {error}.", hint="Remove it.") from error
    for name, what in (("teacher", "another teacher"), ("data", "other examples"), ("top", "another top_k")):
        if found.get(name) != facts[name]:
            raise InputError(f"{path} holds the soft labels of {what}.", hint="Remove it, or name another file.")
    return rows


def real_tokens(batch: Batch) -> Tensor | None:
    """The attention mask of a batch of texts, rows x tokens; None where every row of an output counts."""
    ids = batch.inputs[0]
    if len(batch.inputs) < 2 or ids.dim() != 2 or ids.is_floating_point() or batch.inputs[1].shape != ids.shape:
        return None
    return batch.inputs[1].bool()


def _gathered(said: Iterator[tuple[Batch, Tensor]], num_examples: int, top: int) -> Rows:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    start_E, count_E = torch.zeros(num_examples, dtype=torch.int64), torch.zeros(num_examples, dtype=torch.int64)
    width, is_flat, num_rows = 0, True, 0
    for batch, output in said:
        rows_NC, count_B = _rows(batch, output)
        width, is_flat, index = rows_NC.shape[1], output.dim() == 2, list(batch.index)
        start_E[index], count_E[index] = num_rows + count_B.cumsum(0) - count_B, count_B
        num_rows += len(rows_NC)
        parts.append(_largest(rows_NC.cpu(), top))
    kept_NK, place_NK, rest_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rows(kept_NK, place_NK, rest_N, start_E, count_E, width, is_flat)


def _rows(batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
    """All rows that count, an example's together, and how many each example has. Raises InputError for other outputs."""
    num_examples = len(batch.index)
    if output.dim() not in (2, 3) or len(output) % num_examples or (output.dim() == 3 and len(output) != num_examples):
        raise InputError(
            "Soft labels are kept of outputs of shape (examples, classes) or (examples, tokens, classes). "
            f"Got {tuple(output.shape)} for {num_examples} examples.",
            hint="Use cache: false.",
        )
    is_real = real_tokens(batch) if output.dim() == 3 else None
    if is_real is not None and is_real.shape == output.shape[:2]:
        return output[is_real], is_real.sum(1).cpu()
    if output.dim() == 2:
        output = output.reshape(-1, num_examples, output.shape[1]).transpose(0, 1)
    return output.flatten(0, 1), torch.full((num_examples,), output.shape[1])


def _largest(rows_NC: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    if rows_NC.shape[1] <= top:
        empty = rows_NC.new_zeros(len(rows_NC), 0, dtype=torch.int32)
        return rows_NC.clamp(-_LARGEST, _LARGEST).half(), empty, rows_NC.new_zeros(0, dtype=torch.float16)
    rows_NC = rows_NC - rows_NC.amax(1, keepdim=True)  # near 0, where half precision is finest
    kept_NK, place_NK = rows_NC.topk(top, dim=1)
    rest_N = rows_NC.scatter(1, place_NK, -torch.inf).logsumexp(1)
    return kept_NK.clamp_min(-_LARGEST).half(), place_NK.int(), rest_N.clamp_min(-_LARGEST).half()


def _forecast(split: Split, say: Callable[[Batch], Tensor], *, path: Path | None, top: int, run: Run) -> None:
    """Says how large the file will be. Raises InputError where there is no room for it."""
    batch = next(iter(split.batches(_PROBED, _PROBED)))
    rows_NC, counts = _rows(batch, say(batch))
    num_rows = round(len(split) * float(counts.float().mean()))
    kept = min(top, rows_NC.shape[1])
    size_bytes = num_rows * (2 * kept if kept == rows_NC.shape[1] else 6 * kept + 2) + 16 * len(split)
    where = "in memory" if path is None else f"in {path}"
    run.progress.say(f"Soft labels: {num_rows:,} rows of {kept} logits, about {size_bytes / 1e6:.1f} MB {where}.")
    if path is not None:
        check_writable(path.parent, size_bytes)


def _write(path: Path, rows: Rows, facts: Mapping[str, Any]) -> None:
    import safetensors.torch

    tensors = {name: getattr(rows, name).contiguous() for name in _PARTS}
    known = {**facts, "width": rows.width, "is_flat": rows.is_flat}
    make_folder(path.parent)
    write_atomic(path, safetensors.torch.save(tensors, metadata={_FACTS: json.dumps(known)}))
