"""What happens to the network when one layer alone is rounded, found by doing it.

Three questions of one forward pass: how much noise the outputs carry, how far the probabilities moved (KL), and how much the
task's loss rose. The noise needs nothing but inputs, the divergence classes, the loss labels; without labels the network's own
answers stand for them. search.curvature predicts the same without trying.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import torch
from torch import Tensor, fx, nn

from lighten.core.data import Batch, Data, Split
from lighten.core.graph import Graph
from lighten.core.method import Prepared
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Quant
from lighten.engine.holdout import FEWEST, Part
from lighten.engine.losses import Loss, loss_for
from lighten.evaluate.collect import divergence
from lighten.export.saturation import FULL_BITS

KINDS = ("conv1d", "conv2d", "conv3d", "linear")
"""Of sites whose weights may have them."""
SOLVED_ON = 512
"""Calibration examples, from the first, that codes are solved on at most: what is judged is judged on others."""
_JUDGE_VALUES = 400_000  # input values to judge on: 510 small images in grey, 8 of 224 x 224 in colour
_FEWEST_JUDGES, _MOST_JUDGES = 8, 512
_JUDGE_BATCH = 64
_LABELLED = ("regression", "sentence-similarity")


@dataclass(frozen=True)
class Effect:
    """noise: power of the change on the first output over the output's power. kl: mean KL(original || changed) in nats, per
    token for language models; None where the outputs are no classes. loss_rise: of the task's mean loss; None where the task
    has none without labels.
    """

    noise: float
    kl: float | None
    loss_rise: float | None

    @property
    def harm(self) -> float:
        """One figure to compare effects on the same network by: the divergence where there is one, else the noise."""
        return self.noise if self.kl is None else self.kl


@dataclass(frozen=True)
class Answers:
    """What the float network says about some examples. outputs: the first output of each batch. loss: of each batch."""

    task: str
    batches: tuple[Batch, ...]
    outputs: tuple[Tensor, ...]
    losses: tuple[float | None, ...]

    @classmethod
    def of(cls, module: nn.Module, batches: Iterable[Batch], *, task: str) -> "Answers":
        """Runs the float network once over `batches`, which are kept in memory."""
        kept = tuple(batches)
        outputs = tuple(_first(module, batch) for batch in kept)
        losses = (_loss(task, batch, output, original=output) for batch, output in zip(kept, outputs, strict=True))
        return cls(task, kept, outputs, tuple(losses))

    @property
    def num_examples(self) -> int:
        """In all batches."""
        return sum(len(batch.index) for batch in self.batches)

    def effect(self, module: nn.Module) -> Effect:
        """Of the changes that turn the float network into `module`. One pass over the examples."""
        noise, power, moved, terms = 0.0, 0.0, 0.0, 0
        rises: list[float] = []
        for batch, clean, loss in zip(self.batches, self.outputs, self.losses, strict=True):
            noisy = _first(module, batch)
            noise, power = noise + float((noisy - clean).square().sum()), power + float(clean.square().sum())
            batch_moved, batch_terms = divergence(clean, noisy, batch=batch, task=self.task)
            moved, terms = moved + batch_moved, terms + batch_terms
            now = _loss(self.task, batch, noisy, original=clean)
            rises += [] if loss is None or now is None else [len(batch.index) * (now - loss)]
        rise = fsum(rises) / self.num_examples if len(rises) == len(self.batches) else None
        return Effect(noise / max(power, 1e-30), max(moved / terms, 0.0) if terms else None, rise)


def weights_of(graph: Graph, plan: Plan) -> dict[str, int]:
    """Number of weights of each site whose width may change, in execution order."""
    values = dict(graph.module.named_parameters()) | dict(graph.module.named_buffers())
    sites = [site for site in graph.sites if site.kind in KINDS and site.weights and type(plan.spec(site.name)) is Quant]
    return {site.name: values[site.weights[0]].numel() for site in sites}


def mean_bits(graph: Graph, plan: Plan) -> float:
    """Of the weights whose width may change; 32 where the plan quantizes none."""
    weights = weights_of(graph, plan)
    bits = sum(count * (getattr(plan[site], "weights", None) or FULL_BITS) for site, count in weights.items())
    return bits / sum(weights.values()) if weights else 32.0


def with_widths(plan: Plan, bits: Mapping[str, int]) -> Plan:
    """The plan with these bits for weights. Sites that get the full width keep what they have, which may be 7 bits."""
    return plan.with_widths({site: width for site, width in bits.items() if width < FULL_BITS})


@dataclass(frozen=True)
class Trying:
    """How layers are tried. widths: bits, the widest first. repair: False rounds to the nearest codes, True finds them as they
    will be found for the file (a solution and a pass over its examples for each layer and width).
    """

    widths: Sequence[int]
    repair: bool = False


def effects_alone(
    prepared: Prepared, plan: Plan, sites: Iterable[str], *, answers: Answers, how: Trying, run: Run
) -> dict[str, list[Effect]]:
    """By site, the effect of quantizing this site alone, as `plan` does but at each width."""
    names = list(sites)
    pairs = [(site, bits) for site in names for bits in how.widths]

    def measure() -> list[list[float | None]]:
        tracked = run.progress.track(pairs, what="trying widths", total=len(pairs))
        alone = (with_widths(Plan({site: plan[site]}), {site: bits}) for site, bits in tracked)
        found = (answers.effect(prepared.realize(one, repair=how.repair).graph) for one in alone)
        return [[effect.noise, effect.kl, effect.loss_rise] for effect in found]

    key = f"effects-{plan.key()}-{answers.num_examples}-{'-'.join(map(str, how.widths))}-{how.repair}"
    found = iter(run.memory.remember(key, measure))
    return {site: [Effect(*next(found)) for _ in how.widths] for site in names}


def answers_to_judge_by(prepared: Prepared, data: Data) -> Answers:
    """Of the float network, on as many calibration examples as are quickly run, others than codes are solved on."""
    first = next(iter(data.calibration.batches(1, 1)))
    fitting = _JUDGE_VALUES // max(sum(value.numel() for value in first.inputs), 1)
    judges = judged_on(data.calibration, most=min(max(fitting, _FEWEST_JUDGES), _MOST_JUDGES))
    clean = prepared.realize(Plan(), repair=False).graph
    return Answers.of(clean, judges.batches(_JUDGE_BATCH), task=data.task)


def judged_on(split: Split, *, most: int) -> Split:
    """At most `most` calibration examples that codes were not solved on: those behind the first SOLVED_ON. Where there are
    fewer than 10 behind them, the last of all.
    """
    num = len(split)
    first = SOLVED_ON if num - SOLVED_ON >= FEWEST else max(num - most, 0)
    return Part(split, [first <= place < first + most for place in range(num)])


def _loss(task: str, batch: Batch, output: Tensor, *, original: Tensor) -> float | None:
    loss = _loss_of(task, has_labels=batch.target is not None)
    if loss is None or (task.endswith("classification") and (output.dim() != 2 or output.shape[1] < 2)):
        return None
    if batch.target is None and task != "language-model":
        batch = Batch(batch.inputs, original.argmax(1), batch.index)
    return float(loss(_Said(output), batch))


def _loss_of(task: str, *, has_labels: bool) -> Loss | None:
    if task.endswith("classification") or task == "language-model" or (has_labels and task in _LABELLED):
        return loss_for(task)
    return None


class _Said(nn.Module):
    """Gives the output that a network gave before: losses run the network themselves."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._output


@torch.no_grad()
def _first(module: nn.Module | fx.GraphModule, batch: Batch) -> Tensor:
    output = module(*batch.inputs)
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first.detach().float()
