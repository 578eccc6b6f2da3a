"""Cross-layer equalization. Dimension key: O outputs, I inputs a group, S kernel, C channels, N layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.ops.equalize import Layer, absorb_high_biases, equalize, equalizing_gains
from lighten.ops.grids import nearest


def uneven(layer: nn.Module, seed: int) -> nn.Module:
    """Output channels scaled by 2^-4 to 2^4 at random."""
    generator = torch.Generator().manual_seed(seed)
    factor_O = torch.exp2(8 * torch.rand(len(layer.weight), generator=generator) - 4)
    with torch.no_grad():
        layer.weight.mul_(factor_O.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    return layer


def separable() -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1 and a 3x3: two links, the first with a depthwise layer in it."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(4, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.Conv2d(8, 4, 3, padding=1),
    ]
    modules = [module for seed, layer in enumerate(convolutions) for module in (uneven(layer, seed), nn.ReLU())]
    return nn.Sequential(*modules[:-1]).double()


def layers_of(network: nn.Sequential) -> list[Layer]:
    return [Layer(module.weight.detach(), None if module.bias is None else module.bias.detach()) for module in network[::2]]


def run(network: nn.Sequential, layers: tuple[Layer, ...] | list[Layer], x: Tensor) -> Tensor:
    for module, layer in zip(network[::2], layers, strict=True):
        x = F.conv2d(x, layer.weight_OIS, layer.bias_O, padding=module.padding, groups=module.groups)
        x = torch.relu(x) if module is not network[-1] else x
    return x


def image() -> Tensor:
    return torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def test_the_function_stays() -> None:
    network = separable()
    equalized = equalize(layers_of(network))
    torch.testing.assert_close(run(network, equalized, image()), network(image()), rtol=1e-12, atol=1e-12)


def test_a_pair_of_linear_layers_gets_equal_ranges_by_equation_11() -> None:
    torch.manual_seed(0)
    first, second = Layer(torch.randn(6, 5) * torch.logspace(-2, 2, 6)[:, None], torch.randn(6)), Layer(torch.randn(3, 6))
    one, two = equalize([first, second])
    range1_C, range2_C = first.weight_OIS.abs().amax(1), second.weight_OIS.abs().amax(0)
    scale_C = (range1_C * range2_C).sqrt() / range2_C  # equation 11
    torch.testing.assert_close(one.weight_OIS, first.weight_OIS / scale_C[:, None])
    torch.testing.assert_close(one.bias_O, first.bias_O / scale_C)
    torch.testing.assert_close(two.weight_OIS, second.weight_OIS * scale_C)
    torch.testing.assert_close(one.weight_OIS.abs().amax(1), two.weight_OIS.abs().amax(0))


def test_all_layers_of_a_link_with_a_depthwise_one_get_equal_ranges() -> None:
    first, depthwise, last = equalize(layers_of(separable())[:3])
    ranges = [layer.weight_OIS.abs().flatten(1).amax(1) for layer in (first, depthwise)]
    torch.testing.assert_close(ranges[0], ranges[1])
    torch.testing.assert_close(ranges[0], last.weight_OIS.abs().transpose(0, 1).flatten(1).amax(1))


def test_sweeps_over_a_chain_settle() -> None:
    layers = layers_of(separable())
    settled, further = equalize(layers, sweeps=20), equalize(layers, sweeps=21)
    for before, after in zip(settled, further, strict=True):
        torch.testing.assert_close(before.weight_OIS, after.weight_OIS, rtol=1e-6, atol=0)


@torch.no_grad()
def test_one_scale_a_tensor_then_keeps_far_more_of_the_function() -> None:
    network = separable()
    wanted = network(image())

    def error(layers: tuple[Layer, ...] | list[Layer]) -> float:
        rounded = [
            Layer(
                nearest(layer.weight_OIS.flatten(1), bits=8, per="tensor").double().reshape(layer.weight_OIS.shape),
                layer.bias_O,
            )
            for layer in layers
        ]
        return (run(network, rounded, image()) - wanted).square().mean().item()

    assert error(equalize(layers_of(network))) < 0.2 * error(layers_of(network))


def test_gains_make_ranges_equal_and_their_products_are_one() -> None:
    range_NC = torch.tensor([[4.0, 1.0], [1.0, 1.0], [2.0, 8.0]])
    gain_NC = equalizing_gains(range_NC)
    torch.testing.assert_close(range_NC * gain_NC, torch.tensor([2.0, 2.0]).expand(3, 2))
    torch.testing.assert_close(gain_NC.prod(0), torch.ones(2))


def test_channels_that_are_dead_somewhere_keep_their_weights() -> None:
    assert equalizing_gains(torch.tensor([[0.0, 1.0, 1e-30], [5.0, 4.0, 1.0]])).tolist() == [[1.0, 2.0, 1.0], [1.0, 0.5, 1.0]]


def test_a_chain_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="Layer 1 reads 5 channels, but layer 0 makes 6"):
        equalize([Layer(torch.ones(6, 4)), Layer(torch.ones(3, 5))])


@pytest.mark.parametrize("depthwise", [False, True])
def test_absorbed_biases_leave_the_function_where_the_channel_stays_above_what_is_taken(depthwise: bool) -> None:
    torch.manual_seed(0)
    first = Layer(0.1 * torch.randn(6, 4, 1, 1), torch.linspace(-1, 10, 6))
    second = Layer(torch.randn(6, 1, 2, 2) if depthwise else torch.randn(3, 6, 2, 2), torch.zeros(6 if depthwise else 3))
    groups = 6 if depthwise else 1
    x = torch.rand(50, 4, 5, 5)
    before = F.conv2d(x, first.weight_OIS, first.bias_O)
    mean_C, deviation_C = before.mean((0, 2, 3)), before.std((0, 2, 3))
    lowered, raised = absorb_high_biases(first, second, mean_C=mean_C, deviation_C=deviation_C)
    wanted = F.conv2d(torch.relu(before), second.weight_OIS, second.bias_O, groups=groups)
    reached = torch.relu(F.conv2d(x, lowered.weight_OIS, lowered.bias_O))
    reached = F.conv2d(reached, raised.weight_OIS, raised.bias_O, groups=groups)
    taken_C = first.bias_O - lowered.bias_O
    assert (taken_C[-3:] > 1).all()
    assert taken_C[0] == 0
    is_above = (before - taken_C[:, None, None] >= 0).float().mean()
    assert is_above > 0.75  # all of the channels that give something, but for a thousandth; those below zero give nothing
    # a pre-activation below what was taken is off by the rest: rare (beyond 3 deviations) and small (a few hundredths)
    assert (reached - wanted).abs().mean() < 1e-3 * wanted.abs().mean()


def test_layers_without_a_bias_cannot_absorb() -> None:
    with pytest.raises(ValueError, match="must have a bias"):
        absorb_high_biases(Layer(torch.ones(2, 2)), Layer(torch.ones(2, 2)), mean_C=torch.ones(2), deviation_C=torch.ones(2))
