"""Cross-layer equalization: what one layer multiplies a channel by, the next divides it by, so that no channel is much smaller
than the others and one scale fits them all.

relu(a x) = a relu(x) for a > 0, so a channel's gain moves freely between two layers with a ReLU (or PReLU, or nothing) between
them. Nagel et al. 2019, arXiv:1906.04721, equation 11, makes the channel's ranges in both layers equal:

    gain of layer 1:  sqrt(r_1 r_2) / r_1,    of layer 2:  sqrt(r_1 r_2) / r_2,    r = max |w| of the channel

and, with depthwise layers between, of n layers to their n-th root. What it does not hold for: ReLU6, whose 6 would have to
become 6 times the channel's gain (the paper replaces it by ReLU first), sigmoids, SiLU, GELU, and a channel that anything else
reads too (a residual). Batch norms must be folded before.

Dimension key: O outputs, I inputs a group, S positions of a kernel, C channels that two layers share, N layers of a chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SWEEPS = 20
_BOUND = 2.0**20  # of a gain: nearly dead channels would leave float32's comfortable range


@dataclass(frozen=True)
class Layer:
    """weight_OIS: of a Linear or Conv, any number of kernel dimensions. bias_O: None where there is none.

    A layer whose weight has one input a group and as many outputs as the layer before it is depthwise.
    """

    weight_OIS: Tensor
    bias_O: Tensor | None = None


def equalizing_gains(range_NC: Tensor) -> Tensor:
    """By what each layer's weights of a channel are multiplied so that all N ranges are equal, shape N x C; products are 1.

    range_NC: max |w| of the channel in every layer that it passes. Channels that some layer ignores or never fills (range 0)
    keep gain 1. Gains are bounded to 2^-20 .. 2^20.
    """
    is_used_C = (range_NC > 0).all(0)
    log_NC = torch.where(is_used_C, range_NC, torch.ones_like(range_NC)).double().log()
    gain_NC = (log_NC.mean(0) - log_NC).exp()
    is_bounded_C = (gain_NC.amax(0) <= _BOUND) & (gain_NC.amin(0) >= 1 / _BOUND)
    return torch.where(is_bounded_C, gain_NC, torch.ones_like(gain_NC)).to(range_NC.dtype)


def equalize(layers: Sequence[Layer], *, sweeps: int = SWEEPS) -> tuple[Layer, ...]:
    """A chain of layers of the same function, ReLU or nothing between them, with equal channel ranges.

    Depthwise layers are balanced together with the layers around them. Where a layer mixes its channels, the links on its two
    sides take turns, `sweeps` times; one link needs one.
    Raises ValueError when a layer's inputs are not the outputs of the one before it.
    """
    layers = tuple(layers)
    links = _links(layers)
    for _ in range(sweeps if len(links) > 1 else 1):
        for first, last in links:
            layers = layers[:first] + _balanced(layers[first : last + 1]) + layers[last + 1 :]
    return layers


def absorb_high_biases(first: Layer, second: Layer, *, mean_C: Tensor, deviation_C: Tensor) -> tuple[Layer, Layer]:
    """What the channels between always carry, c = max(0, mean - 3 deviation), moves from the first bias into the second.

    relu(W x + b - c) = relu(W x + b) - c wherever W x + b > c: for 99.87 % of a normal pre-activation (section 4.1.3).
    mean_C, deviation_C: of the pre-activation; those of a folded batch norm are its beta and |gamma|.
    second: a full layer or a depthwise one. Known failure: a convolution that pads its input with zeros, which are not lowered
    by c, is off at the border by the kernel positions that lie outside.
    Raises ValueError when a layer has no bias.
    """
    if first.bias_O is None or second.bias_O is None:
        raise ValueError("Both layers must have a bias: one gives, the other takes.")
    excess_C = (mean_C - 3 * deviation_C).clamp_min(0)
    summed_OI = second.weight_OIS.flatten(2).sum(2) if second.weight_OIS.dim() > 2 else second.weight_OIS
    moved_O = summed_OI[:, 0] * excess_C if _is_depthwise(first, second) else summed_OI @ excess_C
    return Layer(first.weight_OIS, first.bias_O - excess_C), Layer(second.weight_OIS, second.bias_O + moved_O)


def _is_depthwise(before: Layer, layer: Layer) -> bool:
    return layer.weight_OIS.shape[1] == 1 and len(layer.weight_OIS) == len(before.weight_OIS) > 1


def _links(layers: tuple[Layer, ...]) -> list[tuple[int, int]]:
    """First and last layer of every stretch that one set of channels passes: from a layer that makes them to one that mixes."""
    links, first = [], 0
    for place in range(1, len(layers)):
        channels, inputs = len(layers[place - 1].weight_OIS), layers[place].weight_OIS.shape[1]
        if _is_depthwise(layers[place - 1], layers[place]):
            if place == len(layers) - 1:
                links.append((first, place))
            continue
        if inputs != channels:
            raise ValueError(f"Layer {place} reads {inputs} channels, but layer {place - 1} makes {channels}.")
        links.append((first, place))
        first = place
    return links


def _balanced(stretch: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers of one link: the last one reads the channels, unless it is depthwise, and all others make them."""
    ends_in_mixer = not _is_depthwise(stretch[-2], stretch[-1])
    makers = stretch[:-1] if ends_in_mixer else stretch
    ranges = [layer.weight_OIS.detach().abs().flatten(1).amax(1) for layer in makers]
    if ends_in_mixer:
        ranges.append(stretch[-1].weight_OIS.detach().abs().transpose(0, 1).flatten(1).amax(1))
    gain_NC = equalizing_gains(torch.stack(ranges))
    total_NC = gain_NC.cumprod(0)  # of a channel after each layer: what its bias is multiplied by
    balanced = [_scaled(layer, gain_C, total_C) for layer, gain_C, total_C in zip(makers, gain_NC, total_NC, strict=False)]
    if ends_in_mixer:
        balanced.append(Layer(stretch[-1].weight_OIS * _along(gain_NC[-1], 1, stretch[-1].weight_OIS), stretch[-1].bias_O))
    return tuple(balanced)


def _scaled(layer: Layer, gain_O: Tensor, total_O: Tensor) -> Layer:
    bias_O = None if layer.bias_O is None else layer.bias_O * total_O
    return Layer(layer.weight_OIS * _along(gain_O, 0, layer.weight_OIS), bias_O)


def _along(value_C: Tensor, dim: int, like: Tensor) -> Tensor:
    return value_C.reshape([-1 if at == dim else 1 for at in range(like.dim())])
