"""From a traced graph back to the class it was traced from.

The graph keeps the tensors' names, so the original module says how to call them. Where it builds itself from a config, as the
networks of transformers do, it is built anew from a smaller one; else, or where no config says what the tensors are, a copy of
it is adapted.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lighten.analyze.attributes import Score, follow_integers, follow_tensors, groups_in
from lighten.analyze.configure import Configuration
from lighten.analyze.stacks import Stack, moved, shorten, shortened
from lighten.analyze.trace import export_program, tensor_of
from lighten.core.errors import UnfitError
from lighten.engine.quiet import quiet

TOLERANCE = 1e-4
"""Largest difference of the outputs, as a share of the largest value: the same sums in float32, perhaps in another order. A
wrong number of heads or groups differs by more than a hundred times that.
"""
_LIFTED = ("lifted_tensor", "_tensor_constant")  # constants of the code, not tensors of a module


@dataclass(frozen=True)
class Reclassed:
    """module: the smaller network as an instance of the original's class, in eval mode, on tensors of its own; None where the
    class cannot have these sizes. network: the part of it, or itself, that `save_pretrained` writes such that `from_pretrained`
    gives it again; None where there is none. reason: why one of them is missing, a sentence; empty for a module without config.
    """

    module: nn.Module | None
    network: nn.Module | None = None
    reason: str = ""


def as_class(original: nn.Module, smaller: fx.GraphModule, example: Sequence[Tensor]) -> Reclassed:
    """The network of a graph, whose tensors were cut or trained or whose layers were left out, as an instance of its class.

    original: what the graph was traced from; it is not changed. example: inputs that tell networks apart, random or real, not
    constant. The outputs agree on it within TOLERANCE; a module that does not is not given.
    """
    try:
        job = _job(original, smaller, tuple(example))
    except UnfitError as error:
        return Reclassed(None, reason=error.message)
    path, reason = configured(original), ""
    try:
        if path is not None:
            module = _rebuilt(job, path)
            return Reclassed(module, module.get_submodule(path))
    except UnfitError as error:
        reason = error.message
    try:
        return Reclassed(_adapted(job), reason=reason)
    except UnfitError as error:
        return Reclassed(None, reason=reason or error.message)


def configured(module: nn.Module) -> str | None:
    """The path of the outermost part that builds itself from a config and can save itself, None when there is none."""
    for path, part in module.named_modules():
        if hasattr(getattr(part, "config", None), "to_dict") and hasattr(part, "save_pretrained"):
            return str(path)
    return None


@dataclass(frozen=True)
class _Job:
    """expected: the graph's outputs. groups: of its convolutions. stacks: lists that lost layers. tensors: what the graph
    reads, by the names in the smaller class.
    """

    original: nn.Module
    example: tuple[Tensor, ...]
    expected: list[Tensor]
    groups: Mapping[str, int]
    stacks: Sequence[Stack]
    tensors: Mapping[str, Tensor]

    def score(self, module: nn.Module) -> Score:
        """Of a module that should compute what the graph does."""
        completed: list[nn.Module] = []
        hooks = [part.register_forward_hook(lambda part, *_: completed.append(part)) for part in module.modules()]
        try:
            found = _outputs(module, self.example)
        except Exception as error:  # a wrong number of heads may raise anything
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return Score(len(completed), why=first.strip()[:200])
        finally:
            for hook in hooks:
                hook.remove()
        return Score(inf, _difference(found, self.expected))


def _job(original: nn.Module, smaller: fx.GraphModule, example: tuple[Tensor, ...]) -> _Job:
    if isinstance(original, fx.GraphModule):
        raise UnfitError("The network was read as a graph, which has no class.")
    own, read = dict(_tensors(original)), _read_by(smaller)
    unknown = [name for name in read if name not in own and not _is_constant(original, name)]
    if unknown:
        raise UnfitError(f"{type(original).__name__} has no tensor {unknown[0]}.")
    lost: list[str] = []
    if own.keys() - read:
        lost = [name for name in _read_by(export_program(original, example, ()).module()) if name in own.keys() - read]
    stacks = shortened(original, lost)
    rest = [name for name in lost if moved(name, stacks) is not None]
    if rest:
        raise UnfitError(f"{type(original).__name__} always computes the part that was left out: it reads {rest[0]}.")
    names = {name: moved(name, stacks) for name in read if name in own}
    tensors = {new: tensor_of(smaller, name).detach() for name, new in names.items() if new is not None}
    groups = {new: count for path, count in groups_in(smaller).items() if (new := moved(path, stacks)) is not None}
    return _Job(original, example, _outputs(smaller, example), groups, stacks, tensors)


def _adapted(job: _Job) -> nn.Module:
    """A copy of the original with its tensors replaced and its attributes brought up to date."""
    module = _copy(job.original, {})
    shorten(module, job.stacks)
    old = {name: tuple(value.shape) for name, value in _tensors(module)}
    new = {name: tuple(value.shape) for name, value in job.tensors.items()}
    for stack in job.stacks:  # numbers of layers follow like sizes
        old[stack.path], new[stack.path] = (stack.count,), (len(stack.kept),)
    _place(module, job.tensors)
    follow_tensors(module, job.groups)
    best = follow_integers(module, old, new, score=lambda: job.score(module), good=TOLERANCE)
    if best.error > TOLERANCE:
        why = best.why or f"it computes something else, by {best.error:.2g} of the largest output"
        raise UnfitError(f"{type(module).__name__} cannot have these sizes: {why}.")
    return module


def _rebuilt(job: _Job, path: str) -> nn.Module:
    """The original around a network built anew from its config."""
    network = job.original.get_submodule(path)
    prefix = f"{path}." if path else ""
    saved = {name: value for name, value in network.state_dict().items() if not _is_unsaved(network, name)}
    old = {new: value for name, value in saved.items() if (new := moved(prefix + name, job.stacks)) is not None}
    goal = {name.removeprefix(prefix): tuple(value.shape) for name, value in job.tensors.items() if name in old}
    stacks = [Stack(one.path.removeprefix(prefix), one.count, one.kept) for one in job.stacks]
    # what is not saved is the class's to compute, here as after from_pretrained
    tensors = {name: value for name, value in job.tensors.items() if name in old or not name.startswith(prefix)}
    spare = {name.removeprefix(prefix): value for name, value in old.items() if name not in job.tensors}
    found: list[nn.Module] = []

    def accept(made: nn.Module) -> bool:
        _fill(made, network, spare)
        module = _copy(job.original, {id(network): made})
        _place(module, tensors)
        found[:] = [module]
        return job.score(module).error <= TOLERANCE

    Configuration(network, goal, stacks).solve(accept)
    return found[0]


def _is_unsaved(network: Any, name: str) -> bool:
    """Tables that a class computes, as those of sines."""
    return any(re.search(pattern, name) for pattern in getattr(network, "_keys_to_ignore_on_save", None) or ())


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """In eval mode. memo: what stands for which of its parts, as copy.deepcopy takes it."""
    try:
        return copy.deepcopy(module, memo).eval()
    except Exception as error:  # modules may hold anything: files, locks, tensors that a hook computed
        raise UnfitError(f"{type(module).__name__} cannot be copied: {error}") from error


@torch.no_grad()
def _fill(made: Any, network: Any, spare: Mapping[str, Tensor]) -> None:
    """What is beside the tensors that are read: those that are not stay as they were where they fit, else they are 0."""
    if hasattr(network, "generation_config"):
        made.generation_config = copy.deepcopy(network.generation_config)
    state = made.state_dict()
    for name, value in spare.items():
        if name in state:
            state[name].copy_(value) if state[name].shape == value.shape else state[name].zero_()


def _place(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts copies of the tensors under their names; names that shared a tensor still do."""
    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for leaf, value in (*owner._parameters.items(), *owner._buffers.items()):
            slots.setdefault(id(value), []).append((owner, leaf))
    places = {name: (value, slots[id(value)]) for name, value in _tensors(module)}
    for name, value in tensors.items():
        old, owners = places[name]
        made = nn.Parameter(value.clone(), old.requires_grad) if isinstance(old, nn.Parameter) else value.clone()
        for owner, leaf in owners:
            setattr(owner, leaf, made)  # not _parameters: recurrent layers keep a second list of theirs


@torch.no_grad()
def _outputs(module: nn.Module, example: Iterable[Tensor]) -> list[Tensor]:
    with quiet():
        given = pytree.tree_leaves(module(*(value.clone() for value in example)))
    return [value.to(torch.float32) for value in given if isinstance(value, Tensor)]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest, as a share of the largest value; infinite where shapes differ."""
    if [value.shape for value in found] != [value.shape for value in expected]:
        return inf
    scale = max((float(value.abs().max()) for value in expected if value.numel()), default=0.0)
    pairs = zip(found, expected, strict=True)
    return max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0) / (scale or 1.0)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _is_constant(module: nn.Module, name: str) -> bool:
    """What the code holds, or a module as a plain attribute: no state dict knows it, and its class makes it."""
    path, _, leaf = name.rpartition(".")
    return leaf.startswith(_LIFTED) or isinstance(getattr(dict(module.named_modules()).get(path), leaf, None), Tensor)


def _read_by(graph: fx.GraphModule) -> dict[str, None]:
    """The names of the tensors that the graph reads, in order; torch.export lists the others too."""
    return dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr" and node.users)
