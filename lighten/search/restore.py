"""When the drop is too large: the sites that hurt most go back to float, as few as keep the contract.

Sites are ranked by the noise that each alone puts on the network's output; then the shortest prefix of that ranking that
holds the drop is found by doubling and bisection, each step a real file scored on the test examples.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lighten.core.method import Prepared
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant, Spec
from lighten.export.saturation import FULL_BITS, NARROW_BITS
from lighten.search.trials import Trial, Trials

_EXAMPLES = 8


def restore(trials: Trials, start: Trial, *, holds: Callable[[Trial], bool], inputs: tuple[Tensor, ...], run: Run) -> Trial:
    """The trial with the fewest sites back in float for which `holds` is true; the best one by drop when none is.

    inputs: a few examples for the ranking.
    """
    damage = rank(trials.prepared, start.plan, inputs=inputs, run=run)
    order = sorted(damage, key=damage.__getitem__, reverse=True)

    def attempt(count: int) -> Trial:
        restored = {site: _restored(start.plan[site]) for site in order[:count]}
        return trials.attempt(start.plan.replace(restored), f"{count} of {len(order)} layers back to more bits or float")

    few, many = 0, 1
    while not holds(attempt(min(many, len(order)))):
        if many >= len(order):
            return min(trials.seen.values(), key=lambda trial: trial.comparison.drop)
        few, many = many, many * 2
    many = min(many, len(order))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if holds(attempt(middle)) else (middle, many)
    return attempt(many)


def _restored(spec: Spec) -> Spec:
    """Few bits become 8, which hardly ever hurt; 8 become float."""
    if type(spec) is Quant and any(bits is not None and bits < NARROW_BITS for bits in (spec.weights, spec.activations)):
        weights, activations = (None if bits is None else FULL_BITS for bits in (spec.weights, spec.activations))
        return replace(spec, weights=weights, activations=activations)
    return Keep()


def rank(prepared: Prepared, plan: Plan, *, inputs: tuple[Tensor, ...], run: Run) -> dict[str, float]:
    """For each site of the plan: the noise power on the network's first output when that site alone is compressed, relative
    to the output's power.
    """

    def measure() -> dict[str, float]:
        tracked = run.progress.track(list(plan), what="ranking layers", total=len(plan))
        alone = (Plan({site: plan[site]}) for site in tracked)
        return dict(zip(plan, output_noise(prepared, alone, inputs=inputs), strict=True))

    return dict(run.memory.remember(f"damage-{plan.key()}", measure))


def output_noise(prepared: Prepared, plans: Iterable[Plan], *, inputs: tuple[Tensor, ...]) -> Iterator[float]:
    """For each plan the noise power on the network's first output, relative to the output's power, on the first examples."""
    inputs = tuple(value[:_EXAMPLES] for value in inputs)
    clean = _first(prepared.realize(Plan(), repair=False).graph, inputs)
    power = float(clean.square().mean().clamp_min(1e-30))
    for plan in plans:
        noisy = _first(prepared.realize(plan, repair=False).graph, inputs)
        yield float((noisy - clean).square().mean()) / power


@torch.no_grad()
def _first(graph: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> Tensor:
    output = graph(*inputs)
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first.detach().float()
