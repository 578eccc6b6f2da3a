"""Checkpoints of which every rank writes its own part, while training goes on; read back by any number of ranks.

torch.distributed.checkpoint plans who writes what and which part of which file a rank needs. Its usual file format pickles an
index; here the parts are safetensors files, whose headers say where in the whole tensor they lie, and the facts are JSON, so
loading runs no code. (What ranks send each other while they plan is pickled by torch and never reaches the disk.)

A checkpoint is the folder `checkpoint-NUMBER`. It is written beside under another name and moved when all parts are complete,
so what a rank that dies has begun is never taken for a checkpoint. All ranks must see the same file system.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import async_save

from lighten.core.errors import InputError
from lighten.engine.checkpoint import named_tensors
from lighten.engine.files import make_folder, move, unwritable, write_atomic
from lighten.engine.quiet import quiet

FACTS = "facts.json"
_COMPLETE = re.compile(r"checkpoint-(\d+)")


class ShardedCheckpoints:
    """The checkpoints of one training in one folder; the newest that is complete counts, older ones are removed.

    Made by all ranks together, after the process group; without one it is a single process that writes and reads all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # of its own: the thread that writes talks to other ranks while training does
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._pending: Future[Any] | None = None

    def save(self, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Copies this rank's parts and returns; a thread writes them. Waits for the checkpoint before this one.

        number: from 0, higher than before. tensors: by name, sharded or whole; what several ranks hold is written once. facts:
        JSON data, those of rank 0 count. Raises InputError when a checkpoint before could not be written.
        """
        self.wait()
        make_folder(self.folder)
        writer = _Writer(self.folder, number, dict(facts))
        # a process alone is warned that it is
        with quiet() if self._group is None else nullcontext():
            found = async_save(dict(tensors), storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            self._pending = found if isinstance(found, Future) else found.upload_completion
            if self._group is None:
                self.wait()

    def wait(self) -> None:
        """Until what is being written is complete. Raises InputError where it cannot be."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except (CheckpointException, OSError) as error:
            raise InputError(f"Cannot write a checkpoint in {self.folder}: {_reason(error)}") from error

    def facts(self) -> dict[str, Any] | None:
        """Of the newest complete checkpoint, None where there is none."""
        newest = self._newest()
        try:
            return None if newest is None else dict(json.loads((newest / FACTS).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read {newest}: {error}.") from error

    def load(self, into: Mapping[str, Tensor]) -> None:
        """Fills the tensors in place from the newest checkpoint, each rank with its parts, however many ranks wrote it.

        Raises InputError where there is none, it is damaged, or a tensor is missing or of another shape.
        """
        newest = self._newest()
        if newest is None:
            raise InputError(f"There is no checkpoint in {self.folder}.")
        try:
            reader = HuggingFaceStorageReader(str(newest))
            with quiet() if self._group is None else nullcontext():
                load_parts(dict(into), storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except (CheckpointException, SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"Cannot read {newest}: {_reason(error)}") from error

    def _newest(self) -> Path | None:
        found = dict(_complete(self.folder))
        return found[max(found)] if found else None


class _Writer(HuggingFaceStorageWriter):
    """Writes beside and moves the folder when the coordinator knows that all ranks have written."""

    def __init__(self, folder: Path, number: int, facts: dict[str, Any]) -> None:
        self.folder, self.number, self.facts = folder, number, facts
        self.beside = folder / f".checkpoint-{number}.partial"
        super().__init__(str(self.beside), save_distributed=True)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Before any rank writes, since all wait for the coordinator's plan: what a rank that died has left goes."""
        if is_coordinator:
            shutil.rmtree(self.beside, ignore_errors=True)
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def finish(self, metadata: Metadata, results: Any) -> None:
        """Called on one rank, after all."""
        del metadata, results
        write_atomic(self.beside / FACTS, json.dumps(self.facts))
        destination = self.folder / f"checkpoint-{self.number}"
        shutil.rmtree(destination, ignore_errors=True)  # of a training before that got as far
        move(self.beside, destination)
        for number, path in list(_complete(self.folder)):
            if number != self.number:
                shutil.rmtree(path, ignore_errors=True)


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and what the optimizer remembers, by names that do not depend on how many ranks there are."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tensors = {f"weights/{name}": value.detach() for name, value in named_tensors(module).items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{names[id(parameter)]}/{key}"] = value
    return tensors


def optimizer_keys(optimizer: torch.optim.Optimizer) -> dict[str, list[int] | None]:
    """For the facts, to be given to `blank_optimizer`: what is remembered of a parameter, None where it has its shape."""
    state: dict[str, Any] = next((state for state in optimizer.state.values() if state), {})
    parameter = next((parameter for parameter, found in optimizer.state.items() if found is state), None)
    return {
        key: None if parameter is not None and value.shape == parameter.shape else list(value.shape)
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def blank_optimizer(optimizer: torch.optim.Optimizer, keys: Mapping[str, list[int] | None]) -> None:
    """Gives an optimizer that has made no step zeros where its memory will be, sharded as the parameters are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                optimizer.state[parameter] = {
                    key: torch.zeros_like(parameter) if shape is None else torch.zeros(shape) for key, shape in keys.items()
                }


def _complete(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _COMPLETE.fullmatch(path.name)
        if match is not None and (path / FACTS).is_file():
            yield int(match[1]), path


def _reason(error: BaseException) -> str:
    """The first rank's own error out of those that torch collects."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError):
        return unwritable(Path(error.filename or ""), error).message
    return f"{' '.join(str(error).split())[:300]}."
