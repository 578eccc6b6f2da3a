"""Layers as affine maps on rows: linear layers, convolutions of any kind and groups, and the scale of normalizations.

A normalization is a layer of one input a channel, behind its division by the deviation.

Dimension key: N sampled rows (tokens, or output positions), G groups, J inputs and T outputs of a group, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.ops.reconstruct import Affine, Window, sample_rows, stuffed, unfold_columns

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_NORMALIZATIONS = (aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default, aten.layer_norm.default)
_LAST = (aten.linear.default, aten.layer_norm.default)  # channels are the last dimension, elsewhere the second
_ROWS = 8192
_VALUES = 2**25  # of a layer's rows: 128 MB in float32, and once more about their mean


@dataclass(frozen=True)
class Rows:
    """x_GNJ: sampled inputs, float32. chosen_N: which rows of the output these make, in the order of its dimensions."""

    x_GNJ: Tensor
    chosen_N: Tensor


@dataclass(frozen=True)
class View:
    """A layer in the graph. weight: the name of its weight. dim: of its output's channels. groups: of its channels."""

    node: fx.Node
    weight: str
    dim: int
    groups: int

    @property
    def num_channels(self) -> int:
        """Of the output."""
        return int(self.node.meta["val"].shape[self.dim])

    def sample(self, num_rows: int, given: Mapping[str, Any], seed: int, *, real: Tensor | None = None) -> Rows:
        """Random rows, at most 8,192 and 2^25 values; the same of every network that is given equal seeds.

        num_rows: of the output. given: the node's arguments by name. real: of a network on padded texts, texts x tokens, True
        for a token: a layer on tokens is then seen on those alone.
        """
        value, weight = given["input"], given["weight"]
        is_norm = self.node.target in _NORMALIZATIONS
        columns = weight.numel() if is_norm else value.shape[self.dim] * prod(weight.shape[2:])
        count = max(1, min(_ROWS, _VALUES // columns))
        if is_norm:
            value = self.node.target(**{**given, "weight": None, "bias": None})  # type: ignore[operator]
        if is_norm or self.node.target is aten.linear.default:
            rows_NK = value.movedim(self.dim, -1).flatten(0, -2)
            is_on_tokens = real is not None and value.shape[: real.dim()] == real.shape and real.numel() == num_rows
            pool_N = real.flatten().nonzero()[:, 0] if is_on_tokens and real is not None else torch.arange(num_rows)
            chosen_N = sample_rows(pool_N, count, _generator(seed))
            return Rows(self.grouped(rows_NK[chosen_N].float()), chosen_N)
        x_NK = unfold_columns(*self._convolution(given), count=count, generator=_generator(seed))
        chosen_N = sample_rows(torch.arange(num_rows), count, _generator(seed))
        return Rows(self.grouped(x_NK.float()), chosen_N)

    def grouped(self, value_NC: Tensor) -> Tensor:
        """(G, N, C / G)."""
        return value_NC.reshape(len(value_NC), self.groups, -1).movedim(1, 0)

    def layer(self, weight: Tensor, bias: Tensor | None, *, has_bias: bool) -> Affine:
        """The map from the rows to the outputs."""
        if self.node.target in _TRANSPOSED:
            # (inputs, outputs of a group, kernel) with the kernel turned, as a convolution has it
            num_in, each, *kernel = weight.shape
            weight = weight.reshape(self.groups, num_in // self.groups, each, *kernel).transpose(1, 2)
            weight = weight.flip(list(range(3, weight.dim()))).flatten(0, 1)
        w_GTJ = weight.reshape(self.groups, len(weight) // self.groups, -1).float()
        bias_GT = torch.zeros_like(w_GTJ[..., 0]) if bias is None else bias.float().reshape(self.groups, -1)
        return Affine(w_GTJ, bias_GT, has_bias)

    def weight_from(self, w_GTJ: Tensor, like: Tensor) -> Tensor:
        """The reverse of `layer`, in the shape of `like`."""
        if self.node.target in _TRANSPOSED:
            turned = w_GTJ.reshape(*w_GTJ.shape[:2], -1, *like.shape[2:]).transpose(1, 2)
            w_GTJ = turned.flip(list(range(3, turned.dim())))
        return w_GTJ.reshape(like.shape)

    def _convolution(self, given: Mapping[str, Any]) -> tuple[Tensor, Window]:
        value, kernel = given["input"], tuple(given["weight"].shape[2:])
        named = {name: (*given[name],) * (len(kernel) // len(given[name])) for name in ("stride", "padding", "dilation")}
        if self.node.target not in _TRANSPOSED:
            return value, Window(kernel, **named)
        more = (*given["output_padding"],) * (len(kernel) // len(given["output_padding"]))
        reach = [d * (k - 1) for d, k in zip(named["dilation"], kernel, strict=True)]
        padding = tuple(r - p for r, p in zip(reach, named["padding"], strict=True))
        return stuffed(value, named["stride"], more), Window(kernel, (1,) * len(kernel), padding, named["dilation"])


def view_of(n: fx.Node) -> View | None:
    """None for nodes that are no such layer, or whose weight or bias is computed."""
    is_convolution = n.target in _CONVOLUTIONS or n.target in _TRANSPOSED
    if not is_convolution and n.target is not aten.linear.default and n.target not in _NORMALIZATIONS:
        return None
    given = bound_arguments(n)
    weight, bias = given["weight"], given["bias"]
    if getattr(weight, "op", "") != "get_attr" or (bias is not None and bias.op != "get_attr"):
        return None
    sizes = weight.meta["val"].shape
    if n.target in _NORMALIZATIONS:
        return View(n, str(weight.target), -1 if n.target in _LAST else 1, sizes[0]) if len(sizes) == 1 else None
    return View(n, str(weight.target), -1 if n.target in _LAST else 1, given["groups"] if is_convolution else 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
