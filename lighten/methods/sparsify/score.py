"""How much each weight of each layer matters: from the weight, from what flows into it, or from the loss.

Dimension key: O outputs, K input columns of a layer.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.core.errors import UnfitError
from lighten.engine.quiet import quiet
from lighten.methods.prune.activations import one_batch
from lighten.methods.prune.score import Evidence
from lighten.methods.sparsify.layers import Layer
from lighten.ops import sparse_scores
from lighten.ops.masks import Pattern, masks_together
from lighten.ops.scores import running_mean

SCORES = ("magnitude", "wanda", "obs", "sparsegpt", "taylor", "synflow", "random")
FROM_INPUTS = ("wanda", "obs", "sparsegpt")
NEED_TARGETS = ("taylor",)
_FLOW_ROUNDS = 100

Scores = dict[str, Tensor]
"""score_OK by the name of the weight."""


def without_inputs(
    graph: fx.GraphModule, layers: Sequence[Layer], *, score: str, evidence: Evidence, pattern: Pattern, ratio: float
) -> Scores:
    """Of all layers, larger is more important; of the scores that need no layer's inputs. ratio: of "synflow", which removes a
    part at a time.
    """
    weights = {layer.name: layer.rows(tensor_of(graph, layer.name)) for layer in layers}
    if score == "magnitude":
        return {name: sparse_scores.magnitude(w_OK) for name, w_OK in weights.items()}
    if score == "random":
        generator = torch.Generator().manual_seed(evidence.run.seed)
        return {name: sparse_scores.random(w_OK, generator) for name, w_OK in weights.items()}
    if score == "taylor":
        return _taylor(graph, layers, evidence)
    return _synaptic_flow(graph, layers, pattern, ratio, example=one_batch(evidence.data, 1).inputs)


def _taylor(graph: fx.GraphModule, layers: Sequence[Layer], evidence: Evidence) -> Scores:
    """Averaged over batches as scores."""
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    means: Scores = {}
    for count, batch in enumerate(evidence.batches("taylor"), start=1):
        with torch.enable_grad():
            graph.zero_grad()
            evidence.loss(graph, batch).backward()  # type: ignore[no-untyped-call]
        for layer in layers:
            weight = parameters[layer.name]
            if weight.grad is None:
                raise UnfitError(f"{layer.site}: no gradient reaches it.", hint="Try score: magnitude.")
            now_OK = layer.rows(sparse_scores.taylor(weight.detach(), weight.grad))
            means[layer.name] = running_mean(means.get(layer.name, torch.zeros_like(now_OK)), now_OK, count)
    graph.zero_grad()
    return means


def _synaptic_flow(
    graph: fx.GraphModule, layers: Sequence[Layer], pattern: Pattern, ratio: float, *, example: tuple[Tensor, ...]
) -> Scores:
    """Scores after 99 of 100 rounds, in each of which the same share of what is left goes (arXiv:2006.05467, algorithm 1).

    differs from the paper: batch norms keep their statistics. Inputs that are integers stay what they are.
    """
    with quiet():
        flow = copy.deepcopy(graph).double()
    for value in flow.parameters():
        value.data.abs_()
    ones = tuple(torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value for value in example)
    parameters = dict(flow.named_parameters(remove_duplicate=False))
    scores: Scores = {}
    for number in range(1, _FLOW_ROUNDS + 1):
        with torch.enable_grad():
            flow.zero_grad()
            output = flow(*ones)
            (output if isinstance(output, Tensor) else output[0]).sum().backward()
        for layer in layers:
            weight = parameters[layer.name]
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            scores[layer.name] = layer.rows(sparse_scores.synaptic_flow(weight.detach(), gradient))
        if number == _FLOW_ROUNDS:
            break
        masks = masks_together(list(scores.values()), pattern, 1 - (1 - ratio) ** (number / _FLOW_ROUNDS))
        for layer, mask_OK in zip(layers, masks, strict=True):
            parameters[layer.name].data *= layer.weight(mask_OK, parameters[layer.name])
    return scores
