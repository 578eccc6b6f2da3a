"""Compressed networks for the exporters that lower the torch graph, and how near a file is to it."""

import copy

import torch

from lighten.analyze.trace import trace
from lighten.core.run import Run
from lighten.methods.quantize.integer import Quantize


def compressed(model, data, widths=None, **knobs):
    prepared = Quantize(**knobs).prepare(model, trace(model), data=data, run=Run())
    plan = prepared.proposals()[0]
    return prepared.realize(plan.with_widths(widths) if widths else plan)


def decibels(expected, found) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def by_rows(graph):
    """The graph with each token's activations rounded over their own range, as XNNPACK rounds them."""
    graph = copy.deepcopy(graph)
    for node in graph.graph.nodes:
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.tensor:
            node.target, node.args = rounded_rows, (node.args[0].args[0],)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def rounded_rows(x):
    rows = x.flatten(0, -2)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    scale = (high - low) / 255
    return torch.fake_quantize_per_channel_affine(rows, scale, (-low / scale).round().int(), 0, 0, 255).view_as(x)
