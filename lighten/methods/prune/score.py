"""How much each channel of each group matters, from the group's weights and, for some scores, their gradients.

Dimension key: C channels of a group, K everything else that a tensor holds of a channel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.core.channels import ChannelGroup, Slice
from lighten.core.data import Batch
from lighten.core.errors import UnfitError
from lighten.engine.losses import Loss
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
SCORES = (*FROM_WEIGHTS, *FROM_GRADIENTS, "batch_norm_scale", "random")


def score_groups(
    module: fx.GraphModule, groups: Sequence[ChannelGroup], *, score: str, loss: Loss, batches: Iterable[Batch], seed: int
) -> dict[str, Tensor]:
    """score_C of each group by name, larger is more important, averaged over the weights that make or read the channels.

    loss, batches: for scores from gradients. Raises UnfitError when a group has nothing that the score could be taken from.
    """
    if score == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: scores.random(group.size, generator) for group in groups}
    if score in FROM_GRADIENTS:
        return _from_gradients(module, groups, FROM_GRADIENTS[score], loss=loss, batches=batches)
    if score == "batch_norm_scale":
        return {group.name: _from_norms(module, group) for group in groups}
    given = FROM_WEIGHTS[score]
    return {
        group.name: aggregate([given(_rows(module, part, group.size)) for part in _weights(module, group)]) for group in groups
    }


def _weights(module: fx.GraphModule, group: ChannelGroup) -> list[Slice]:
    """Slices of tensors of two dimensions and more that make or read the channels."""
    return [part for part in group.slices if part.role != "along" and tensor_of(module, part.tensor).dim() > 1]


def _rows(module: fx.GraphModule, part: Slice, size: int) -> Tensor:
    return scores.channels_first(tensor_of(module, part.tensor).detach(), part.dim, part.positions(size))


def _from_norms(module: fx.GraphModule, group: ChannelGroup) -> Tensor:
    scales = [part for part in group.slices if part.role == "along" and part.tensor.endswith("weight")]
    if not scales:
        raise UnfitError(f"{group.name} has no normalization whose scale could be its score.", hint="Try score: magnitude.")
    return aggregate([scores.batch_norm_scale(_rows(module, part, group.size)[:, 0]) for part in scales])


def _from_gradients(
    module: fx.GraphModule,
    groups: Sequence[ChannelGroup],
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    loss: Loss,
    batches: Iterable[Batch],
) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    means: dict[str, Tensor] = {}
    for count, batch in enumerate(batches, start=1):
        with torch.enable_grad():
            module.zero_grad()
            loss(module, batch).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            now = _gradient_score(module, group, score, parameters)
            means[group.name] = scores.running_mean(means.get(group.name, torch.zeros_like(now)), now, count)
    module.zero_grad()
    return means


def _gradient_score(
    module: fx.GraphModule,
    group: ChannelGroup,
    score: Callable[[Tensor, Tensor], Tensor],
    parameters: Mapping[str, Tensor],
) -> Tensor:
    found = []
    for part in _weights(module, group):
        gradient = parameters[part.tensor].grad if part.tensor in parameters else None
        if gradient is not None:
            positions_CP = part.positions(group.size)
            rows_CK = scores.channels_first(gradient, part.dim, positions_CP)
            found.append(score(_rows(module, part, group.size), rows_CK))
    if not found:
        raise UnfitError(f"{group.name}: no gradient reaches it.", hint="Try score: magnitude.")
    return aggregate(found)
