"""PyTorch modules: given as objects, or made by a callable named on the command line, with weights from a file."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file it refuses; nothing is unpickled here

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.importing import call

Example = tuple[Tensor, ...] | Tensor | None
_SAVE_TENSORS = "Save module.state_dict() as .safetensors."


def read_module(module: nn.Module, *, example: Example = None, weights: str | Path | None = None, source: str = "") -> Model:
    """A module in eval mode with one batch of inputs.

    Dimension 0 of every input is the batch; an example of batch 1 is doubled, so that tracing does not fix it.
    Raises InputError when there is no example, or the weights do not fit.
    """
    inputs = _example(module, example)
    _check_weights(module)
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
    # files of shared weights often hold them once
    given = {value.data_ptr() for name, value in own.items() if name in state and value.numel()}
    missing = sorted(name for name in own.keys() - state.keys() if own[name].data_ptr() not in given)
    extra = sorted(state.keys() - own.keys())
    if missing or extra:
        raise InputError(f"{path} does not fit the network: {_few('missing', missing)}{_few('unexpected', extra)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(f"{path}: {name} has shape {tuple(value.shape)}, the network's is {tuple(own[name].shape)}.")
    module.load_state_dict(state, strict=False)  # the names were compared above


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Tensors by name from .safetensors, or from a torch file that holds nothing but tensors."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"The weights {path} do not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds {found[1]}, and loading that would run its code" if found else "it is corrupt or holds Python objects"
        raise InputError(f"{path} is refused: {why}.", hint=_SAVE_TENSORS) from error
    except Exception as error:  # a damaged file takes torch's reader anywhere: AssertionError, struct.error, ...
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is corrupt: {first[:150].rstrip('.')}.", hint=_SAVE_TENSORS) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a state dict, tensors by name.", hint=_SAVE_TENSORS)
    return state


def _example(module: nn.Module, example: Example) -> tuple[Tensor, ...]:
    given = example if example is not None else getattr(module, "example_inputs", None)
    given = given() if callable(given) and not isinstance(given, Tensor) else given
    inputs = (given,) if isinstance(given, Tensor) else given
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise InputError(
            f"{type(module).__name__} has no example of its inputs.",
            hint="Give example=(tensor, ...), or give the module an attribute example_inputs.",
        )
    return inputs


def _check_weights(module: nn.Module) -> None:
    for name, value in module.named_parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(f"{name} is {str(value.dtype).removeprefix('torch.')}, not float32.", hint="Give module.float().")
        if value.device.type != "cpu":
            raise InputError(f"{name} is on {value.device}; lighten works on the CPU.", hint="Give module.cpu().")


def _at_least_two(value: Tensor) -> Tensor:
    return value.repeat(2, *[1] * (value.dim() - 1)) if value.dim() and value.shape[0] == 1 else value


def _few(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}. " if names else ""
