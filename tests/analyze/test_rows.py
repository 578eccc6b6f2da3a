"""Sampled rows of a layer's inputs, and the rows of its output that belong to them."""

import torch
from networks import encoder, sentences
from torch import fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.rows import view_of
from lighten.analyze.trace import trace


class Up(fx.Interpreter):
    """Takes rows of the layer `up` while a network runs."""

    def __init__(self, module: fx.GraphModule, node: str, real: torch.Tensor | None) -> None:
        super().__init__(module)
        self.node, self.real = node, real

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name == self.node:
            given = self.map_nodes_to_values(bound_arguments(n), n)
            view = view_of(n)
            assert view is not None
            self.rows = view.sample(result.numel() // result.shape[-1], given, 0, real=self.real)
            self.given, self.result = given, result
        return result


def test_padding_of_texts_is_not_sampled() -> None:
    graph = trace(encoder())
    (site,) = [site for site in graph.sites if site.name == "up"]
    ids, mask = (value[:8] for value in sentences().test.inputs)
    mask = mask.clone()
    mask[:, 1:] = 0  # one token a text is real
    every, real = Up(graph.module, site.node, None), Up(graph.module, site.node, mask.bool())
    for walk in (every, real):
        walk.run(ids, mask)
    assert len(every.rows.chosen_N) == ids.numel()
    assert real.rows.chosen_N.tolist() == [row * ids.shape[1] for row in range(8)]
    # inputs and outputs of the same rows
    weight, bias = real.given["weight"], real.given["bias"]
    made = real.rows.x_GNJ[0] @ weight.T + bias
    torch.testing.assert_close(made, real.result.flatten(0, 1)[real.rows.chosen_N], rtol=1e-5, atol=1e-5)
