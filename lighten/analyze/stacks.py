"""Lists of layers that lost some: which, and what the tensors behind them are called afterwards."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

_POSITIONS = ("idx", "index", "layer_id")


@dataclass(frozen=True)
class Stack:
    """Layers of a list of which some are gone. path: of the list. count: before. kept: positions that stay, ascending."""

    path: str
    count: int
    kept: tuple[int, ...]


def shortened(original: nn.Module, lost: Iterable[str]) -> tuple[Stack, ...]:
    """The lists (nn.ModuleList, nn.Sequential) whose layers lost all their tensors, inner ones first.

    lost: names of tensors that the original reads and the smaller network does not.
    """
    gone = set(lost)
    stacks: list[Stack] = []
    for path, layers in original.named_modules() if gone else ():
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or not all(name.isdigit() for name in layers._modules):
            continue
        missing = {index for index, layer in enumerate(layers) if _is_lost(f"{_prefix(path)}{index}.", layer, gone)}
        if missing and moved(path, stacks) is not None:
            kept = tuple(index for index in range(len(layers)) if index not in missing)
            stacks.append(Stack(path, len(layers), kept))
    return tuple(reversed(stacks))


def moved(name: str, stacks: Sequence[Stack]) -> str | None:
    """The name of a tensor or module once the layers before it are gone; None for what is gone itself."""
    for stack in stacks:
        prefix = _prefix(stack.path)
        index, dot, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and index.isdigit():
            if int(index) not in stack.kept:
                return None
            name = f"{prefix}{stack.kept.index(int(index))}{dot}{rest}"
    return name


def shorten(module: nn.Module, stacks: Iterable[Stack]) -> None:
    """Takes the layers out, in place; what holds a layer's position, such as `layer_idx`, follows."""
    for stack in stacks:
        layers: Any = module.get_submodule(stack.path)
        for after, before in enumerate(stack.kept):
            for part, name in _positions(layers[before], before):
                setattr(part, name, after)
        for index in reversed(range(stack.count)):
            if index not in stack.kept:
                del layers[index]


def _is_lost(prefix: str, layer: nn.Module, gone: set[str]) -> bool:
    names = {prefix + name for name in layer.state_dict()}
    read = names & gone
    # a counter of batches or a table of positions may be read by nothing from the start
    return bool(read) and {prefix + name for name, _ in layer.named_parameters(remove_duplicate=False)} <= gone


def _positions(layer: nn.Module, before: int) -> Iterator[tuple[nn.Module, str]]:
    for part in layer.modules():
        for name, value in list(vars(part).items()):
            if type(value) is int and value == before and any(word in name for word in _POSITIONS):
                yield part, name


def _prefix(path: str) -> str:
    return f"{path}." if path else ""
