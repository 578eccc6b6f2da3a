"""Ranks of a test: processes of their own that find each other through a file, so that no port can be taken."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 100  # seconds, of a loaded machine


def on_ranks(job: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What `job(rank, *arguments)` gives on each of `world` gloo ranks: plain data. job: a function of a module that
    processes can import. Fails with the first rank's traceback; no process is left behind.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.tensor.parallel"]
    )
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        ends = [context.Pipe(duplex=False) for _ in range(world)]
        ranks = [
            context.Process(target=_rank, args=(job, rank, world, meeting, ends[rank][1], arguments)) for rank in range(world)
        ]
        try:
            for rank in ranks:
                rank.start()
            answers = [end.recv() if end.poll(PATIENCE) else ("silent", "") for end, _ in ends]
        finally:
            for rank in ranks:
                rank.join(5)
                rank.kill()
                rank.join()
    faults = [f"rank {number}: {text}" for number, (kind, text) in enumerate(answers) if kind != "done"]
    assert not faults, "\n".join(faults)
    return [answer for _, answer in answers]


def _rank(job: Callable[..., Any], rank: int, world: int, meeting: str, end: Any, arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        end.send(("done", job(rank, *arguments)))
    except Exception:
        end.send(("failed", traceback.format_exc()))
    finally:
        dist.destroy_process_group()
