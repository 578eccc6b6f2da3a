"""What the ranks of a training tell each other: gradients in every step, or parameters from time to time.

The training loop asks an Averaging, and does not know how many ranks there are. Weights are those of the examples: N ranks take
the step that one process takes on the same batch, and uneven last batches need no care.

Dimension key: W ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from lighten.core.distributed import Distributed
from lighten.core.errors import InputError, LightenError, ParityError, RankError, UnfitError
from lighten.core.run import Ranks, Run
from lighten.engine.checkpoint import digest, snapshot
from lighten.engine.shard import clip_gradients
from lighten.engine.sync_norm import SyncedBatchNorms

Fail = Callable[[str], NoReturn]
"""Stops a training: says what is not finite, and where."""


class Averaging(Protocol):
    """Between the ranks of one training; every rank makes the same calls."""

    def gradient(self, compute: Callable[[float], float], num_examples: int) -> float:
        """`compute(share)` leaves the gradient of share * (mean loss over `num_examples`) and gives that mean. When this is
        done the gradient is what the optimizer shall step along, and the loss is the mean over all ranks that take this step.
        """

    def forward(self) -> AbstractContextManager[Any]:
        """Around each forward pass."""

    def moved(self) -> None:
        """The optimizer has made its step."""

    def settle(self, averages: Sequence[Tensor]) -> None:
        """At the end of an epoch: parameters, buffers, the optimizer's state and `averages` are the same on all ranks after it.
        Raises RankError naming a rank where they are not.
        """

    def overall(self, loss: float) -> float:
        """The mean over the ranks of what each has as its mean in an epoch."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep beside parameters and optimizer."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a checkpoint's state, when the parameters have been restored."""


@dataclass
class Sole:
    """One process: nothing to tell. fail: called where loss or gradient are not finite."""

    parameters: Sequence[Tensor]
    fail: Fail

    def gradient(self, compute: Callable[[float], float], num_examples: int) -> float:
        """See Averaging."""
        del num_examples
        loss = compute(1.0)
        check_finite(loss, norm_of(self.parameters), where="", fail=self.fail)
        return loss

    def forward(self) -> AbstractContextManager[Any]:
        """See Averaging."""
        return nullcontext()

    def moved(self) -> None:
        """See Averaging."""

    def settle(self, averages: Sequence[Tensor]) -> None:
        """See Averaging."""

    def overall(self, loss: float) -> float:
        """See Averaging."""
        return loss

    @property
    def state(self) -> dict[str, Tensor]:
        """See Averaging."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See Averaging."""


@dataclass
class Together:
    """What both ways of averaging need. is_asked: whether Ctrl-C was pressed here. num_own: examples this rank alone has, None
    where all have the same.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    distributed: Distributed
    fail: Fail
    is_asked: Callable[[], bool]
    num_own: int | None = None
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        self.check_equal("The networks that training begins with")

    @property
    def state(self) -> dict[str, Tensor]:
        """See Averaging."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See Averaging."""

    def rows(self, *facts: float) -> Tensor:
        """Every rank's facts, (W, facts), float64."""
        rows = torch.zeros(self.ranks.world, len(facts), dtype=torch.float64)
        rows[self.ranks.number] = torch.tensor(facts, dtype=torch.float64)
        self.ranks.add([rows])
        return rows

    def weight_of(self, num_examples: int) -> float:
        """Of this rank among the others. Ranks with data of their own count as much as they have, however often they see it
        (McMahan et al. 2017, arXiv:1602.05629, eq. 1).
        """
        return float(num_examples if self.num_own is None else self.num_own)

    def raise_any(self, own: BaseException | None, has_failed_W: Tensor) -> None:
        """The same error on every rank when one has failed."""
        if not has_failed_W.any():
            return
        told = self.ranks.gather(None if own is None else [type(own).__name__, _text(own)])
        rank = next(rank for rank, fault in enumerate(told) if fault is not None)
        kind, text = told[rank]
        known = {error.__name__: error for error in (InputError, UnfitError, ParityError)}
        if kind in known:
            raise known[kind](f"Rank {rank}: {text}") from own
        raise UnfitError(f"Rank {rank}: {kind}: {text}") from own

    def check_equal(self, what: str) -> None:
        """Raises RankError naming the first rank whose parameters or buffers are others than the first one's."""
        digests = self.ranks.gather(digest(snapshot(self.module)))
        for rank, found in enumerate(digests):
            if found != digests[0]:
                raise RankError(f"{what} differ: rank {rank} has other weights than rank 0.", rank=rank)

    def mean(self, tensors: Sequence[Tensor], share: float) -> None:
        """Each becomes its weighted mean, in place; integers become the first rank's. The shares of the ranks add up to 1."""
        real = [value for value in tensors if value.is_floating_point()]
        for value in real:
            value.detach().mul_(share)
        self.ranks.add(real)
        others = {str(number): value for number, value in enumerate(tensors) if not value.is_floating_point()}
        for name, value in self.ranks.share_tensors(others).items():
            others[name].copy_(value)

    def optimizer_state(self) -> list[Tensor]:
        """Moments, in the order of the parameters."""
        found = [value for one in self.parameters for value in self.optimizer.state.get(one, {}).values()]
        return [value for value in found if isinstance(value, Tensor)]


@dataclass
class Gradients(Together):
    """Averaged in every step: data parallel (Goyal et al. 2017, arXiv:1706.02677, section 2.3, with weights)."""

    def gradient(self, compute: Callable[[float], float], num_examples: int) -> float:
        """See Averaging."""
        found = self.rows(self.weight_of(num_examples), self.is_asked())
        if found[:, 1].any():
            raise KeyboardInterrupt
        shares_W = found[:, 0] / found[:, 0].sum()
        loss, fault = _tried(lambda: compute(float(shares_W[self.ranks.number])))
        norm = 0.0 if fault else norm_of(self.parameters)
        rows = self.rows(loss, norm, fault is not None, any(value.grad is None for value in self.parameters))
        self.raise_any(fault, rows[:, 2])
        for rank, (one_loss, one_norm, *_) in enumerate(rows.tolist()):
            check_finite(one_loss, one_norm, where=f" on rank {rank}", fail=self.fail)
        if rows[:, 3].any():
            self._fill()
        self.ranks.add([value.grad for value in self.parameters if value.grad is not None])
        return math.fsum((rows[:, 0] * shares_W).tolist())

    def _fill(self) -> None:
        """Zeros for parameters that only examples of other ranks reached; those that none reached stay without a gradient."""
        reached = torch.tensor([value.grad is not None for value in self.parameters], dtype=torch.int32)
        self.ranks.add([reached])
        for value, count in zip(self.parameters, reached.tolist(), strict=True):
            if count and value.grad is None:
                value.grad = torch.zeros_like(value)

    def forward(self) -> AbstractContextManager[Any]:
        """See Averaging."""
        return SyncedBatchNorms(self.ranks) if self.distributed.sync_norm else nullcontext()

    def moved(self) -> None:
        """See Averaging."""

    def overall(self, loss: float) -> float:
        """See Averaging: each step's was the mean already."""
        return loss

    def settle(self, averages: Sequence[Tensor]) -> None:
        """See Averaging. Only what batch norms of their own have seen can differ."""
        del averages
        if not self.distributed.sync_norm:
            weights = self.rows(self.weight_of(1))
            self.mean(list(self.module.buffers()), float(weights[self.ranks.number, 0] / weights.sum()))
        self.check_equal("The networks after an epoch")


@dataclass
class Sharded(Gradients):
    """Averaged in every step by fully_shard, which leaves each rank its part of the mean (engine.parts).

    A rank whose forward pass fails between two transfers keeps the others waiting until the timeout.
    """

    def gradient(self, compute: Callable[[float], float], num_examples: int) -> float:
        """See Averaging."""
        found = self.rows(self.weight_of(num_examples), self.is_asked())
        if found[:, 1].any():
            raise KeyboardInterrupt
        shares_W = found[:, 0] / found[:, 0].sum()
        loss, fault = _tried(lambda: compute(float(shares_W[self.ranks.number]) * self.ranks.world))
        rows = self.rows(loss, fault is not None)
        self.raise_any(fault, rows[:, 1])
        norm = clip_gradients(self.parameters)
        for rank, (one_loss, _) in enumerate(rows.tolist()):
            check_finite(one_loss, norm, where=f" on rank {rank}", fail=self.fail)
        return math.fsum((rows[:, 0] * shares_W).tolist())


@dataclass
class Parameters(Together):
    """Averaged every `average_every` steps: local SGD, federated averaging, DiLoCo (core.distributed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.anchor = [value.detach().clone() for value in self.parameters]
        has_momentum = self.distributed.outer_momentum > 0
        self.velocity = [torch.zeros_like(value) for value in self.anchor] if has_momentum else []
        self.num_steps, self.num_examples, self.share = 0, 0, 1 / self.ranks.world
        self.fault: BaseException | None = None
        self.what = ""

    @property
    def state(self) -> dict[str, Tensor]:
        """See Averaging."""
        return {str(number): value for number, value in enumerate(self.velocity)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See Averaging."""
        for number, value in enumerate(self.velocity):
            value.copy_(state[str(number)])
        for anchor, value in zip(self.anchor, self.parameters, strict=True):
            anchor.copy_(value)

    def gradient(self, compute: Callable[[float], float], num_examples: int) -> float:
        """See Averaging: of this rank alone, and what goes wrong is told at the next average."""
        self.num_examples += num_examples
        loss, fault = _tried(lambda: compute(1.0))
        norm = 0.0 if fault else norm_of(self.parameters)
        self.fault = self.fault or fault
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.what = self.what or _not_finite(loss, norm, f" on rank {self.ranks.number}")
        if self.fault or self.what:
            for value in self.parameters:
                value.grad = None
        return loss

    def forward(self) -> AbstractContextManager[Any]:
        """See Averaging."""
        return nullcontext()

    def moved(self) -> None:
        """See Averaging."""
        self.num_steps += 1
        if self.num_steps == self.distributed.average_every:
            self._average()

    def settle(self, averages: Sequence[Tensor]) -> None:
        """See Averaging."""
        if self.num_steps:
            self._average()
        self.mean([*self.module.buffers(), *self.optimizer_state(), *averages], self.share)
        self.check_equal("The networks after an epoch")

    def overall(self, loss: float) -> float:
        """See Averaging."""
        return math.fsum(self.rows(self.share * loss)[:, 0].tolist())

    def _average(self) -> None:
        found = self.rows(self.weight_of(self.num_examples), self.is_asked(), self.fault is not None, bool(self.what))
        self.raise_any(self.fault, found[:, 2])
        if found[:, 3].any():
            self.fail(next(what for what in self.ranks.gather(self.what) if what))
        self.share = float(found[self.ranks.number, 0] / found[:, 0].sum())
        self.mean(self.parameters, self.share)
        self._step_outside()
        self.num_steps, self.num_examples = 0, 0
        if found[:, 1].any():
            raise KeyboardInterrupt

    @torch.no_grad()
    def _step_outside(self) -> None:
        """Nesterov's step from where the ranks last agreed, along the averaged change (arXiv:2311.08105, algorithm 1)."""
        lr, momentum = self.distributed.outer_lr, self.distributed.outer_momentum
        for number, (value, anchor) in enumerate(zip(self.parameters, self.anchor, strict=True)):
            if (lr, momentum) != (1.0, 0.0):
                change = anchor - value
                if self.velocity:
                    self.velocity[number].mul_(momentum).add_(change)
                    change = change + momentum * self.velocity[number]
                value.copy_(anchor - lr * change)
            anchor.copy_(value)


def averaging_for(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, run: Run, num_own: int, is_asked: Callable[[], bool], fail: Fail
) -> Averaging:
    """As run.distributed says. num_own: examples in the split of this rank. Raises RankError where the ranks do not begin with
    the same weights.
    """
    if run.ranks.world == 1:
        return Sole([value for group in optimizer.param_groups for value in group["params"]], fail)
    own = num_own if run.distributed.own_data else None
    kind: type[Gradients | Parameters] = Gradients if run.distributed.average_every is None else Parameters
    kind = Sharded if run.distributed.shard == "full" else kind
    return kind(module, optimizer, run.ranks, run.distributed, fail, is_asked, own)


def norm_of(parameters: Sequence[Tensor]) -> float:
    """Of the whole gradient. A finite loss with an infinite gradient would make the weights NaN."""
    return float(nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None]))


def check_finite(loss: float, norm: float, *, where: str, fail: Fail) -> None:
    """where: behind the name of what is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        fail(_not_finite(loss, norm, where))


def _not_finite(loss: float, norm: float, where: str) -> str:
    return f"loss{where} is {loss}" if not math.isfinite(loss) else f"gradient's norm{where} is {norm}"


def _tried(compute: Callable[[], float]) -> tuple[float, Exception | None]:
    """A rank that failed must still meet the others: they would wait for it."""
    try:
        return compute(), None
    except RankError:
        raise
    except Exception as error:
        return 0.0, error


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, LightenError) else " ".join(str(error).split())[:300]
