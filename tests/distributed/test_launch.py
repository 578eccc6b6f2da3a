"""`lighten compress --nproc 2`: one voice, one exit code, no process left, and a killed rank that costs nothing but time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lighten.cli.main import main
from lighten.cli.speaker import speaks
from lighten.core.distributed import Distributed
from lighten.core.errors import InputError, RankError
from lighten.engine.ranks import joined

HERE = Path(__file__).parent
EPOCHS = 12
RECIPE = f"""
steps:
- finetune: {{epochs: {EPOCHS}, batch_size: 32, lr: 0.02}}
- keep: {{}}
distributed: {{data: 2}}
"""
GRACE = 20.0  # seconds: what watches over shared memory ends a moment behind its parent
PATIENCE = 120  # seconds, of a loaded machine


def start(folder: Path) -> "subprocess.Popen[str]":
    """In a session of its own, so that what it leaves behind can be found."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "lighten", "compress", "small:model", "--data", "small:data", "--threads", "1"]
    command += ["--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "out"), "--nproc", "2"]
    path = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent.parent)))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, start_new_session=True, **streams)


def finish(run: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """(exit code, output, errors); fails where a process of its session outlives it."""
    try:
        output, errors = run.communicate(timeout=PATIENCE)
    finally:
        deadline = time.monotonic() + GRACE
        while (left := _of_session(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left
    return run.returncode, output, errors


def _of_session(number: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(place.name))
    return found


def ranks_of(run: "subprocess.Popen[str]") -> list[int]:
    """The processes that run a rank, the first one first: multiprocessing has one of its own beside them."""
    return [pid for pid in sorted(_of_session(run.pid)) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finish(start(folder))


def test_two_ranks_speak_with_one_voice(undisturbed):
    folder, (code, output, errors) = undisturbed
    assert code == 0
    assert output.count("Contract met.") == output.count("Report:") == 1
    assert errors.count("training, epoch") == 1
    assert (folder / "out" / "model.onnx").is_file()
    assert "data: 2" in (folder / "out" / "recipe.yaml").read_text()


def test_a_killed_rank_is_started_again_and_the_weights_are_the_same(undisturbed, tmp_path):
    run = start(tmp_path)
    checkpoint = tmp_path / "out" / ".work" / "1-finetune" / "training.safetensors"
    try:
        deadline = time.monotonic() + PATIENCE
        while not checkpoint.is_file() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(ranks_of(run)[-1], signal.SIGKILL)
    finally:
        code, output, errors = finish(run)
    assert (code, output.count("Contract met.")) == (0, 1)
    assert errors.count("lighten: error") == errors.count("Started again") == 1
    # the epochs that were done are not made again
    made = re.search(r"training, epoch .*: (\d+) in", errors)
    assert made is not None
    assert int(made[1]) < 5 * EPOCHS
    weights = (tmp_path / "out" / "weights.safetensors").read_bytes()
    assert weights == (undisturbed[0] / "out" / "weights.safetensors").read_bytes()


def test_sizes_that_do_not_multiply_to_the_processes_are_an_error_before_anyone_waits(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="data 3 x tensor 1 x pipeline 1 needs 3 processes, and 2 were started"):  # noqa: SIM117
        with joined(Distributed(data=3)):
            pytest.fail("two processes went on as three")


def test_only_the_first_rank_speaks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["compress", "no/such/folder", "--data", "x", "--out", "y", "--recipe", "no-such.yaml"]) == 2
        assert main(["compress", "--dta", "x"]) == 2
        assert capsys.readouterr().err.count("lighten: error") == 2 * said


def test_another_rank_speaks_when_the_first_one_is_gone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert speaks(RankError("gone", rank=0))
    assert not speaks(RankError("gone", rank=1))
    monkeypatch.setenv("RANK", "0")
    assert not speaks(RankError("gone", rank=0))
    assert speaks(RankError("lost each other"))
