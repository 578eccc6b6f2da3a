"""How much each channel of each group matters: from the group's weights, their gradients, the curvature of the loss, or what
flows into the layers that read the channels.

Dimension key: C channels of a group, K everything else that a tensor holds of a channel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from lighten.analyze.trace import tensor_of
from lighten.core.channels import ChannelGroup, Slice
from lighten.core.data import Batch, Data
from lighten.core.errors import UnfitError
from lighten.core.run import Run
from lighten.engine.losses import Loss, loss_for
from lighten.methods.prune.activations import FROM_ACTIVATIONS, one_batch, score_consumers
from lighten.ops import scores
from lighten.ops.groups import aggregate

FROM_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "magnitude": lambda w_CK: scores.magnitude(w_CK, norm=2),
    "magnitude_l1": lambda w_CK: scores.magnitude(w_CK, norm=1),
    "geometric_median": scores.geometric_median,
}
FROM_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "taylor": lambda w_CK, g_CK: scores.taylor(w_CK, g_CK, power=2),
    "taylor_l1": lambda w_CK, g_CK: scores.taylor(w_CK, g_CK, power=1),
    "fisher": lambda w_CK, g_CK: scores.fisher(w_CK, g_CK.square()),
}
SCORES = (*FROM_WEIGHTS, *FROM_GRADIENTS, "obd", *FROM_ACTIVATIONS, "batch_norm_scale", "random")
NEED_TARGETS = (*FROM_GRADIENTS, "obd")
_BATCH = {"fisher": 1}  # squared gradients of single examples
_USUAL_BATCH = 16
_HINT = "Try score: magnitude."


@dataclass(frozen=True)
class Evidence:
    """What a score may look at. samples: calibration examples, at most."""

    data: Data
    samples: int
    run: Run

    @property
    def loss(self) -> Loss:
        """Of the data's task; speech has an alphabet, with the blank that CTC needs."""
        alphabet = getattr(self.data.calibration, "alphabet", None)
        return loss_for(self.data.task, blank=None if alphabet is None else alphabet.blank)

    def batches(self, score: str) -> Iterator[Batch]:
        """For gradients."""
        size = _BATCH.get(score, _USUAL_BATCH)
        samples = min(self.samples, len(self.data.calibration))
        batches = self.data.calibration.batches(size, samples)
        return self.run.progress.track(batches, what="scoring channels", total=-(-samples // size))


def score_groups(
    module: fx.GraphModule, groups: Sequence[ChannelGroup], *, score: str, how: str, evidence: Evidence
) -> dict[str, Tensor]:
    """score_C of each group by name, larger is more important. how: the aggregate over the tensors that make or read the
    channels (ops.groups.AGGREGATES).

    Raises UnfitError when a group has nothing that the score could be taken from.
    """
    if score == "random":
        generator = torch.Generator().manual_seed(evidence.run.seed)
        return {group.name: scores.random(group.size, generator) for group in groups}
    if score in FROM_GRADIENTS:
        return _from_gradients(module, groups, score=score, how=how, evidence=evidence)
    found = _each(module, groups, score, evidence)
    for group in groups:
        if not found.get(group.name):
            raise UnfitError(f"{group.name} has nothing that score {score!r} could be taken from.", hint=_HINT)
    return {group.name: aggregate(found[group.name], how) for group in groups}


def _each(module: fx.GraphModule, groups: Sequence[ChannelGroup], score: str, evidence: Evidence) -> Mapping[str, list[Tensor]]:
    """By group, a score from each of its tensors."""
    if score in FROM_ACTIVATIONS:
        inputs = one_batch(evidence.data, evidence.samples).inputs
        return score_consumers(module, groups, score, inputs=inputs, seed=evidence.run.seed)
    if score == "obd":
        curvature = hessian_diagonal(module, evidence)
        return {group.name: _with(module, group, curvature, score=scores.obd) for group in groups}
    if score == "batch_norm_scale":
        return {group.name: _from_norms(module, group) for group in groups}
    given = FROM_WEIGHTS[score]
    return {group.name: [given(_rows(module, part, group.size)) for part in weights(module, group)] for group in groups}


def weights(module: fx.GraphModule, group: ChannelGroup) -> list[Slice]:
    """Slices of tensors of two dimensions and more that make or read the channels."""
    return [part for part in group.slices if part.role != "along" and tensor_of(module, part.tensor).dim() > 1]


def hessian_diagonal(module: fx.GraphModule, evidence: Evidence) -> dict[str, Tensor]:
    """The diagonal of the loss's Hessian by parameter: E[z * Hz] over random signs z (Hutchinson 1990; Bekas et al. 2007,
    doi:10.1016/j.apnum.2007.01.003), one z for each batch of 16 examples. Unbiased; its variance is the squared entries off the
    diagonal, over the number of batches.

    Raises UnfitError where an operator has no second derivative.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    generator = torch.Generator().manual_seed(evidence.run.seed)
    loss = evidence.loss
    means = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for count, batch in enumerate(evidence.batches("obd"), start=1):
        signs = [(torch.randint(2, value.shape, generator=generator) * 2 - 1).to(value) for value in parameters.values()]
        # the fused kernels of attention have no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            products = _hessian_product(loss(module, batch), [*parameters.values()], signs)
        for (name, mean), sign, product in zip(means.items(), signs, products, strict=True):
            means[name] = scores.running_mean(mean, sign * product, count)
    return means


def _hessian_product(loss: Tensor, parameters: list[Tensor], signs: list[Tensor]) -> list[Tensor]:
    """H z; zeros where the loss does not bend."""
    try:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        curved = [
            (value, sign) for value, sign in zip(gradients, signs, strict=True) if value is not None and value.requires_grad
        ]
        along = torch.stack([(value * sign).sum() for value, sign in curved]).sum()
        products = torch.autograd.grad(along, parameters, allow_unused=True)
    except RuntimeError as error:
        raise UnfitError(
            f"score 'obd' needs second derivatives: {str(error).splitlines()[0]}", hint="Try score: fisher."
        ) from error
    return [torch.zeros_like(value) if one is None else one for value, one in zip(parameters, products, strict=True)]


def _rows(module: fx.GraphModule, part: Slice, size: int) -> Tensor:
    return scores.channels_first(tensor_of(module, part.tensor).detach(), part.dim, part.positions(size))


def _from_norms(module: fx.GraphModule, group: ChannelGroup) -> list[Tensor]:
    scales = [part for part in group.slices if part.role == "along" and part.tensor.endswith("weight")]
    return [scores.batch_norm_scale(_rows(module, part, group.size)[:, 0]) for part in scales]


def _from_gradients(
    module: fx.GraphModule, groups: Sequence[ChannelGroup], *, score: str, how: str, evidence: Evidence
) -> dict[str, Tensor]:
    """Averaged over batches as scores: gradients themselves average to zero at a minimum."""
    parameters, loss = dict(module.named_parameters(remove_duplicate=False)), evidence.loss
    means: dict[str, Tensor] = {}
    for count, batch in enumerate(evidence.batches(score), start=1):
        with torch.enable_grad():
            module.zero_grad()
            loss(module, batch).backward()  # type: ignore[no-untyped-call]
        gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
        for group in groups:
            found = _with(module, group, gradients, score=FROM_GRADIENTS[score])
            if not found:
                raise UnfitError(f"{group.name}: no gradient reaches it.", hint=_HINT)
            now = aggregate(found, how)
            means[group.name] = scores.running_mean(means.get(group.name, torch.zeros_like(now)), now, count)
    module.zero_grad()
    return means


def _with(
    module: fx.GraphModule, group: ChannelGroup, given: Mapping[str, Tensor], *, score: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """score(weights, what is given for each of them) for each tensor of the group for which something is given."""
    return [
        score(_rows(module, part, group.size), scores.channels_first(given[part.tensor], part.dim, part.positions(group.size)))
        for part in weights(module, group)
        if part.tensor in given
    ]
