"""Knowledge distillation: a student learns what its teacher says, with labels or without, in the one training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from lighten.core.data import Batch, Data, Split
from lighten.core.errors import InputError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.recipe import refuse_unknown
from lighten.core.run import Run, Stopped
from lighten.engine import soft_labels
from lighten.engine.losses import Loss, first_output
from lighten.engine.schedule import Training
from lighten.engine.teaching import KINDS, check_suits, check_values, taught
from lighten.methods.distill.augment import CHANGES, augmented, mixing
from lighten.methods.distill.figures import Figures, figures_on
from lighten.methods.distill.hints import KINDS as FEATURES
from lighten.methods.distill.hints import Hints, hinted, with_hints
from lighten.methods.distill.layers import MATCHES
from lighten.methods.distill.on_policy import OnPolicy, on_policy_of, reading, writing
from lighten.methods.distill.student import check_makeable, check_student, config_digest, make_student
from lighten.methods.distill.teachers import ORIGINAL, Teacher, ask_once, check_teacher, outside, teacher_of
from lighten.methods.training import check_patience, check_validation, fit_kept, own_graph, task_loss, training_split

Says = Callable[[Batch], Tensor]
_EXAMPLES = 64  # that two networks are compared on, to match their layers
_EVERY = 1 << 31  # outputs that are no distribution are kept whole
_DISTRIBUTIONS = ("classification", "language-model", "speech-recognition")


@dataclass(frozen=True)
class Distill(Training):
    """The knobs of `engine.schedule.Training`, and:

    teacher: "original", the network before the recipe; a folder, .onnx file or package.module:callable; in Python also a
    module, a Model or any callable of the inputs; or a list of these or of {teacher, weight}. loss, temperature, alpha: of
    engine.teaching.taught. labels: True uses them, False the teacher alone, None uses them where there are any.
    features: what inside the teacher is learned too (methods.distill.hints.KINDS). beta: its weight, > 0. match: "name",
    "depth", "similarity", or {layer of the student: layer of the teacher}.
    student: None for the network as it stands, {width, depth, params, macs}, the fractions of a smaller one made from it, or
    {config}, a config.json of Hugging Face or its folder, whose network begins with random weights.
    cache: True computes the teacher's answers once; a path keeps them there. top_k: logits of each that are kept.
    augment: images are shifted, flipped and mixed at random, for both networks alike; or a list of "shift", "flip", "mixup".
    on_policy: of language models, the share of the windows that the student goes on with itself, or {share, prompt,
    temperature} (methods.distill.on_policy).
    validation: fraction of the training split, in [0, 0.5], that does not train but says which epoch was best. compare: trains
    the student without a teacher too, for the report.
    """

    teacher: Any = ORIGINAL
    loss: str = "kd"
    temperature: float = 2.0
    alpha: float = 0.5
    labels: bool | None = None
    features: str = "none"
    beta: float = 1.0
    match: str | Mapping[str, str] = "similarity"
    student: Mapping[str, Any] | None = None
    cache: bool | str = False
    top_k: int = 64
    augment: bool | Sequence[str] = False
    on_policy: Any = None
    validation: float = 0.1
    compare: bool = False

    card: ClassVar[Card] = Card(
        name="distill",
        title="Knowledge distillation from a teacher, with labels or without",
        paper="Hinton et al. 2015, arXiv:1503.02531",
        needs_data=True,
        rewrites=True,
        trains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_validation("distill", self.validation)
        check_values(self.temperature, self.alpha)
        refuse_unknown("distillation loss", str(self.loss), KINDS)
        refuse_unknown("features", str(self.features), FEATURES)
        if not isinstance(self.match, Mapping):
            refuse_unknown("match", str(self.match), MATCHES)
        check_teacher(self.teacher)
        if self.student is not None:
            check_student(self.student)
        self._check_kinds()
        self._check_combinations()

    def _check_kinds(self) -> None:
        beta, top_k, changes = self.beta, self.top_k, self.augment
        if not isinstance(beta, int | float) or isinstance(beta, bool) or not 0 < beta < float("inf"):
            raise InputError(f"distill: beta must be > 0. Got {beta!r}.")
        if type(top_k) is not int or top_k < 1:
            raise InputError(f"distill: top_k must be an integer >= 1. Got {top_k!r}.")
        for name, value in (("labels", self.labels), ("compare", self.compare)):
            if not isinstance(value, bool) and not (value is None and name == "labels"):
                raise InputError(f"distill: {name} must be true or false. Got {value!r}.")
        if not isinstance(self.cache, bool | str | Path):
            raise InputError(f"distill: cache must be true, false or a path. Got {self.cache!r}.")
        if not isinstance(changes, bool) and (isinstance(changes, str) or not isinstance(changes, Sequence)):
            raise InputError(f"distill: augment must be true, false or a list of {', '.join(CHANGES)}. Got {changes!r}.")
        for change in () if isinstance(changes, bool) else changes:
            refuse_unknown("change of images", str(change), CHANGES)

    def _check_combinations(self) -> None:
        if self.cache and self.augment:
            raise InputError(
                "distill: cache keeps what the teacher says to the examples as they are, and augment changes them.",
                hint="Leave out one of the two.",
            )
        if self.writes and self.cache:
            raise InputError("distill: cache keeps what the teacher says to the data's texts, and on_policy writes others.")
        if self.features == "none":
            return
        if self.cache:
            raise InputError("distill: features need the teacher in every step, so cache would save nothing.")
        if type(self.teacher) is list or str(self.teacher).lower().endswith(".onnx"):
            raise InputError("distill: features need one teacher whose layers can be seen.", hint="Use features: none.")

    @property
    def writes(self) -> OnPolicy | None:
        """What the student writes itself."""
        return on_policy_of(self.on_policy)

    @property
    def changes(self) -> tuple[str, ...]:
        """Of the images."""
        return CHANGES if self.augment is True else tuple(self.augment or ())

    def outside(self) -> str:
        """sha256 over the files that the knobs name (engine.rewriting)."""
        return outside(self.teacher) + config_digest(self.student)

    def check(self, model: Model, *, data: Data) -> None:
        """Tries one batch through teacher and student. Raises InputError or UnfitError where the loss does not suit the task,
        labels or outputs do not fit, a layer does not exist, a cache is of another teacher or of other data, or the student
        cannot be made.
        """
        check_suits(_task(data), self.loss)
        split = training_split("distill", data)
        check_patience("distill", self, split, validation=self.validation)
        batch = _first(split, self.batch_size)
        self._check_data(data, batch)
        if self.student is not None:
            check_makeable(self.student, model, data=data)
        teacher = teacher_of(self.teacher, model)
        ask_once(teacher, batch)
        with torch.no_grad():
            self._scored(data, teacher.say, batch)(model.module, batch)
        if isinstance(self.cache, str | Path):
            known = soft_labels.facts_of(split, teacher.say, teacher=teacher.digest, top=self._top(data))
            soft_labels.read(Path(self.cache), known)
        with self._hints(own_graph(model), teacher, batch, seed=0):
            pass

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The trained student; the given network is not changed. Without `run.original` the given network is the original one.
        Ctrl-C is raised as core.run.Stopped with the best student so far once an epoch is done.
        """
        split = training_split("distill", data)
        batch = _first(split, self.batch_size)
        self._check_data(data, batch)
        teacher = teacher_of(self.teacher, run.original or model, threads=run.threads)
        if self.student is not None:
            model = make_student(self.student, model, data=data, run=run, pins=pins)
        says = self._cached(split, teacher, data, run)
        module = own_graph(model)
        figures = figures_on(data, says, share=self.validation, run=run) if self._has_labels(data, batch) else None
        before = figures and figures.of(module)
        try:
            with self._hints(module, teacher, batch, seed=run.seed) as hints:
                losses = self._trained(data, says, batch, hints), self._scored(data, says, batch)
                done = fit_kept(self, module, split, losses=losses, model=model, run=run)
        except Stopped as stop:
            raise Stopped(replace(model, module=stop.result.module)) from stop
        facts = {"steps": done.num_steps, "kept_epoch": done.kept, "stopped_early": done.stopped_early, "pairs": _said(hints)}
        scores = figures and {**figures.facts, "before": before, "after": figures.of(module)}
        run.ledger.note("distill", teacher=teacher.name, loss=self.loss, scores=scores, **facts)
        if self.compare and figures is not None:
            self._alone(replace(model, module=module), own_graph(model), data=data, run=run, figures=figures)
        return replace(model, module=module)

    def _alone(self, result: Model, module: fx.GraphModule, *, data: Data, run: Run, figures: Figures) -> None:
        """Trains the student the same way on labels alone, and notes what it reaches. Ctrl-C gives the distilled one."""
        split, own = training_split("distill", data), task_loss(data)
        loss = augmented(mixing(own), self.changes) if self.changes else own
        try:
            done = fit_kept(self, module, split, losses=(loss, own), model=result, run=_inside(run, "alone"))
        except KeyboardInterrupt as stop:
            raise Stopped(result) from stop
        run.ledger.note("trained alone", kept_epoch=done.kept, scores={**figures.facts, "alone": figures.of(module)})

    def _has_labels(self, data: Data, batch: Batch) -> bool:
        """Whether labels teach too. Those of a probe are of what is fitted on the outputs later."""
        is_known = (batch.target is not None and data.metric != "probe") or data.task == "language-model"
        return self.labels is not False and is_known

    def _check_data(self, data: Data, batch: Batch) -> None:
        for name in ("labels", "compare"):
            if getattr(self, name) and not self._has_labels(data, batch):
                raise InputError(f"distill: {name} needs labels, and there are none to be used.", hint="Leave it out.")
        if self.writes and data.task != "language-model":
            raise InputError(f"distill: on_policy is for language models, and the task is {data.task}.")
        if self.changes and not (data.task == "image-classification" and batch.inputs[0].dim() == 4):
            raise InputError(f"distill: augment is for images, and the task is {data.task}.", hint="Use augment: false.")

    def _scored(self, data: Data, says: Says, batch: Batch) -> Loss:
        """On the examples as they are, from outputs alone."""
        own = task_loss(data) if self._has_labels(data, batch) else None
        return self._taught(own, says, data)

    def _trained(self, data: Data, says: Says, batch: Batch, hints: Hints | None) -> Loss:
        own = task_loss(data) if self._has_labels(data, batch) else None
        if hints is not None:
            says = partial(first_output, hints.teacher)
        if own is not None:
            own = mixing(own) if self.changes else reading(own) if self.writes else own
        loss = self._taught(own, says, data)
        loss = loss if hints is None else with_hints(loss, hints, self.beta)
        if self.writes is not None:
            return writing(loss, self.writes, freeze_norm=self.freeze_norm)
        return augmented(loss, self.changes) if self.changes else loss

    def _taught(self, own: Loss | None, says: Says, data: Data) -> Loss:
        return taught(own, says, _task(data), kind=self.loss, temperature=self.temperature, alpha=self.alpha)

    @contextmanager
    def _hints(self, student: fx.GraphModule, teacher: Teacher, batch: Batch, *, seed: int) -> Iterator[Hints | None]:
        if self.features == "none":
            yield None
            return
        if teacher.model is None:
            raise InputError(f"distill: the layers of the teacher {teacher.name} cannot be seen.", hint="Use features: none.")
        graphs = student, own_graph(teacher.model)
        few = tuple(value[:_EXAMPLES] for value in batch.inputs)
        with hinted(self.features, self.match, graphs, inputs=few, seed=seed) as hints:
            yield hints

    def _cached(self, split: Split, teacher: Teacher, data: Data, run: Run) -> Says:
        """The teacher, or its answers to every example of the split."""
        if not self.cache:
            return teacher.say
        folder = None if run.folder is None else run.folder / soft_labels.FILE
        path = Path(self.cache) if isinstance(self.cache, str | Path) else folder
        if run.ranks.number and path is not None and not path.is_file():
            path = None  # the first rank writes it
        return soft_labels.soft_labels(split, teacher.say, path=path, teacher=teacher.digest, top=self._top(data), run=run)

    def _top(self, data: Data) -> int:
        is_distribution = _task(data).endswith(_DISTRIBUTIONS) and self.loss != "mse"
        return self.top_k if is_distribution else _EVERY


def _task(data: Data) -> str:
    """What the outputs are: those that a probe is fitted on are embeddings, whatever the probe tells apart."""
    return "sentence-similarity" if data.metric == "probe" else data.task


def _first(split: Split, size: int) -> Batch:
    return next(iter(split.batches(min(size, len(split)))))


def _inside(run: Run, name: str) -> Run:
    folder, curves = (None if place is None else place / name for place in (run.folder, run.tensorboard))
    return replace(run, folder=folder, tensorboard=curves)


def _said(hints: Hints | None) -> list[dict[str, Any]]:
    """For the report: which layer learned from which."""
    return [] if hints is None else [asdict(pair) for pair in hints.pairs]
