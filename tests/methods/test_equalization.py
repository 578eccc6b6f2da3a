"""Cross-layer equalization on traced networks."""

import copy

import pytest
import torch
from networks import residual
from torch import Tensor, nn

from lighten.analyze.trace import set_tensor, tensor_of, trace
from lighten.core.graph import Graph
from lighten.core.model import Model, Origin
from lighten.methods.quantize.equalization import equalized
from lighten.ops.grids import nearest


def as_graph(network: nn.Module, shape: tuple[int, ...] = (2, 3, 12, 12)) -> Graph:
    origin = Origin("module", "network", dynamic=({0: "batch"},))
    return trace(Model(network.eval(), (torch.randn(*shape),), origin))


def mobile(activation: type[nn.Module]) -> nn.Sequential:
    """Two depthwise-separable stages with batch norms whose gains differ a thousandfold, pooled, classified."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for channels_in, channels_out in ((3, 16), (16, 24)):
        parts += [nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out), activation()]
        parts += [nn.ZeroPad2d(1), nn.Conv2d(channels_out, channels_out, 3, groups=channels_out, bias=False)]
        parts += [nn.BatchNorm2d(channels_out), activation()]
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.weight.data = torch.logspace(-1.5, 1.5, len(module.weight))[torch.randperm(len(module.weight))]
    return network


def image(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(graph: Graph, other: Graph, *inputs: Tensor) -> None:
    wanted, made = graph.module(*inputs), other.module(*inputs)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_the_float_function_stays_and_one_chain_goes_from_the_first_layer_to_the_last() -> None:
    graph = as_graph(mobile(nn.ReLU))
    found = equalized(graph)
    assert found.chains == (("0", "4", "7", "11", "16"),)
    assert set(found.ends) == {"16"}
    assert not torch.equal(tensor_of(found.graph.module, "0.weight"), tensor_of(graph.module, "0.weight"))
    assert_same(graph, found.graph, image())


def test_the_given_graph_is_not_changed() -> None:
    graph = as_graph(mobile(nn.ReLU))
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    equalized(graph)
    assert all(torch.equal(before[name], value) for name, value in graph.module.state_dict().items())


@torch.no_grad()
def per_tensor_error(graph: Graph) -> float:
    """Of the network whose weights have one 8-bit scale a layer, relative to its own output."""
    rounded = copy.deepcopy(graph.module)
    for site in graph.sites:
        for name in site.weights:
            weight = tensor_of(graph.module, name).detach()
            set_tensor(rounded, name, nearest(weight.flatten(1), bits=8, per="tensor").reshape(weight.shape))
    wanted = graph.module(image())
    return float((rounded(image()) - wanted).square().mean() / wanted.square().mean())


def test_a_depthwise_network_of_uneven_channels_keeps_more_of_itself_in_one_scale_a_layer() -> None:
    graph = as_graph(mobile(nn.ReLU))
    assert per_tensor_error(equalized(graph).graph) < 0.1 * per_tensor_error(graph)


def clip_name() -> str:
    """What torch.export makes of nn.ReLU6."""
    graph = as_graph(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6()))
    (node,) = (node for node in graph.module.graph.nodes if node.op == "call_function" and "conv" not in node.name)
    return str(node.target).removeprefix("aten.").partition(".")[0]


def test_relu6_ends_a_chain_and_says_so() -> None:
    found = equalized(as_graph(mobile(nn.ReLU6)))
    assert found.chains == ()
    assert found.ends["0"] == f"{clip_name()} does not commute with a gain"


def test_relu6_with_a_clip_for_each_channel_leaves_the_function() -> None:
    graph = as_graph(mobile(nn.ReLU6))
    found = equalized(graph, clips=True)
    assert len(found.chains) == 1
    assert_same(graph, found.graph, 3 * image())


def test_a_residual_stream_and_a_sum_end_chains() -> None:
    model = residual()
    found = equalized(trace(model), clips=True)
    # stem's output is read by the depthwise layer and the sum; project's output goes into the sum
    assert found.chains == (("depthwise", "project"),)
    assert found.ends["stem"] == "what it makes is read more than once"
    assert found.ends["project"] == "add follows"
    torch.testing.assert_close(found.graph.module(*model.example), model.module(*model.example), rtol=1e-4, atol=1e-5)


def test_linear_layers_are_balanced_too_and_other_activations_end_the_chain() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 12, bias=False), nn.SiLU(), nn.Linear(12, 4))
    graph = as_graph(network, (2, 8))
    found = equalized(graph)
    assert found.chains == (("0", "2"),)
    assert found.ends["2"] == "silu follows"
    assert_same(graph, found.graph, torch.randn(9, 8))


def test_grouped_readers_and_shared_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    grouped = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    assert equalized(as_graph(grouped)).ends["0"] == "the next layer mixes groups"
    layer = nn.Linear(6, 6)
    assert equalized(as_graph(nn.Sequential(layer, nn.ReLU(), layer), (2, 6))).chains == ()


def test_a_flattened_image_ends_the_chain() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    found = equalized(as_graph(network))
    assert found.chains == ()
    assert found.ends["0"] == "flatten moves the channels"


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_pooling_lets_a_gain_through(pool: nn.Module) -> None:
    torch.manual_seed(0)
    graph = as_graph(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), pool, nn.Conv2d(6, 4, 3)))
    found = equalized(graph)
    assert found.chains == (("0", "3"),)
    assert_same(graph, found.graph, image())
