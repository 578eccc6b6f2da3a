"""The steps of a recipe that give another network, one after the other.

Each has a folder of its own for what it finished, under the identity of everything before it: a run that is started again
repeats no step, and a training goes on at its last epoch. What comes after a step may change without a loss. After each step
the zeros of a sparse network and the values that weights share are compared with those before it. On several ranks all go on
with the first one's network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lighten.core.data import Data
from lighten.core.method import Rewrite
from lighten.core.model import Model
from lighten.core.run import Run, Stopped
from lighten.engine.memory import SharedMemory
from lighten.engine.sharing import check_shared, num_values
from lighten.engine.structure import from_structure, to_structure
from lighten.engine.zeros import check_pattern, check_zeros, zeros_of


def rewritten(
    model: Model, steps: Sequence[Rewrite], *, data: Data, run: Run, pins: Sequence[str], identity: Mapping[str, Any]
) -> tuple[Model, bool]:
    """The network after every step, and whether Ctrl-C ended one early: then its best so far is given, and the steps behind it
    are left out. The given model is not changed.

    identity: what `model`, `data` and `run` are. run.folder, run.tensorboard: each step takes a folder of its own there.
    """
    for number, step in enumerate(steps, 1):
        name = f"{number}-{step.card.name}"
        own = replace(run, folder=_inside(run.folder, name), tensorboard=_inside(run.tensorboard, name))
        known = {**identity, "steps": [identity_of(step) for step in steps[:number]]}
        run.progress.say(f"{step.card.title} ...")
        try:
            made, is_stopped = _once(model, own, known, partial(step.rewrite, model, data=data, pins=pins)), False
        except Stopped as stop:
            made, is_stopped = stop.result, True
        model = _checked(model, made, step.card.name)
        if is_stopped:
            return model, True
    return model, False


def _checked(before: Model, after: Model, step: str) -> Model:
    """`after`, whose tensors are named as those of `before`, with its zeros and shared values checked. A tensor that is gone is
    neither sparse nor shared.
    """
    values = num_values(after.module, after.shared)
    had = num_values(before.module, before.shared)
    check_shared(had, {name: number for name, number in values.items() if name in had}, step=step)
    zeros = zeros_of(after.module, after.sparse)
    known = zeros_of(before.module, before.sparse)
    check_zeros(known, {name: found for name, found in zeros.items() if name in known}, step=step)
    check_pattern(zeros, after.sparse, step=step)
    return replace(
        after,
        sparse={name: pattern for name, pattern in after.sparse.items() if name in zeros},
        shared={name: bits for name, bits in after.shared.items() if name in values},
    )


def identity_of(step: Any) -> str:
    """What decides, with its input, what a step gives: its knobs, and the content of the files that they name."""
    outside: Callable[[], str] | None = getattr(step, "outside", None)
    return repr(step) if outside is None else f"{step!r} {outside()}"


def _once(model: Model, run: Run, identity: Mapping[str, Any], step: Callable[..., Model]) -> Model:
    """`step(run=run)`, or what it gave before, with its entries in the ledger."""
    if run.folder is None and run.ranks.world == 1:
        return step(run=run)
    memory = SharedMemory(run.folder, run.ranks, identity=identity)
    began = len(run.ledger.entries)
    made: list[Model] = []

    def result() -> Model:
        if not made:
            made.append(step(run=replace(run, memory=memory)))
        return made[0]

    def facts_of(made: Model) -> dict[str, Any]:
        kept = {"sparse": dict(made.sparse), "shared": dict(made.shared)}
        return {**_parts(_graph(made))[0], **kept, "entries": run.ledger.entries[began:]}

    tensors = memory.remember_tensors("tensors", lambda: _parts(_graph(result()))[1])
    facts = memory.remember("facts", lambda: facts_of(result()))
    for entry in facts["entries"] if not made else ():
        run.ledger.note(**{name: value for name, value in entry.items() if name != "seconds"})
    # read back even where it was made just now: the order of its parameters must not depend on which of the two it is
    return replace(model, module=_network(facts, tensors), sparse=facts["sparse"], shared=facts.get("shared", {}))


def _graph(model: Model) -> fx.GraphModule:
    return cast(fx.GraphModule, model.module)


def _parts(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The network as JSON data and tensors, a shared one once. owners: for each name that a node reads, the first name of the
    same tensor. trained: the names of those that take gradients.
    """
    structure, tensors = to_structure(module)
    first: dict[tuple[int, torch.Size], str] = {}
    owners = {name: first.setdefault((value.data_ptr(), value.shape), name) for name, value in tensors.items()}
    trained = [name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad]
    facts = {"structure": structure, "owners": owners, "trained": trained}
    return facts, {name: tensors[name] for name in first.values()}


def _network(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    values = {
        name: nn.Parameter(value.clone()) if name in facts["trained"] else value.clone() for name, value in tensors.items()
    }
    return from_structure(facts["structure"], {name: values[owner] for name, owner in facts["owners"].items()})


def _inside(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name
