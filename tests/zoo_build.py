"""How the tiny networks of zoo.py are made: seeded weights that hide nothing, wrappers to one tensor, example inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lighten.core.model import Model, Origin
from lighten.engine.quiet import quiet
from lighten.read.huggingface import Signal, Tokens

WORDS, TOKENS = 100, 10
Inputs = Mapping[str, Callable[[], Tensor]]


class Output(nn.Module):
    """One input to one named output."""

    def __init__(self, network: nn.Module, argument: str, output: str) -> None:
        super().__init__()
        self.network, self.argument, self.output = network, argument, output

    def forward(self, value: Tensor) -> Tensor:
        """The output's tensor, batch first."""
        result: Tensor = self.network(**{self.argument: value})[self.output]
        return result


class PairOutput(nn.Module):
    """Two inputs (source and target, or text and picture) to one named output."""

    def __init__(self, network: nn.Module, arguments: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.network, self.arguments, self.output = network, arguments, output

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The output's tensor, batch first."""
        result: Tensor = self.network(**dict(zip(self.arguments, (first, second), strict=True)))[self.output]
        return result


def pixels(edge: int) -> Tensor:
    """Two pictures."""
    return signal(3, edge, edge)


def words(tokens: int = TOKENS) -> Tensor:
    """Two rows above the numbers that mean padding, start and end; each ends with 2, which CLIP looks for."""
    ids = torch.randint(5, WORDS, (2, tokens), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    return ids


def signal(*shape: int) -> Tensor:
    """Two random inputs of `shape`."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def build(name: str, architecture: str, inputs: Inputs, *, output: str, settings: Mapping[str, Any]) -> Model:
    """architecture: a class in transformers. inputs: by argument name, one or two. output: which of its outputs is scored."""
    values = {argument: make() for argument, make in inputs.items()}
    network = _network(architecture, settings)
    module = _wrap(network, tuple(inputs), output).eval()
    _settle(module, tuple(values.values()))
    dynamic = tuple({0: "batch"} for _ in values)
    return Model(module, tuple(values.values()), Origin("module", name, dynamic=dynamic), tuple(values))


def _network(architecture: str, settings: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    with quiet():
        config = kind.config_class(**settings)
        if getattr(config, "use_cache", None):
            config.use_cache = False
        network: nn.Module = kind(config)
    _spread(network)
    return network


def _wrap(network: nn.Module, arguments: tuple[str, ...], output: str) -> nn.Module:
    if arguments == ("input_ids", "attention_mask"):
        return Tokens(network)
    if len(arguments) == 2:
        return PairOutput(network, arguments, output)
    return Signal(network, arguments[0]) if output == "logits" else Output(network, arguments[0], output)


@torch.no_grad()
def _spread(network: nn.Module) -> None:
    """Fresh networks have biases of 0, norms of 1 and outputs near 0, which would hide a wrong cut: none of it stays so."""
    for name, value in network.named_parameters():
        if value.dim() > 1 and "original0" not in name:  # the norm of a weight-normalized kernel is a scale
            value.normal_(0, (value.numel() / len(value)) ** -0.5)
        elif name.endswith("weight"):
            value.uniform_(0.7, 1.3)  # some architectures start even these at 0
        else:
            value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))


def _sixteen(value: Tensor) -> Tensor:
    """Rows enough for a variance even where a picture has shrunk to one pixel."""
    return torch.randn(16, *value.shape[1:]) if value.is_floating_point() else value.repeat(8, *[1] * (value.dim() - 1))


@torch.no_grad()
def _settle(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Batch normalization takes the statistics of random inputs; with those it starts with, a deep signal dies out."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    module(*(_sixteen(value) for value in example))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        # a dead channel has no variance, and its rounding errors would be magnified
        variance_C: Any = norm.running_var
        variance_C.clamp_(min=0.01)
