"""How much rounding a layer would hurt, predicted from derivatives, without trying.

Near a trained network the harm of a change d of one layer's weights is a quadratic form. For the divergence from the network
that was, it is that of the Fisher information F, whose gradients are those of labels drawn from the network's own
probabilities, not of the true labels (Kunstner et al. 2019, arXiv:1905.12558):

    KL = d'F d / 2 = E (g'd)^2 / 2                        along the change, no approximation but the second order
    KL ~ sum F_ii d_i^2 / 2, F_ii = E g_i^2               the diagonal alone (what BRECQ weighs by, arXiv:2102.05426)
    loss ~ trace(H) / n * |d|^2                           the mean curvature in all directions (HAWQ-V2, arXiv:1911.03852)

Outputs that are no classes have noise in place of divergence: there g is the gradient of the outputs summed with random signs,
E (g'd)^2 = |J d|^2.

Dimension key: B examples of a batch, O outputs of a layer, K everything else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn import functional

from lighten.analyze.trace import tensor_of
from lighten.core.data import Batch
from lighten.core.graph import Graph
from lighten.ops.grids import nearest


@dataclass(frozen=True)
class Rise:
    """Of KL in nats an example, or of relative noise where the outputs are no classes. along: from the change itself.
    diagonal: from the diagonal of the Fisher information.
    """

    along: float
    diagonal: float


def rounding_errors(graph: Graph, sites: Iterable[str], *, widths: Sequence[int]) -> dict[str, list[Tensor]]:
    """By site, what rounding to the nearest codes adds to the weight at each width; one scale an output channel."""
    tensors = _weights(graph, sites)
    return {site: [_error(tensor_of(graph.module, name).detach(), bits) for bits in widths] for site, name in tensors.items()}


def fisher_rises(
    graph: Graph, changes: Mapping[str, Sequence[Tensor]], *, batches: Iterable[Batch], task: str, seed: int
) -> dict[str, list[Rise]]:
    """By site, the rise that each of its changes alone brings. A forward and a backward pass a batch; batches of one example
    are the best use of a pass, larger ones stand for several (independent draws: cross terms vanish in the mean).
    """
    names = _weights(graph, changes)
    generator = torch.Generator().manual_seed(seed)
    along = {site: torch.zeros(len(steps), dtype=torch.float64) for site, steps in changes.items()}
    squares = {site: torch.zeros_like(steps[0]) for site, steps in changes.items()}
    power, num_terms, is_class = 0.0, 0, True
    for batch in batches:
        leaves = {name: tensor_of(graph.module, name).detach().requires_grad_() for name in names.values()}
        output = _first(graph.module, leaves, batch)
        drawn, terms, is_class = _drawn(output.detach(), task, generator)
        found = torch.autograd.grad(output, list(leaves.values()), drawn, allow_unused=True)
        gradients = dict(zip(leaves, found, strict=True))
        power, num_terms = power + float(output.detach().square().sum()), num_terms + terms
        for site, name in names.items():
            gradient = gradients[name]
            if gradient is not None:
                along[site] += torch.stack([(gradient * step).sum().double().square() for step in changes[site]])
                squares[site] += gradient.square()
    scale = 0.5 / max(num_terms, 1) if is_class else 1 / max(power, 1e-30)
    return {
        site: [
            Rise(scale * float(exact), scale * float((squares[site] * step.square()).sum(dtype=torch.float64)))
            for exact, step in zip(along[site], steps, strict=True)
        ]
        for site, steps in changes.items()
    }


def hessian_traces(
    graph: Graph, sites: Iterable[str], *, batches: Iterable[Batch], num_draws: int, seed: int
) -> dict[str, float]:
    """By site, the mean curvature trace(H) / n of the cross-entropy with the network's own answers; mean squared outputs where
    they are no classes. Hutchinson: v'Hv with random signs v, all layers at once (differs from the paper, which goes layer by
    layer: the terms between layers have mean zero). num_draws: a batch.
    """
    names = _weights(graph, sites)
    generator = torch.Generator().manual_seed(seed)
    totals, count = dict.fromkeys(names, 0.0), 0
    for batch in batches:
        leaves = {name: tensor_of(graph.module, name).detach().requires_grad_() for name in names.values()}
        loss = _own_loss(_first(graph.module, leaves, batch))
        slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
        for _ in range(num_draws):
            signs = [torch.randint(0, 2, leaf.shape, generator=generator) * 2.0 - 1 for leaf in leaves.values()]
            products = torch.autograd.grad(slopes, list(leaves.values()), signs, retain_graph=True, materialize_grads=True)
            means = {name: float((v * hv).mean()) for name, v, hv in zip(leaves, signs, products, strict=True)}
            totals = {site: total + means[names[site]] for site, total in totals.items()}
            count += 1
    return {site: total / max(count, 1) for site, total in totals.items()}


def _weights(graph: Graph, sites: Iterable[str]) -> dict[str, str]:
    by_name = {site.name: site for site in graph.sites}
    return {name: by_name[name].weights[0] for name in sites}


def _error(weight: Tensor, bits: int) -> Tensor:
    w_OK = weight.flatten(1)
    return (nearest(w_OK, bits=bits, ranges="mse") - w_OK).reshape(weight.shape)


def _first(module: fx.GraphModule, leaves: Mapping[str, Tensor], batch: Batch) -> Tensor:
    output = functional_call(module, dict(leaves), batch.inputs)
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first.float()


def _drawn(output: Tensor, task: str, generator: torch.Generator) -> tuple[Tensor, int, bool]:
    """The gradient on the output of -log p(y), y drawn from the output's own probabilities, the number of such draws, and True;
    random signs and False where the outputs are no classes.
    """
    if not _are_classes(output, task):
        return torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1, len(output), False
    p = output.softmax(-1)
    drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator)[:, 0]
    gradient = p - functional.one_hot(drawn, p.shape[-1]).reshape(p.shape)
    return gradient, len(drawn), True


def _are_classes(output: Tensor, task: str) -> bool:
    is_token = task == "language-model" and output.dim() == 3
    return is_token or (task.endswith("classification") and output.dim() == 2 and output.shape[1] > 1)


def _own_loss(output: Tensor) -> Tensor:
    if output.dim() == 2 and output.shape[1] > 1:
        return functional.cross_entropy(output, output.detach().argmax(1))
    return (output - output.detach()).square().mean()
