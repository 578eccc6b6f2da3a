"""Who teaches: the network before the recipe began, another one, an ONNX file or any callable as a black box, or several."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError, LightenError, UnfitError
from lighten.core.model import Model
from lighten.engine import checkpoint
from lighten.engine.files import sha256_of
from lighten.engine.onnx_session import OnnxSession

ORIGINAL = "original"
_TAKEN = '"original", a folder or package.module:callable that lighten.load reads, an .onnx file, or a list of these'


@dataclass(frozen=True)
class Teacher:
    """say: what it answers to a batch, its first output in float32. name: for the report. digest: sha256 of its weights or its
    file, "" for a callable whose inside nobody knows. model: None for a black box, whose layers nobody sees.
    """

    say: Callable[[Batch], Tensor]
    name: str
    digest: str = ""
    model: Model | None = None


def teacher_of(wanted: Any, original: Model, *, threads: int = 1) -> Teacher:
    """wanted: the knob `teacher` of methods.distill.distill. Raises InputError where it cannot be read."""
    if isinstance(wanted, str | Path):
        return _named(str(wanted), original, threads)
    if type(wanted) is Model:
        return _of_model(wanted, wanted.origin.source)
    if isinstance(wanted, nn.Module):
        module = copy.deepcopy(wanted).eval()
        return _of_model(replace(original, module=module, sparse={}), type(wanted).__name__)
    if callable(wanted):
        return Teacher(_asking(wanted), getattr(wanted, "__name__", type(wanted).__name__))
    return _several(*_members(wanted), original, threads)


def check_teacher(wanted: Any) -> None:
    """Raises InputError for what is no teacher, without reading it."""
    if not isinstance(wanted, str | Path) and not callable(wanted) and type(wanted) is not Model:
        for member in _members(wanted)[0]:
            check_teacher(member)


def outside(wanted: Any) -> str:
    """sha256 over the files that the knob names: a recipe does not hold them. "" where it names none."""
    if isinstance(wanted, str | Path):
        return _files_digest(Path(wanted)) if Path(wanted).exists() else ""
    if isinstance(wanted, Sequence):
        return " ".join(outside(member) for member in _members(wanted)[0])
    return ""


def _named(wanted: str, original: Model, threads: int) -> Teacher:
    from lighten.read.source import load

    if wanted == ORIGINAL:
        return _of_model(original, ORIGINAL)
    path = Path(wanted)
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise InputError(f"The teacher {path} does not exist.")
        return Teacher(_asking(_onnx(path, threads)), path.name, _files_digest(path))
    return _of_model(load(wanted), wanted)


def _of_model(model: Model, name: str) -> Teacher:
    return Teacher(_asking(model.module), name, checkpoint.digest(checkpoint.named_tensors(model.module)), model)


def _asking(runner: Callable[..., Any]) -> Callable[[Batch], Tensor]:
    @torch.no_grad()
    def say(batch: Batch) -> Tensor:
        result = runner(*batch.inputs)
        output = result if isinstance(result, Tensor) else result[0]
        if not isinstance(output, Tensor):
            raise UnfitError(f"The teacher's first output is a {type(output).__name__}, not a tensor.")
        return output.float()

    return say


def _several(members: Sequence[Any], weights: Sequence[float], original: Model, threads: int) -> Teacher:
    """The weighted mean of what they say: for logits, the geometric mean of their distributions (Hinton et al. 2015,
    arXiv:1503.02531, section 1).
    """
    teachers = [teacher_of(member, original, threads=threads) for member in members]
    shares = [weight / sum(weights) for weight in weights]

    def say(batch: Batch) -> Tensor:
        said = [teacher.say(batch) for teacher in teachers]
        if len({value.shape for value in said}) > 1:
            raise InputError(f"The teachers' outputs differ in shape: {', '.join(str(tuple(one.shape)) for one in said)}.")
        return torch.stack([share * value for share, value in zip(shares, said, strict=True)]).sum(0)

    digests = [teacher.digest for teacher in teachers]
    joint = hashlib.sha256(repr((digests, shares)).encode()).hexdigest() if all(digests) else ""
    return Teacher(say, ", ".join(teacher.name for teacher in teachers), joint)


def _members(wanted: Any) -> tuple[list[Any], list[float]]:
    """Teachers and their weights. Raises InputError for what is no list of these."""
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted:
        raise InputError(f"distill: teacher must be {_TAKEN}. Got {wanted!r}.")
    members, weights = [], []
    for entry in wanted:
        is_weighted = isinstance(entry, Mapping)
        if is_weighted and set(entry) != {"teacher", "weight"}:
            raise InputError(f"distill: a teacher with a weight is {{teacher: ..., weight: ...}}. Got {entry!r}.")
        weight = entry["weight"] if is_weighted else 1.0
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            raise InputError(f"distill: a teacher's weight must be > 0. Got {weight!r}.")
        members.append(entry["teacher"] if is_weighted else entry)
        weights.append(float(weight))
    return members, weights


def _onnx(path: Path, threads: int) -> Callable[..., Tensor]:
    """The file in ONNX Runtime."""
    session = OnnxSession(path, threads)

    def run(*inputs: Tensor) -> Tensor:
        if len(inputs) != len(session.input_names):
            raise InputError(f"The teacher {path} takes {len(session.input_names)} inputs, the data gives {len(inputs)}.")
        outputs = session(*(value.cpu() for value in inputs))
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        return first.to(inputs[0].device)

    return run


def ask_once(teacher: Teacher, batch: Batch) -> Tensor:
    """What the teacher says. Raises InputError where it does not take the data's inputs."""
    try:
        return teacher.say(batch)
    except LightenError:
        raise
    except Exception as error:  # a teacher may be anything
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"The teacher {teacher.name} does not take the data's inputs: {first[:200]}") from error


def _files_digest(path: Path) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()
