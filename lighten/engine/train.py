"""The one training loop: fine-tuning, distillation, sparsity and quantization-aware training differ in the loss they pass.

A step is: batches, loss, gradient, clip, learning rate, update, hook, average. An epoch ends with: validate, keep, checkpoint.
Every epoch draws its random numbers (order, dropout) from the seed and its own number alone, so a resumed training repeats an
uninterrupted one bit for bit with no generator's state on disk: on one kind of device, with one number of threads, and where
validation, penalty and hook depend on nothing but what they are given.

On several ranks each makes every step, on its share of the batch; engine.averaging says what they tell each other, and nothing
else here knows of it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lighten.core.data import Batch, Split
from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run, Stopped
from lighten.engine import checkpoint
from lighten.engine.averaging import averaging_for
from lighten.engine.interrupt import deferred
from lighten.engine.losses import Loss
from lighten.engine.memory_format import channels_last
from lighten.engine.modes import set_training
from lighten.engine.parts import parts_of
from lighten.engine.scalars import Log, scalars
from lighten.engine.schedule import Training, optimizer_for
from lighten.engine.shard import clip_gradients, put, whole
from lighten.engine.shuffle import Shuffled, to_device
from lighten.engine.threads import torch_threads


@dataclass(frozen=True)
class Extras:
    """What a training may be given beside its loss.

    validate: the network's loss on examples that do not train, in evaluation mode; called before training and after each epoch,
    and the same on every rank.
    penalty: (module, progress in [0, 1)) -> a term added to the loss, for instance of group sparsity. after_step: (steps done,
    progress in (0, 1]), called when the weights have moved, for instance to put masks on again. folder: where the checkpoint
    lies; a training that finds its own there goes on, one that is finished is not repeated. tensorboard: where event files go.
    decides: after_step chooses by the weights, so that ranks must not train apart.
    """

    validate: Callable[[nn.Module], float] | None = None
    penalty: Callable[[nn.Module, float], Tensor] | None = None
    after_step: Callable[[int, float], None] | None = None
    folder: Path | None = None
    tensorboard: Path | None = None
    decides: bool = False


@dataclass(frozen=True)
class Epoch:
    """number: 0 is before training, where there is no loss. loss: mean over the steps, penalty included. validation: the loss
    there, None without one and where it is not finite. lr: at the last step. seconds: training and validation.
    """

    number: int
    loss: float | None
    validation: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """module: the one that was given, in evaluation mode, with the weights of epoch `kept`. history: epoch 0 and those made,
    in order. num_steps: updates made. stopped_early: by patience.
    """

    module: nn.Module
    kept: int
    history: tuple[Epoch, ...]
    num_steps: int
    stopped_early: bool


def train(
    module: nn.Module, split: Split, *, loss: Loss, training: Training, run: Run, extras: Extras | None = None
) -> Trained:
    """Trains `module` in place, on the device it lies on; `Training.keep` says which weights it ends with.

    However it ends, by an error or Ctrl-C too, the module is in evaluation mode and has the weights to keep so far. Raises
    UnfitError when loss or gradient are not finite or nothing can be trained, InputError when the split is empty or patience
    has no validation to watch. Ctrl-C is raised as core.run.Stopped with a Trained once an epoch is done. On several ranks all
    raise the same, which names the rank, and RankError where one is gone or its weights are others.
    """
    extras = extras or Extras()
    _check(training, extras, run)
    threads = max(1, run.threads // run.ranks.local)
    with torch_threads(threads), _own_randomness(module), torch.enable_grad(), ExitStack() as stack:
        if run.distributed.shard == "none":  # parts of weights lie in one row
            stack.enter_context(channels_last(module))
        is_asked = stack.enter_context(deferred(run.ranks.world > 1))
        fit = _Fit(module, split, loss, training=training, run=run, extras=extras)
        fit.join(is_asked)
        fit.resume()
        stack.callback(fit.finish)
        log = stack.enter_context(scalars(extras.tensorboard, first_step=fit.step + 1))
        try:
            for _ in run.progress.track(fit.steps(log), what=fit.news, total=fit.num_steps - fit.step):
                pass  # a step is made by asking for it
        except KeyboardInterrupt as interrupt:
            if len(fit.history) < 2:
                raise
            run.ledger.note("interrupted training", kept_epoch=fit.kept_epoch)
            raise Stopped(fit.trained()) from interrupt
    return fit.trained()


class _Fit:
    """A training under way. module: what the passes run on. parts: where ranks hold a part of it each, that and the caller's
    network. kept: the weights to end with. average: the running average of the parameters, if any.
    """

    def __init__(self, module: nn.Module, split: Split, loss: Loss, *, training: Training, run: Run, extras: Extras) -> None:
        self.parts = parts_of(module, run)
        self.module = module = module if self.parts is None else self.parts.module
        self.loss, self.num_examples = loss, len(split)
        self.training, self.run, self.extras = training, run, extras
        self.batches = _batches(split, training, run)
        self.optimizer = optimizer_for(module, training)
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        self.device = self.parameters[0].device
        # ranks with data of their own make as many steps as the one that has most
        num_batches = max(run.ranks.gather(self.batches.num_batches))
        self.steps_per_epoch = max(1, num_batches // training.accumulate)
        self.num_steps = max(1, round(training.epochs * self.steps_per_epoch))
        self.step = 0
        self.history: list[Epoch] = []
        self.losses: list[float] = []
        self.kept, self.kept_epoch = checkpoint.snapshot(module), 0
        self.start = checkpoint.digest(self.kept)
        self.average = None if training.ema is None else _copies(module)

    def join(self, is_asked: Callable[[], bool]) -> None:
        """Meets the other ranks. is_asked: whether Ctrl-C was pressed."""
        own, run = self.num_examples, self.run
        self.ranks = averaging_for(self.module, self.optimizer, run=run, num_own=own, is_asked=is_asked, fail=self._fail)

    def steps(self, log: Log) -> Iterator[None]:
        """Makes one step each time it is asked."""
        if not self.history:
            self._end_epoch(None, time.perf_counter(), log)
        while self.step < self.num_steps and not self._is_stale():
            began, self.losses = time.perf_counter(), []
            # other dropout on each rank; the first one's is that of a single process
            torch.manual_seed((self._seed() + (self.run.ranks.number << 40)) % 2**63)
            set_training(self.module, True, freeze_norm=self.training.freeze_norm)
            for batches in self._of_steps():
                self.losses.append(self._step(batches, log))
                yield
                if self.step == self.num_steps:
                    break
            self._end_epoch(_mean(self.losses), began, log)
            self._save()

    def news(self) -> str:
        """Where the training is, in a line."""
        num_epochs = math.ceil(self.training.epochs)
        said = f"training, epoch {min(len(self.history), num_epochs)} of {num_epochs}"
        if self.losses:
            said += f", loss {_mean(self.losses):.4g}"
        last = self.history[-1].validation if self.history else None
        return said if last is None else f"{said}, validation {last:.4g}"

    def trained(self) -> Trained:
        """What there is so far."""
        module = self.module if self.parts is None else self.parts.original
        return Trained(module, self.kept_epoch, tuple(self.history), self.step, self.step < self.num_steps)

    def resume(self) -> None:
        """Takes up the checkpoint in the folder if it is of this very training, from these weights or those it left behind."""
        loaded = checkpoint.load_shared(self.extras.folder, self.run.ranks)
        if loaded is None:
            return
        parts, facts = loaded
        if facts["identity"] != self._identity() or self.start not in (facts["start"], facts["end"]):
            self.run.progress.say(f"{self.extras.folder} holds another training; this one starts from the beginning.")
            return
        checkpoint.restore(self.module, parts["weights"])
        checkpoint.restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for name, value in (self.average or {}).items():
            put(value, parts["average"][name])
        self.ranks.restore(parts.get("ranks", {}))
        self.kept, self.kept_epoch, self.start = parts["kept"], facts["kept"], facts["start"]
        self.step, self.history = facts["step"], [Epoch(**epoch) for epoch in facts["history"]]
        for epoch in self.history:
            self._note(epoch)
        self.run.ledger.note("resumed training", epoch=self.history[-1].number, step=self.step)

    def finish(self) -> None:
        """Leaves the module as the caller shall find it."""
        self.optimizer.zero_grad()
        module = self.module if self.parts is None else self.parts.give_back()
        checkpoint.restore(module, self.kept)
        set_training(module, False)

    def _whole(self) -> AbstractContextManager[nn.Module]:
        """The caller's network with all its weights."""
        return nullcontext(self.module) if self.parts is None else self.parts.together()

    def _of_steps(self) -> Iterator[list[Batch]]:
        """An epoch's batches, those of one step together; the last that are too few for a step are left out."""
        batches = chain.from_iterable(self.batches.epoch(self._seed() + turn) for turn in self._turns())
        for _ in range(self.steps_per_epoch):
            together = [to_device(batch, self.device) for batch in islice(batches, self.training.accumulate)]
            if together:
                yield together

    def _turns(self) -> Iterator[int]:
        """A rank that has fewer examples of its own than another sees them more often."""
        return count(0, 1 << 20) if self.run.distributed.own_data else iter((0,))

    def _step(self, batches: list[Batch], log: Log) -> float:
        num_examples = sum(len(batch.index) for batch in batches)
        value = self.ranks.gradient(lambda share: self._gradient(batches, num_examples, share), num_examples)
        if self.training.clip_norm is not None:
            clip = nn.utils.clip_grad_norm_ if self.parts is None else clip_gradients
            clip(self.parameters, self.training.clip_norm)
        lr = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.ranks.moved()
        self.step += 1
        if self.extras.after_step is not None:
            with self._whole():
                self.extras.after_step(self.step, self.step / self.num_steps)
        self._update_average()
        log("train/loss", value, self.step)
        log("train/lr", lr, self.step)
        return value

    def _gradient(self, batches: list[Batch], num_examples: int, share: float) -> float:
        """Of `share` times the mean loss over all their examples, which is given; each batch is forgotten before the next one
        runs.
        """
        self.optimizer.zero_grad()
        parts = []
        is_bf16 = self.training.precision == "bf16"
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16), self.ranks.forward():
                loss = self.loss(self.module, batch)
                if self.extras.penalty is not None and self.parts is None:
                    loss = loss + self.extras.penalty(self.module, self.step / self.num_steps)
            if not loss.requires_grad:
                raise UnfitError("The loss does not depend on the weights.", hint="Does forward run under torch.no_grad?")
            part = loss * (len(batch.index) / num_examples)
            (part * share).backward()  # type: ignore[no-untyped-call]
            parts.append(float(part.detach()))
        if self.extras.penalty is not None and self.parts is not None:
            parts.append(self.parts.add_gradient(self.extras.penalty, self.step / self.num_steps))
        return math.fsum(parts)

    def _lr(self) -> float:
        """At the middle of the step: neither the first nor the last update has a learning rate of 0."""
        return self.training.lr_at((self.step + 0.5) / self.num_steps)

    def _fail(self, what: str) -> NoReturn:
        raise UnfitError(
            f"The {what} at step {self.step + 1} of {self.num_steps}; the weights of epoch {self.kept_epoch} are kept.",
            hint=f"Try a lower lr, it is {self._lr():.3g} here, or clip_norm=1.",
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.training.ema is None:
            return
        # the start must not weigh in a short training as if it were long: no slower than 1/10 of the steps so far
        decay = min(self.training.ema, self.step / (self.step + 9))
        for name, value in self.module.named_parameters():
            self.average[name].lerp_(value, 1 - decay)

    def _end_epoch(self, loss: float | None, began: float, log: Log) -> None:
        if loss is not None:
            self.ranks.settle(list((self.average or {}).values()))
            loss = self.ranks.overall(loss)
        with self._averaged():
            set_training(self.module, False)
            validation = self._validation()
            if self.training.keep == "last" or self.extras.validate is None or _is_best(validation, self.history):
                self.kept, self.kept_epoch = checkpoint.snapshot(self.module), len(self.history)
        lr = self.optimizer.param_groups[0]["lr"] if self.step else 0.0
        epoch = Epoch(len(self.history), loss, validation, lr, round(time.perf_counter() - began, 3))
        self.history.append(epoch)
        self._note(epoch)
        if validation is not None:
            log("validation/loss", validation, self.step)

    def _note(self, epoch: Epoch) -> None:
        facts = {name: value for name, value in asdict(epoch).items() if name not in ("number", "seconds")}
        self.run.ledger.note("trained an epoch", epoch=epoch.number, epoch_seconds=epoch.seconds, **facts)

    def _validation(self) -> float | None:
        if self.extras.validate is None:
            return None
        with torch.no_grad(), self._whole() as module:
            set_training(module, False)
            loss = float(self.extras.validate(module))
        return loss if math.isfinite(loss) else None

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The module has the averaged parameters inside the block."""
        if self.average is None:
            yield
            return
        current = _copies(self.module)
        checkpoint.restore(self.module, self.average)
        try:
            yield
        finally:
            checkpoint.restore(self.module, current)

    def _is_stale(self) -> bool:
        best = min(self.history, key=lambda epoch: math.inf if epoch.validation is None else epoch.validation)
        return self.training.patience is not None and self.history[-1].number - best.number >= self.training.patience

    def _seed(self) -> int:
        return (self.run.seed * 1_000_003 + len(self.history)) % 2**63

    def _identity(self) -> dict[str, Any]:
        known = {"training": asdict(self.training), "seed": self.run.seed, "num_steps": self.num_steps}
        # ranks that average gradients make the steps of one process, so their number does not matter
        apart = self.run.distributed.average_every is not None or self.run.distributed.own_data
        return {**known, "distributed": self.run.distributed.to_dict()} if apart else known

    def _save(self) -> None:
        if self.extras.folder is None or (self.run.ranks.number and self.parts is None):
            return
        parts = {
            "weights": checkpoint.snapshot(self.module),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            "average": {name: whole(value).cpu().contiguous() for name, value in (self.average or {}).items()},
            "kept": self.kept,
            "ranks": {name: value.cpu() for name, value in self.ranks.state.items()},
        }
        facts = {
            "identity": self._identity(),
            "start": self.start,
            "end": checkpoint.digest(self.kept),
            "step": self.step,
            "kept": self.kept_epoch,
            "history": [asdict(epoch) for epoch in self.history],
        }
        if not self.run.ranks.number:
            checkpoint.save(self.extras.folder, parts, facts)


def _check(training: Training, extras: Extras, run: Run) -> None:
    if training.patience is not None and extras.validate is None:
        raise InputError("patience needs a validation to watch.", hint="Pass validate, or leave patience out.")
    if extras.decides and (run.distributed.average_every or 1) > 1:
        raise InputError(
            "distributed: average_every lets the ranks train apart, and this step chooses by the weights while it trains.",
            hint="Leave out average_every: then masks and codes are the same on all ranks.",
        )


def _batches(split: Split, training: Training, run: Run) -> Shuffled:
    """batch_size is that of all ranks together."""
    number, world = run.ranks.number, run.ranks.world
    if run.distributed.own_data:
        return Shuffled(split, max(1, training.batch_size // world))
    return Shuffled(split, training.batch_size, share=(number, world))


def _is_best(loss: float | None, history: list[Epoch]) -> bool:
    return loss is not None and all(epoch.validation is None or loss < epoch.validation for epoch in history)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _own_randomness(module: nn.Module) -> AbstractContextManager[None]:
    """The caller's random numbers go on after the block as if it had drawn none."""
    devices = {value.device.index for value in module.parameters() if value.device.type == "cuda"}
    return torch.random.fork_rng(devices=sorted(devices))
