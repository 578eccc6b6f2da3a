"""Which numbers of a network's configuration make it as small as its tensors: found by building it, not by their names.

A class of transformers builds itself from a `config` of plain data. One number is changed at a time, the network is built
without memory (on torch's meta device), and what changed shows what the number sets. No library is imported here: whatever has
such a config and builds itself from it is served.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from lighten.analyze.attributes import Shapes
from lighten.analyze.stacks import Stack
from lighten.core.errors import UnfitError
from lighten.engine.quiet import quiet

Path = tuple[str | int, ...]
Settings = dict[str, Any]
Edits = Mapping[Path, Any]
Place = tuple[str, int]
_SKIPPED = ("id2label", "label2id", "task_specific_params")  # a thousand numbers that are no sizes
_MOST_BUILDS = 400
_ABSENT = -1


@dataclass
class Configuration:
    """The search for one network.

    network: the original; it has a `config`. goal: the shape of each of its tensors afterwards, under the new names; tensors
    that are not named may have any. stacks: lists that lost layers.
    """

    network: Any
    goal: Shapes
    stacks: Sequence[Stack] = ()
    device: str = field(default="meta", init=False)
    settings: Settings = field(default_factory=dict, init=False)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    influence: dict[Path, set[Place]] = field(default_factory=dict, init=False)
    builds: int = field(default=0, init=False)
    fits: bool = field(default=False, init=False)

    def solve(self, accept: Callable[[nn.Module], bool]) -> nn.Module:
        """A new network of the same class, with random weights, whose tensors have the wanted shapes and which `accept` takes.

        Raises UnfitError saying which tensor no number of the config gives.
        """
        self.settings = self.network.config.to_dict()
        if self._built({}) is None:
            self.device = "cpu"  # some classes compute with numbers while they are built
        if self._built({}) is None:
            raise UnfitError(f"{self._name} cannot be built from its config.")
        for stack in self.stacks:
            self._shorten(stack)
        refusals = []
        explicit = _with_head_sizes(self.settings)
        for settings in (self.settings, explicit) if explicit != self.settings else (explicit,):
            found = self._solved(settings, accept)
            if found is not None:
                return found
            refusals.append(self._refusal())
        raise refusals[0]

    def _solved(self, settings: Settings, accept: Callable[[nn.Module], bool]) -> nn.Module | None:
        self.settings = settings
        self.shapes, self.builds, self.fits = self._built({}) or {}, 0, False
        self.influence = dict(self._influences())
        for edits in self._solutions({}, self.shapes):
            self.fits = True
            candidates = (self._make({**edits, **more}) for more in ({}, *self._silent(edits)))
            found = next((made for made in candidates if made is not None and accept(made)), None)
            if found is not None:
                return found
        return None

    @property
    def _name(self) -> str:
        return type(self.network).__name__

    def _make(self, edits: Edits, device: str = "cpu") -> nn.Module | None:
        """None when the class does not take the numbers: it says so with whatever error it likes."""
        self.builds += 1
        try:
            with quiet(), torch.device(device), torch.random.fork_rng(devices=[]):
                config = type(self.network.config).from_dict(_edited(self.settings, edits))
                _copy_private(self.network.config, config)
                made: nn.Module = type(self.network)(config)
        except Exception:
            return None
        return made.eval()

    def _built(self, edits: Edits) -> dict[str, tuple[int, ...]] | None:
        made = self._make(edits, self.device)
        return None if made is None else {name: tuple(value.shape) for name, value in made.state_dict().items()}

    def _wrong(self, shapes: Shapes) -> list[Place]:
        """The dimensions that are not as wanted."""
        found: list[Place] = [(name, _ABSENT) for name in self.goal if name not in shapes]
        for name in (name for name in self.goal if name in shapes):
            if len(self.goal[name]) != len(shapes[name]):
                found.append((name, _ABSENT))
            else:
                sizes = zip(self.goal[name], shapes[name], strict=True)
                found += [(name, dim) for dim, (wanted, has) in enumerate(sizes) if wanted != has]
        return found

    def _influences(self) -> Iterator[tuple[Path, set[Place]]]:
        """What each number sets: what changes with it."""
        wrong = [(name, dim) for name, dim in self._wrong(self.shapes) if dim != _ABSENT]
        ratios = dict.fromkeys((self.shapes[name][dim], self.goal[name][dim]) for name, dim in wrong)
        for path, value in leaves(self.settings) if wrong else ():
            if type(value) not in (int, float) or value <= 1 or self.builds > _MOST_BUILDS:
                continue
            proposals = [one for ratio in ratios if (one := _scaled(value, *ratio)) >= 1 and type(one) is type(value)]
            # a class may refuse one number and take the next
            for proposal in list(dict.fromkeys([*proposals[:2], 2 * value])):
                shapes = self._built({path: proposal})
                if shapes is not None:
                    yield path, _differing(self.shapes, shapes)
                    break

    def _solutions(self, edits: Edits, shapes: Shapes, pending: tuple[Path, ...] = ()) -> Iterator[Edits]:
        """Every set of changes that gives the wanted shapes, depth first.

        shapes: of the last network that could be built. pending: changes since then: a class may take a number only together
        with another, and what they set is taken for right until then.
        """
        built = self._built(edits) if self.builds < _MOST_BUILDS else None
        if built is not None:
            shapes, pending = built, ()
        wrong = [place for place in self._wrong(shapes) if not any(place in self.influence.get(path, ()) for path in pending)]
        if built is not None and not wrong:
            yield edits
        if not wrong or self.builds >= _MOST_BUILDS:
            return
        place = min(wrong, key=lambda place: len(self._setters(place, edits)))
        for path, proposal in self._options(place, edits, shapes):
            yield from self._solutions({**edits, path: proposal}, shapes, (*pending, path))

    def _setters(self, place: Place, edits: Edits) -> list[Path]:
        return [path for path, places in self.influence.items() if place in places and path not in edits]

    def _options(self, place: Place, edits: Edits, shapes: Shapes) -> Iterator[tuple[Path, Any]]:
        """Numbers that set the place, in proportion; then numbers left to the class (None) that give it when set."""
        name, dim = place
        if dim == _ABSENT:
            return
        wanted = self.goal[name][dim]
        for path in self._setters(place, edits):
            value = _at(self.settings, path)
            for has in dict.fromkeys((shapes[name][dim], self.shapes[name][dim])):
                yield path, _scaled(value, has, wanted)
        for path, value in leaves(self.settings):
            if value is None and path not in edits and self.builds <= _MOST_BUILDS:
                built = self._built({**edits, path: wanted})
                if built is not None and built.get(name, ())[dim : dim + 1] == (wanted,):
                    yield path, wanted

    def _silent(self, edits: Edits) -> Iterator[Edits]:
        """Numbers that set no shape, as the heads of an attention that divides its width by them."""
        ratios = dict.fromkeys(
            (_at(self.settings, path), value) for path, value in edits.items() if isinstance(_at(self.settings, path), int)
        )
        for path, places in self.influence.items():
            value = _at(self.settings, path)
            for old, new in ratios:
                if not places and isinstance(value, int) and isinstance(new, int) and value * new % old == 0:
                    yield {path: value * new // old}

    def _shorten(self, stack: Stack) -> None:
        """Brings the settings to fewer layers: a count, lists with an entry a layer, or both."""
        numbers: list[Path | None] = [path for path, value in leaves(self.settings) if value == stack.count]
        lists = [path for path, value in _lists(self.settings) if len(value) == stack.count]
        shorter = {path: [_at(self.settings, path)[index] for index in stack.kept] for path in lists}
        wanted = _layers(self.goal, stack.path)
        for variant in (shorter, {}):
            for number in (*numbers, None):
                edits = variant | ({} if number is None else {number: len(stack.kept)})
                shapes = self._built(edits) if edits else None
                if shapes is not None and _layers(shapes, stack.path) == wanted:
                    self.settings = _edited(self.settings, edits)
                    return
        raise UnfitError(f"No number of the config leaves {stack.count - len(stack.kept)} of {stack.path} out.")

    def _refusal(self) -> UnfitError:
        """Names the tensor with the fewest numbers to set it, and what else these set that would have to change with it."""
        if self.fits:
            return UnfitError(f"{self._name} of these sizes computes something else: its forward uses numbers of the config.")
        wrong = sorted(self._wrong(self.shapes), key=lambda place: len(self._setters(place, {})))
        if wrong and wrong[0][1] == _ABSENT:
            return UnfitError(f"{self._name} has no {wrong[0][0]} of this form.")
        for place in wrong:
            setters = self._setters(place, {})
            if not setters:
                return UnfitError(f"No number of the config sets {self._change(place)}.")
            number = f"config.{'.'.join(map(str, setters[0]))}"
            for other in sorted(self.influence[setters[0]]):
                if other[0] in self.goal and other[1] != _ABSENT and self._ratio(other) != self._ratio(place):
                    return UnfitError(f"{number} sets {self._change(place)} and {self._change(other)} together.")
        if wrong:
            return UnfitError(f"{number} takes no value that gives {self._change(wrong[-1])}.")
        return UnfitError(f"{self._name} cannot be built in these sizes.")

    def _ratio(self, place: Place) -> Fraction:
        name, dim = place
        return Fraction(self.goal[name][dim], self.shapes[name][dim])

    def _change(self, place: Place) -> str:
        name, dim = place
        return f"{name} (dimension {dim}: {self.goal[name][dim]} of {self.shapes[name][dim]} kept)"


def leaves(settings: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The numbers and Nones of a config with where they are; nested configs and lists are entered."""
    is_list = isinstance(settings, list | tuple)
    items = enumerate(settings) if is_list else settings.items()
    for key, value in items:
        if key in _SKIPPED or isinstance(value, bool):
            continue
        if _is_config(value) or isinstance(value, list | tuple):
            yield from leaves(value, (*path, key))
        elif value is None or isinstance(value, int | float):
            yield (*path, key), value


def _lists(settings: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Sequence[Any]]]:
    for key, value in settings.items():
        if isinstance(value, list | tuple):
            yield (*path, key), value
        elif _is_config(value):
            yield from _lists(value, (*path, key))


def _with_head_sizes(settings: Settings) -> Settings:
    """The size of an attention head said in so many words where it is left to the class: it outlives a cut of the width or of
    the number of heads. Classes that do not know the field ignore it.
    """
    result = {key: _with_head_sizes(value) if _is_config(value) else value for key, value in settings.items()}
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if type(width) is int and type(heads) is int and settings.get("head_dim") is None and width % heads == 0:
        result["head_dim"] = width // heads
    return result


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and "model_type" in value


def _layers(names: Iterable[str], path: str) -> set[str]:
    """The keys of a list's entries that hold any of the names."""
    prefix = f"{path}." if path else ""
    return {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}


def _scaled(value: float, old: int, new: int) -> float:
    """In proportion; an integer where it is one. A fraction is rounded up by its last bits: classes cut off after the point."""
    exact = value * new / old
    if isinstance(value, int) and value * new % old == 0:
        return value * new // old
    return exact * (1 + 1e-12) if int(old / value * exact) < new else exact


def _differing(before: Shapes, after: Shapes) -> set[Place]:
    found = set()
    for name in before.keys() | after.keys():
        first, second = before.get(name, ()), after.get(name, ())
        if len(first) != len(second):
            found.add((name, _ABSENT))
        else:
            found |= {(name, dim) for dim, sizes in enumerate(zip(first, second, strict=True)) if sizes[0] != sizes[1]}
    return found


def _at(settings: Any, path: Path) -> Any:
    for key in path:
        settings = settings[key]
    return settings


def _edited(settings: Settings, edits: Edits) -> Settings:
    """A copy with the values at some paths replaced; tuples on the way become lists, as in JSON."""
    result = copy.deepcopy(settings)
    for path, value in edits.items():
        owner: Any = result
        for key in path[:-1]:
            owner[key] = list(owner[key]) if isinstance(owner[key], tuple) else owner[key]
            owner = owner[key]
        owner[path[-1]] = value
    return result


def _copy_private(old: Any, new: Any) -> None:
    """How attention and experts are computed is no part of the data, but of the network."""
    for key, value in vars(old).items():
        if key.startswith("_") and key in vars(new):
            setattr(new, key, value)
        elif hasattr(value, "to_dict") and hasattr(getattr(new, key, None), "to_dict"):
            _copy_private(value, getattr(new, key))
