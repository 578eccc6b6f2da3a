"""A network whose stages lie one behind the other on the ranks of the pipeline axis, with torch's 1F1B order.

A batch is cut into microbatches. Each rank runs one forward and another backward in turn, so that as many are under way as
there are stages behind it, and not all of them (PipeDream-Flush, Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1).
Of p ranks and m microbatches a share of (p - 1) / (m + p - 1) of the time is spent waiting.

Dimension key: B examples of a batch.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from lighten.core.data import Batch
from lighten.core.errors import InputError, UnfitError
from lighten.core.parallel import Stage
from lighten.engine.checkpoint import named_tensors
from lighten.engine.losses import Loss
from lighten.engine.quiet import quiet
from lighten.engine.shard import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Pipeline:
    """One rank's part of the whole. module: its stage, whose parameters the optimizer of this rank trains.

    Batch norms see microbatches, so their statistics are those of smaller batches; losses must be means over examples.
    """

    def __init__(self, stages: Sequence[Stage], mesh: "DeviceMesh", loss: Loss, *, microbatches: int) -> None:
        """stages: of analyze.stages, one a rank of `mesh`, which has one dimension; the same on all ranks. microbatches: at
        most so many, at least one. Raises InputError below 1, UnfitError when there are not as many stages as ranks.
        """
        if microbatches < 1:
            raise InputError(f"microbatches must be at least 1. Got {microbatches}.")
        if len(stages) != mesh.size():
            raise UnfitError(f"There are {len(stages)} stages, and the pipeline axis has {mesh.size()} ranks.")
        self.loss, self.microbatches = loss, microbatches
        self.group, self.place = mesh.get_group(), mesh.get_local_rank()
        self.module, self._inputs = stages[self.place].module, stages[self.place].inputs
        self._ties = _ties(stages)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with quiet(), FakeCopyMode(self._mode):
            # without memory: what the other ranks' stages give, and what their tensors are called
            self._shadows = [Stage(copy.deepcopy(stage.module), stage.inputs, stage.macs) for stage in stages]
        self._schedules: dict[Any, Any] = {}
        self._batch = Batch((), None, ())

    def gradient(self, batch: Batch, names: Sequence[str]) -> float:
        """Adds the gradient of the batch's mean loss to that of this rank's parameters; gives the loss, on every rank.

        batch: the same on every rank. names: of the network's inputs, in their order. The batch is cut into the most
        microbatches of equal size that are allowed: into one where its size is a prime above that.
        """
        size = len(batch.index)
        count = max(number for number in range(1, self.microbatches + 1) if size % number == 0)
        given = dict(zip(names, batch.inputs, strict=True))
        shapes = tuple((tuple(value.shape), value.dtype) for value in batch.inputs)
        if (shapes, count) not in self._schedules:
            self._schedules[shapes, count] = self._schedule(
                {name: value[: size // count] for name, value in given.items()}, count
            )
        self._batch = batch
        losses: list[Tensor] = []
        is_last = self.place == dist.get_world_size(self.group) - 1
        self._schedules[shapes, count].step(
            target=torch.arange(size) if is_last else None,
            losses=losses if is_last else None,
            **{name: given[name] for name in self._inputs},
        )
        total = torch.stack([loss.detach() for loss in losses]).sum() if is_last else torch.zeros(())
        dist.broadcast(total, group=self.group, group_src=dist.get_world_size(self.group) - 1)
        return float(total)

    def reduce(self) -> None:
        """Once a step, behind its last gradient: a tensor that several stages read has a part of its gradient in each, and
        their sum in all of them afterwards.
        """
        parameters = dict(self.module.named_parameters())
        for names in self._ties:
            if self.place not in names:
                continue
            parameter = parameters[names[self.place]]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _sum_over(sorted(names), self.place, _local(parameter.grad), group=self.group)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of all stages by name, whole, on every rank. All ranks of the axis must call it."""
        mine = {name: whole(value.detach()) for name, value in named_tensors(self.module).items()}
        found: dict[str, Tensor] = {}
        for place, shadow in enumerate(self._shadows):
            for name, like in named_tensors(shadow.module).items():
                value = mine[name].clone() if place == self.place else torch.empty(like.shape, dtype=like.dtype)
                dist.broadcast(value, group=self.group, group_src=place)
                found[name] = value
        return found

    def _schedule(self, inputs: dict[str, Tensor], count: int) -> Any:
        """For microbatches of these sizes. torch would find the sizes by running each stage on arbitrary numbers, which batch
        norms remember: they are found without numbers here.
        """
        received, given = self._sizes(inputs)
        device = next(self.module.parameters()).device
        stage = PipelineStage(
            self.module,
            self.place,
            len(self._shadows),
            device,
            input_args=received,
            output_args=given,
            group=self.group,
        )
        kind = Schedule1F1B if count >= len(self._shadows) else ScheduleGPipe
        return kind(stage, count, loss_fn=self._loss, scale_grads=False)

    def _sizes(self, inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What this rank's stage receives and gives, as tensors without numbers."""
        value: tuple[Any, ...] = ()
        with self._mode, torch.enable_grad(), quiet():
            fake = {name: self._mode.from_tensor(given) for name, given in inputs.items()}
            for shadow in self._shadows[: self.place + 1]:
                received = value
                result = shadow.module(*value, **{name: fake[name] for name in shadow.inputs})
                value = result if isinstance(result, tuple) else (result,)
        return tuple(map(_without_numbers, received)), tuple(map(_without_numbers, value))

    def _loss(self, output: Any, index_B: Tensor) -> Tensor:
        batch, rows = self._batch, index_B.tolist()
        target = None if batch.target is None else batch.target[index_B]
        part = Batch(tuple(value[index_B] for value in batch.inputs), target, tuple(batch.index[row] for row in rows))
        # a share of the mean over the batch, so that nothing is to be scaled afterwards
        return self.loss(_Given(output), part) * (len(rows) / len(batch.index))


class _Given(nn.Module):
    """A network whose output is known: what a loss calls."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor) -> Any:
        """The output, whatever it is given."""
        del inputs
        return self.output


def _ties(stages: Sequence[Stage]) -> list[dict[int, str]]:
    """Parameters that several stages read, each as its name by place."""
    names: dict[int, dict[int, str]] = {}
    for place, stage in enumerate(stages):
        for name, parameter in stage.module.named_parameters():
            names.setdefault(id(parameter), {})[place] = name
    return [found for found in names.values() if len(found) > 1]


def _sum_over(places: list[int], mine: int, value: Tensor, *, group: dist.ProcessGroup) -> None:
    """In place, over some ranks of a group only: the first of them adds up and sends the sum back."""
    first, *others = places
    if mine != first:
        dist.send(value, group=group, group_dst=first)
        dist.recv(value, group=group, group_src=first)
        return
    part = torch.empty_like(value)
    for other in others:
        dist.recv(part, group=group, group_src=other)
        value += part
    for other in others:
        dist.send(value, group=group, group_dst=other)


def _local(value: Any) -> Tensor:
    """This rank's part of a sharded tensor: ranks behind one another hold the same part."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[no-any-return]


def _without_numbers(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta", requires_grad=value.requires_grad)
