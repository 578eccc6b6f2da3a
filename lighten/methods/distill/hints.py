"""What a student learns from inside its teacher, added to what it learns from its outputs.

Dimension key: B examples, T tokens, C channels, H heads or relation heads, D width of one, N rows, F features.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.engine.losses import Loss
from lighten.engine.soft_labels import real_tokens
from lighten.methods.distill.layers import ATTENTION, Fits, Named, Pair, Watching, channel_dim, matched
from lighten.ops import features

KINDS = ("none", "hidden", "fitnets", "attention_maps", "relations", "angles", "contrast", "minilm")
_PROJECTED = ("fitnets", "contrast")
_PREFIX = "lighten_hint_"
_RELATION_HEADS = (12, 8, 6, 4, 3, 2, 1)  # the most that divide both widths


@dataclass(frozen=True)
class Hints:
    """kind: one of KINDS but "none". pairs: what learns from what. dims: where the channels of each pair are, in student and
    teacher.
    """

    kind: str
    pairs: tuple[Pair, ...]
    student: Watching
    teacher: Watching
    dims: tuple[tuple[int, int], ...]

    def __call__(self, batch: Batch) -> Tensor:
        """The mean over the pairs, of the run of both that has just been made."""
        values = []
        for number, pair in enumerate(self.pairs):
            if self.kind == "minilm":
                values.append(_minilm(self._attention(pair), batch))
                continue
            found = self.student.found[pair.student], self.teacher.found[pair.teacher]
            values.append(self._compare(found, number, batch))
        return torch.stack(values).mean()

    def _compare(self, found: tuple[Tensor, Tensor], number: int, batch: Batch) -> Tensor:
        student, teacher = (value.float() for value in found)
        if self.kind in _PROJECTED:
            student, teacher = (
                value.movedim(dim, -1) for value, dim in zip((student, teacher), self.dims[number], strict=True)
            )
            student = self.student.graph.get_submodule(f"{_PREFIX}{number}")(student)
        return _COMPARISONS[self.kind](student, teacher, batch)

    def _attention(self, pair: Pair) -> list[tuple[Tensor, Tensor]]:
        """Queries, keys and values of the two, each B x H x T x D."""
        sides = ((self.student, pair.student), (self.teacher, pair.teacher))
        found = [[side.found[name] for name in _read_by(side.graph, node)] for side, node in sides]
        return list(zip(*found, strict=True))


@contextmanager
def hinted(
    kind: str,
    match: str | Mapping[str, str],
    graphs: tuple[fx.GraphModule, fx.GraphModule],
    *,
    inputs: tuple[Tensor, ...],
    seed: int,
) -> Iterator[Hints]:
    """Hints from student and teacher. Learned projections belong to the student's graph inside the block, so that they are
    trained and kept with it. inputs: a few examples. Raises InputError where layers cannot be compared so.
    """
    student, teacher = graphs
    only, fits = ((ATTENTION,), None) if kind == "minilm" else ((), _fitting(kind, graphs))
    pairs = matched(match, student, teacher, inputs=inputs, only=only, fits=fits)
    pairs = pairs[-1:] if kind == "minilm" and isinstance(match, str) else pairs
    watched = [
        Watching(graph, [one for name in names for one in (_read_by(graph, name) if kind == "minilm" else (name,))])
        for graph, names in ((student, [pair.student for pair in pairs]), (teacher, [pair.teacher for pair in pairs]))
    ]
    with torch.no_grad():
        for network in watched:
            network(*inputs)
    dims = () if kind == "minilm" else tuple(_dims(pair, watched) for pair in pairs)
    hints = Hints(kind, pairs, watched[0], watched[1], dims)
    if kind != "minilm":
        _check_shapes(hints)
    try:
        _project(hints, seed)
        yield hints
    finally:
        for name in [name for name, _ in student.named_children() if name.startswith(_PREFIX)]:
            delattr(student, name)


def with_hints(loss: Loss, hints: Hints, beta: float) -> Loss:
    """loss + beta hints. The loss runs the student; it must ask the watched teacher about the same batch."""

    def both(module: nn.Module, batch: Batch) -> Tensor:
        del module  # it is the graph that is watched
        return loss(hints.student, batch) + beta * hints(batch)

    return both


def _read_by(graph: fx.GraphModule, name: str) -> tuple[str, ...]:
    """What an attention reads: queries, keys, values."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    if node.target is not ATTENTION:
        raise InputError(f"{name} is no attention.", hint="features: minilm compares scaled_dot_product_attention nodes.")
    return tuple(cast(fx.Node, arg).name for arg in node.args[:3])


def _dims(pair: Pair, watched: list[Watching]) -> tuple[int, int]:
    names = (pair.student, pair.teacher)
    found = [channel_dim(side.graph, name, side.found[name]) for side, name in zip(watched, names, strict=True)]
    return found[0], found[1]


def _check_shapes(hints: Hints) -> None:
    """Raises InputError for the first pair whose features cannot be compared."""
    fits = _fitting(hints.kind, (hints.student.graph, hints.teacher.graph))
    for pair in hints.pairs:
        one, two = hints.student.found[pair.student], hints.teacher.found[pair.teacher]
        if not fits((pair.student, one), (pair.teacher, two)):
            raise InputError(
                f"features {hints.kind!r}: {pair.student} of the student gives {tuple(one.shape)}, {pair.teacher} of the "
                f"teacher {tuple(two.shape)}.",
                hint=_HINTS[hints.kind],
            )


def _fitting(kind: str, graphs: tuple[fx.GraphModule, fx.GraphModule]) -> Fits:
    """Whether features can be compared in this way."""

    def fits(one: Named, two: Named) -> bool:
        values = one[1], two[1]
        dims = tuple(channel_dim(graph, name, value) for graph, (name, value) in zip(graphs, (one, two), strict=True))
        if kind == "hidden":
            return values[0].shape == values[1].shape
        if kind == "attention_maps":
            return values[0].dim() == values[1].dim() >= 3 and dims == (1, 1)
        rows = [value.movedim(dim, -1).shape[:-1] for value, dim in zip(values, dims, strict=True)]
        return kind != "fitnets" or rows[0] == rows[1]

    return fits


_HINTS = {
    "hidden": "Use features: fitnets, which learns a projection, or relations.",
    "fitnets": "Use features: relations, which compares examples, or match other layers.",
    "attention_maps": "It compares maps of convolutions, examples x channels x space; use relations.",
}


def _project(hints: Hints, seed: int) -> None:
    """A linear map from the student's channels to the teacher's, for each pair."""
    if hints.kind not in _PROJECTED:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, (pair, dims) in enumerate(zip(hints.pairs, hints.dims, strict=True)):
            one, two = hints.student.found[pair.student], hints.teacher.found[pair.teacher]
            projection = nn.Linear(one.shape[dims[0]], two.shape[dims[1]], bias=False).to(one.device)
            hints.student.graph.add_module(f"{_PREFIX}{number}", projection)


def _states(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    mask = _mask_of(student, batch)
    return features.hidden_states(student, teacher) if mask is None else features.hidden_states(student[mask], teacher[mask])


def _related(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Of tokens to one another where there are tokens, else of examples."""
    mask = _mask_of(student, batch)
    if mask is None:
        return features.distances(student.flatten(1), teacher.flatten(1))
    return features.relations(*_in_heads(student, teacher), mask)


def _minilm(found: list[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
    """Relations among queries, among keys and among values (arXiv:2012.15828, eq. 5)."""
    wide = [tuple(value.float().transpose(1, 2).flatten(2) for value in pair) for pair in found]
    mask = _mask_of(wide[0][0], batch)
    return torch.stack([features.relations(*_in_heads(*pair), mask) for pair in wide]).mean()


def _in_heads(student_BTC: Tensor, teacher_BTC: Tensor) -> tuple[Tensor, Tensor]:
    widths = student_BTC.shape[-1], teacher_BTC.shape[-1]
    heads = next(count for count in _RELATION_HEADS if all(width % count == 0 for width in widths))
    student, teacher = (value.reshape(*value.shape[:2], heads, -1).transpose(1, 2) for value in (student_BTC, teacher_BTC))
    return student, teacher


def _pooled(value: Tensor, batch: Batch) -> Tensor:
    """One row an example: the mean over space, or over real tokens; channels are last."""
    mask = _mask_of(value, batch)
    if mask is None:
        return value.flatten(1, -2).mean(1) if value.dim() > 2 else value
    weight = mask[..., None].to(value.dtype)
    return (value * weight).sum(1) / weight.sum(1).clamp_min(1)


def _mask_of(value: Tensor, batch: Batch) -> Tensor | None:
    mask = real_tokens(batch)
    return mask if mask is not None and value.dim() == 3 and mask.shape == value.shape[:2] else None


_COMPARISONS: dict[str, Callable[[Tensor, Tensor, Batch], Tensor]] = {
    "hidden": _states,
    "fitnets": _states,
    "attention_maps": lambda student, teacher, batch: features.attention_maps(student, teacher),
    "relations": _related,
    "angles": lambda student, teacher, batch: features.angles(student.flatten(1), teacher.flatten(1)),
    "contrast": lambda student, teacher, batch: features.contrast(_pooled(student, batch), _pooled(teacher, batch)),
}
