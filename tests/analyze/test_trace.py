import pytest
import torch
from networks import encoder, recurrent, residual
from torch import nn

from lighten.analyze.trace import trace
from lighten.core.errors import UnfitError
from lighten.core.model import Model, Origin


@pytest.mark.parametrize("make", [residual, encoder, recurrent])
def test_the_graph_computes_what_the_module_computes(make) -> None:
    model = make()
    expected = model.module(*model.example)
    # folding batch normalization rounds differently in the last bits of float32
    torch.testing.assert_close(trace(model).module(*model.example), expected, rtol=1e-4, atol=1e-5)


def test_batch_normalization_and_dropout_are_gone() -> None:
    targets = {str(node.target) for node in trace(residual()).module.graph.nodes}
    assert not any("batch_norm" in target or "dropout" in target for target in targets)


def test_folding_does_not_reach_the_original() -> None:
    model = residual()
    before = model.module.stem.weight.clone()
    trace(model)
    assert torch.equal(model.module.stem.weight, before)


def test_sites_are_named_by_their_module_and_know_their_weights() -> None:
    sites = {site.name: site for site in trace(residual()).sites}
    assert sites["stem"].kind == "conv2d"
    assert sites["stem"].weights == ("stem.weight",)
    assert sites["depthwise"].depthwise
    assert sites["head"].bias == "head.bias"
    assert sites["add"].weights == ()


def test_the_graph_takes_another_batch_size() -> None:
    assert trace(residual()).module(torch.randn(5, 3, 16, 16)).shape == (5, 5)


def test_a_bare_parameter_is_a_site_of_its_own() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.kernel)

    (site,) = trace(Model(Bare(), (torch.randn(2, 3),), Origin("module", "bare"))).sites
    assert (site.name, site.weights) == ("kernel", ("kernel",))


def test_a_weight_used_twice_gives_two_sites() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    names = [site.name for site in trace(Model(Twice(), (torch.randn(2, 3),), Origin("module", "twice"))).sites]
    assert names[0] == "layer"
    assert names[1].startswith("layer@")


def test_an_untraceable_network_is_refused_with_its_module_and_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = Model(nn.Sequential(nn.Identity(), Branch()), (torch.ones(2, 3),), Origin("module", "branch"))
    with pytest.raises(UnfitError, match=r"Module '1' \(Branch\) cannot be traced at .*test_trace\.py:\d+ \(return x if"):
        trace(model)


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalization_is_folded_into_a_transposed_convolution(groups):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    module = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups, bias=False), norm).eval()
    x = torch.randn(2, 4, 5, 5)
    graph = trace(Model(module, (x,), Origin("module", "up")))
    assert "batch_norm" not in graph.module.code
    torch.testing.assert_close(graph.module(x), module(x), rtol=1e-5, atol=1e-5)
