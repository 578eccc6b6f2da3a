"""The processes of a distributed run, over torch.distributed: gloo for tensors on the CPU, nccl for those on a GPU.

torchrun starts them and gives each its number in the environment. Values travel as JSON and tensors as bytes: torch's own calls
for Python objects unpickle what arrives.

Dimension key: W ranks, N bytes.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lighten.core.distributed import Distributed
from lighten.core.errors import InputError, LightenError, RankError
from lighten.core.run import Alone, Ranks, Run
from lighten.engine.faults import explained, num_restarts, refuse_faults, report_fault, report_round

BUCKET_BYTES = 25_000_000  # as torch's own DDP: large enough that latency does not count, small enough to copy
_POLL_SECONDS = 0.05


def num_started() -> int:
    """How many processes torchrun says there are, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(distributed: Distributed | None) -> Iterator[tuple[Ranks, Distributed]]:
    """This process among the others, for the length of the block, and how the work is spread: None is a replica in each.

    Raises InputError where the sizes do not multiply to the number of processes, before any of them waits for another.
    """
    size = dist.get_world_size() if dist.is_initialized() else num_started()
    spread = Distributed(data=size) if distributed is None else distributed
    spread.check_world(size)
    if size == 1:
        yield Alone(), spread
        return
    is_ours = not dist.is_initialized()
    timeout = timedelta(seconds=spread.timeout)
    if is_ours:
        store, number, _ = next(rendezvous("env://", timeout=timeout))
        # torchrun's store outlives the ranks: those that are started again must not meet the addresses of those that are gone
        store = PrefixStore(f"lighten/{num_restarts()}", store)
        dist.init_process_group(_backend(), store=store, rank=number, world_size=size, timeout=timeout)
    group = Group()
    try:
        yield group, spread
    except BaseException as error:
        group.tell(error)
        raise
    finally:
        if is_ours:
            dist.destroy_process_group()


def refuse_axes(distributed: Distributed) -> None:
    """Raises InputError where a recipe asks for what only engine.shard and engine.pipeline give, in Python."""
    asked = [name for name in ("tensor", "pipeline") if getattr(distributed, name) > 1]
    if asked:
        raise InputError(
            f"distributed: {', '.join(asked)} cannot be used in a recipe yet, which trains replicas, whole or sharded.",
            hint="Use data: N and shard: full; docs/scale.md shows engine.shard and engine.pipeline in Python.",
        )


def agreed(run: Run, identity: dict[str, Any]) -> dict[str, Any]:
    """`identity`. Raises InputError naming an entry in which a rank differs from the first one; data of their own may."""
    own = {name: value for name, value in identity.items() if name != "data" or not run.distributed.own_data}
    for rank, other in enumerate(told := run.ranks.gather(own)):
        for name, value in other.items():
            if value != told[0][name]:
                raise InputError(f"Rank {rank} was given another {name} than rank 0.", hint="Every rank needs the same.")
    return identity


class Group:
    """core.run.Ranks over a process group; None is that of all processes. Every rank makes the same calls in the same order."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.number, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.local = min(self.world, int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))
        self.sent_bytes = 0
        self._round, self._waits = 0, 0
        self._first = dist.get_global_rank(group, 0) if group is not None else 0
        self._name = self.share(secrets.token_hex(8))  # the store outlives a group

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See core.run.Ranks. Tensors of one type travel together, BUCKET_BYTES at a time."""
        buckets = list(_buckets(tensors))
        flats = [torch.cat([value.detach().reshape(-1) for value in bucket]) for bucket in buckets]
        with self._watched():
            works = [dist.all_reduce(flat, group=self.group, async_op=True) for flat in flats]
            for work in works:
                work.wait()
        for bucket, flat in zip(buckets, flats, strict=True):
            self.sent_bytes += round(2 * (self.world - 1) / self.world * flat.nbytes)  # of a ring
            for value, part in zip(bucket, torch.split(flat, [value.numel() for value in bucket]), strict=True):
                value.detach().copy_(part.view_as(value))

    def share(self, value: Any, *, is_patient: bool = False) -> Any:
        """See core.run.Ranks."""
        if is_patient:
            self._wait_for_first()
        content = self._broadcast_bytes(json.dumps(value).encode() if self.number == 0 else b"")
        return json.loads(content)

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See core.run.Ranks."""
        heads = [(name, str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in tensors.items()]
        shared = {}
        for name, dtype, shape in self.share(heads):
            value = (
                tensors[name].detach().cpu().contiguous()
                if self.number == 0
                else torch.empty(shape, dtype=getattr(torch, dtype))
            )
            self._broadcast(value.reshape(-1).view(torch.uint8))
            shared[name] = value
        return shared

    def gather(self, value: Any) -> list[Any]:
        """See core.run.Ranks."""
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size_W = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._watched():
            dist.all_gather(size_W, torch.tensor([len(content)]), group=self.group)
            longest = max(int(size) for size in size_W)
            padded_N = torch.zeros(longest, dtype=torch.uint8)
            padded_N[: len(content)] = content
            found = [torch.empty_like(padded_N) for _ in range(self.world)]
            dist.all_gather(found, padded_N, group=self.group)
        self.sent_bytes += (self.world - 1) * longest
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(found, size_W, strict=True)]

    def tell(self, error: BaseException) -> None:
        """Leaves word of what stops this rank. One that is not the first then leaves speaking to the first one, who hears of it
        when they next meet.
        """
        if isinstance(error, RankError):
            return
        text = str(error) if isinstance(error, LightenError) else f"{type(error).__name__}: {error}"
        report_fault(self.number, text)
        if self.number and isinstance(error, Exception):
            raise RankError(f"Rank {self.number}: {text}", rank=self.number) from error
        time.sleep(4 * _POLL_SECONDS)  # where this process holds the store, the others must read it before it ends

    def _broadcast_bytes(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)])
        self._broadcast(size)
        value_N = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(int(size), dtype=torch.uint8)
        )
        self._broadcast(value_N)
        return value_N.numpy().tobytes()

    def _broadcast(self, value: Tensor) -> None:
        if not value.numel():
            return
        with self._watched():
            dist.broadcast(value, src=self._first, group=self.group)
        self.sent_bytes += (self.world - 1) * value.nbytes if self.number == 0 else 0

    def _wait_for_first(self) -> None:
        """A collective call would give up after the timeout of training; the first rank may search for hours."""
        self._waits += 1
        key = f"lighten/waits/{self._name}/{self._waits}"
        store = dist.distributed_c10d._get_default_store()
        if self.number == 0:
            store.set(key, "done")
            return
        while True:
            try:
                refuse_faults(self.number, self.world)
                if store.check([key]):
                    return
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches every process; the first one decides what becomes of it
            except RuntimeError as error:
                raise explained(error, number=self.number, world=self.world, round=self._round) from error

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Says where this rank is before it waits for the others, and who is missing where they do not come."""
        self._round += 1
        try:
            report_round(self.number, self._round)
            yield
        except RuntimeError as error:
            raise explained(error, number=self.number, world=self.world, round=self._round) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for _, alike in groupby(tensors, key=lambda value: (value.dtype, value.device)):
        bucket: list[Tensor] = []
        held_bytes = 0
        for value in alike:
            if bucket and held_bytes + value.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, held_bytes = [], 0
            bucket.append(value)
            held_bytes += value.nbytes
        if bucket:
            yield bucket


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
