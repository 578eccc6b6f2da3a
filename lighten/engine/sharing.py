"""Values that many weights share, and that stay shared: what makes trained codebooks survive the steps that come after.

Equal weights of a tensor are a group. Nothing has to be carried along with them, as with zeros (engine.zeros). Weights that are
zero stay zero and are no group.

Dimension key: N weights of a tensor that are not zero, V groups of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighten.core.errors import UnfitError
from lighten.core.model import Model
from lighten.engine.zeros import keep_zeros
from lighten.ops.codebooks import distinct

AfterStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Groups:
    """place_N: of the weights that are not zero, in the flattened tensor. group_N: of each. count_V: how many are in each."""

    place_N: Tensor
    group_N: Tensor
    count_V: Tensor


def groups_of(tensor: Tensor) -> Groups:
    """Equal weights are together."""
    flat = tensor.detach().flatten()
    place_N = flat.nonzero().flatten()
    _, group_N, count_V = flat[place_N].unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    return Groups(place_N, group_N, count_V)


@torch.no_grad()
def put_together(tensor: Tensor, groups: Groups) -> None:
    """Every weight becomes the mean of its group, and zero where it is in none; in place.

    After a step of gradient descent on each weight this is the step on the values that they share: the projection of the
    gradient. Deep Compression (arXiv:1510.00149, section 3.3) gives a value the sum of its weights' gradients.
    differs from the paper: their mean, so that a learning rate means what it means for weights that are their own, whatever
    the size of the group.
    """
    moved_N = tensor.flatten()[groups.place_N].double()
    sum_V = torch.zeros(len(groups.count_V), dtype=torch.float64, device=tensor.device).index_add_(0, groups.group_N, moved_N)
    mean_N = (sum_V / groups.count_V)[groups.group_N]
    together = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    together[groups.place_N] = mean_N.to(tensor.dtype)
    tensor.copy_(together.reshape(tensor.shape))


def keep_shared(module: nn.Module, names: Iterable[str]) -> AfterStep:
    """For `engine.train.Extras.after_step`: weights of the named parameters that are equal now move as one."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    known = [(parameters[name], groups_of(parameters[name])) for name in names if name in parameters]

    def apply(step: int, progress: float) -> None:
        del step, progress
        for parameter, groups in known:
            put_together(parameter.data, groups)

    return apply


def keep_weights(module: nn.Module, model: Model) -> AfterStep:
    """Zeros and shared values that the steps before have made."""
    hooks = [keep_zeros(module, model.sparse), keep_shared(module, model.shared)]

    def apply(step: int, progress: float) -> None:
        for hook in hooks:
            hook(step, progress)

    return apply


def num_values(module: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Distinct values, zero among them, of each named tensor that the module still has."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    return {name: len(distinct(tensors[name].detach())) for name in names if name in tensors}


def check_shared(before: Mapping[str, int], after: Mapping[str, int], *, step: str) -> None:
    """Raises UnfitError naming the first tensor that has more distinct values than before `step`."""
    for name, number in after.items():
        if number > before[name]:
            raise UnfitError(
                f"{step} gave {name} {number} values, which had {before[name]}.", hint="Put share behind the steps that cut."
            )
