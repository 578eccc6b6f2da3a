"""PyTorch modules: given as objects, or made by a callable named on the command line, with weights from a file."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file it refuses; nothing is unpickled here

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.importing import call

Example = tuple[Tensor, ...] | Tensor | None


def read_module(module: nn.Module, *, example: Example = None, weights: str | Path | None = None, source: str = "") -> Model:
    """A module in eval mode with one batch of inputs.

    Dimension 0 of every input is the batch; an example of batch 1 is doubled, so that tracing does not fix it.
    Raises InputError when there is no example, or the weights do not fit.
    """
    inputs = _example(module, example)
    if weights is not None:
        load_weights(module, Path(weights))
    names = tuple("input" if len(inputs) == 1 else f"input_{number}" for number in range(len(inputs)))
    origin = Origin(
        kind="callable" if source else "module",
        source=source or type(module).__name__,
        dynamic=tuple({0: "batch"} for _ in inputs),
    )
    return Model(module.eval(), tuple(_at_least_two(value) for value in inputs), origin, names)


def read_callable(target: str, *, example: Example = None, weights: str | Path | None = None) -> Model:
    """ "package.module:callable"; the current folder is importable. The callable takes nothing and gives an nn.Module, a pair
    (module, example), or a Model.

    Raises InputError when it cannot be imported, fails, or gives something else.
    """
    made = call(target)
    if type(made) is Model:
        if weights is not None:
            load_weights(made.module, Path(weights))
        return made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return read_module(made[0], example=made[1] if example is None else example, weights=weights, source=target)
    if isinstance(made, nn.Module):
        return read_module(made, example=example, weights=weights, source=target)
    raise InputError(
        f"{target} gave a {type(made).__name__}.", hint="It must give an nn.Module, (module, example), or a Model."
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a state dict. Raises InputError when the file is missing, corrupt, would need unpickling code, or does not fit."""
    state = read_state(path)
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise InputError(f"{path} does not fit the network: {_few('missing', missing)}{_few('unexpected', extra)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(f"{path}: {name} has shape {tuple(value.shape)}, the network's is {tuple(own[name].shape)}.")
    module.load_state_dict(state)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Tensors by name from .safetensors, or from a torch file that holds nothing but tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"The weights {path} do not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path} is refused: it is corrupt or more than plain tensors ({first[:120]}).",
            hint="Save the state dict as .safetensors.",
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is corrupt: {error}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a state dict.", hint="Save the state dict as .safetensors.")
    return state


def _example(module: nn.Module, example: Example) -> tuple[Tensor, ...]:
    given = example if example is not None else getattr(module, "example_inputs", None)
    given = given() if callable(given) and not isinstance(given, Tensor) else given
    inputs = (given,) if isinstance(given, Tensor) else given
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise InputError(
            f"{type(module).__name__} has no example of its inputs.",
            hint="Give example=(tensor, ...), or give the module an attribute example_inputs.",
        )
    return inputs


def _at_least_two(value: Tensor) -> Tensor:
    return value.repeat(2, *[1] * (value.dim() - 1)) if value.dim() and value.shape[0] == 1 else value


def _few(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}. " if names else ""
