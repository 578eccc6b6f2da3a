"""The cost of a cut that was not made is that of the cut that is."""

import pytest
import torch
import zoo
from networks import recurrent, residual

from lighten.analyze.cost import total
from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.trace import traced
from lighten.core.model import Model
from lighten.methods.prune.amount import amount

NETWORKS = ("mobilenet-v2", "convnext", "swin", "bert", "llama", "t5")


def built(name: str) -> Model:
    own = {"residual": residual, "recurrent": recurrent}
    return own[name]() if name in own else zoo.by_name(name).build()


@pytest.mark.parametrize("name", ["residual", "recurrent", *NETWORKS])
def test_amounts_are_those_of_the_cut_network(name: str) -> None:
    model = built(name)
    graph = traced(model)
    coupling = couple(graph)
    kept = {group.name: torch.arange(max(group.least, -(-2 * group.size // 3))) for group in coupling.groups}
    smaller = cut(graph, coupling, kept)
    counts = {name: len(kept_C) for name, kept_C in kept.items()}
    promised = amount(graph, model.example, coupling, measure="macs")
    assert promised.total == pytest.approx(total(graph, model.example).macs, rel=0.01)
    # costs of single layers are rounded down to whole multiply-accumulates of one example
    assert promised(counts) == pytest.approx(total(smaller, model.example).macs, rel=0.01)
    for measure, each in (("params", 1), ("bytes", 4)):
        found = amount(graph, model.example, coupling, measure=measure)
        held = sum(value.numel() for value in smaller.parameters())
        others = sum(value.nbytes for value in smaller.buffers()) if measure == "bytes" else 0
        assert each * held <= found(counts) <= each * held + others
