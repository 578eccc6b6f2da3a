"""One rank of `lighten compress --nproc 2` is killed: how long until training goes on, what is lost, and what comes out."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lighten.engine import checkpoint
from lighten.engine.files import sha256_of
from lighten.result import WORK

_POLL_SECONDS = 0.02
_EPOCHS = 6
_KILLED_AFTER = 2  # epochs
_ROWS = 12_800
_RECIPE = f"steps:\n- finetune: {{epochs: {_EPOCHS}, batch_size: 128, lr: 0.05, validation: 0.0}}\n- keep: {{}}\n"


def kill_one(arguments: argparse.Namespace) -> dict[str, Any]:
    """An undisturbed run, and one whose last rank is killed a third of an epoch behind a checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "recipe.yaml"
        recipe.write_text(_RECIPE)
        calm, times = _run(recipe, Path(place) / "calm", arguments, is_killed=False)
        killed, facts = _run(recipe, Path(place) / "killed", arguments, is_killed=True)
        epoch_seconds = times["epoch_seconds"]
        share = min(1.0, facts["killed_behind_checkpoint_seconds"] / epoch_seconds)
        return {
            "epoch_seconds": round(epoch_seconds, 2),
            "seconds_until_the_next_checkpoint": round(facts["recovery_seconds"], 2),
            "of_these_until_training_goes_on": round(facts["recovery_seconds"] - epoch_seconds, 2),
            "steps_of_an_epoch": times["steps_per_epoch"],
            "steps_lost": round(share * times["steps_per_epoch"]),
            "same_weights_as_undisturbed": sha256_of(calm) == sha256_of(killed),
        }


def _run(recipe: Path, out: Path, arguments: argparse.Namespace, *, is_killed: bool) -> tuple[Path, dict[str, float]]:
    data = f"killed:data_{min(arguments.limit or _ROWS, _ROWS)}"
    command = [sys.executable, "-m", "lighten", "compress", "killed:model", "--data", data, "--recipe", str(recipe)]
    command += ["--out", str(out), "--nproc", "2", "--threads", "1", "--quiet"]
    here = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(Path(here).parents[1])]), "OMP_NUM_THREADS": "1"}
    env["LIGHTEN_BENCH_FOLDER"] = str(arguments.folder)
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    facts = _watch(process, out / WORK / "1-finetune", is_killed=is_killed)
    if process.wait() not in (0, 3):
        raise SystemExit(f"lighten compress ended with {process.returncode}")
    return out / "weights.safetensors", facts


def _watch(process: subprocess.Popen[bytes], folder: Path, *, is_killed: bool) -> dict[str, float]:
    """Follows the checkpoints by their epochs, and kills the last rank once."""
    seen: dict[int, tuple[float, int]] = {}
    facts: dict[str, float] = {}
    while process.poll() is None and max(seen, default=0) < _EPOCHS:
        time.sleep(_POLL_SECONDS)
        _look(folder, seen)
        if is_killed and not facts and _KILLED_AFTER in seen:
            time.sleep(_part_of_an_epoch(seen))
            facts = _kill(process.pid, folder, seen)
    if not is_killed:
        first, last = min(seen), max(seen)
        facts["epoch_seconds"] = (seen[last][0] - seen[first][0]) / (last - first)
        facts["steps_per_epoch"] = (seen[last][1] - seen[first][1]) / (last - first)
    return facts


def _look(folder: Path, seen: dict[int, tuple[float, int]]) -> None:
    found = checkpoint.load(folder)
    if found is not None:
        seen.setdefault(len(found[1]["history"]) - 1, (time.monotonic(), found[1]["step"]))


def _kill(parent: int, folder: Path, seen: dict[int, tuple[float, int]]) -> dict[str, float]:
    """When the next checkpoint of the ranks that were started again is there; what the others still wrote does not count."""
    before = _ranks(parent)
    killed_at = time.monotonic()
    os.kill(before[-1], signal.SIGKILL)
    while set(before) & set(_ranks(parent)) or len(_ranks(parent)) < len(before):
        time.sleep(_POLL_SECONDS)
    _look(folder, seen)
    newest = max(seen)
    while max(seen) == newest:
        time.sleep(_POLL_SECONDS)
        _look(folder, seen)
    return {
        "recovery_seconds": seen[newest + 1][0] - killed_at,
        "killed_behind_checkpoint_seconds": max(0.0, killed_at - seen[newest][0]),
    }


def _part_of_an_epoch(seen: dict[int, tuple[float, int]]) -> float:
    """A third: epochs differ, and the next checkpoint should not be reached."""
    return (seen[_KILLED_AFTER][0] - seen[_KILLED_AFTER - 1][0]) / 3


def _ranks(parent: int) -> list[int]:
    """The children that run a rank, oldest first: multiprocessing has a child of its own beside them."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def model() -> Any:
    """For the command line."""
    import torch
    from networks import network

    from lighten.read.module import read_module

    return read_module(network("cnn"), example=(torch.zeros(2, 1, 28, 28),), source="killed:model")


def __getattr__(name: str) -> Any:
    """`data_N`: the first N training examples, for the command line."""
    if not name.startswith("data_"):
        raise AttributeError(name)
    return lambda: _data(int(name.removeprefix("data_")))


def _data(count: int) -> Any:
    from dataclasses import replace

    from networks import First, images

    data = images(Path(os.environ["LIGHTEN_BENCH_FOLDER"]))
    return replace(data, train=First(data.train, count), test=First(data.test, 500))
