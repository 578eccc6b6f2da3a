"""ONNX files: a torch.fx module of real layers, which trains and exports like any other.

onnx_normalize.py opens the file and bounds it, onnx_graph.py builds the module, onnx_operators/ says what each operator is.
Dimension key: B batch.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from lighten.core.errors import InputError, LightenError
from lighten.core.model import Model, Origin
from lighten.engine.quiet import quiet
from lighten.read.onnx_build import MAX_ELEMENTS
from lighten.read.onnx_graph import KNOWN, convert
from lighten.read.onnx_normalize import open_onnx, torch_type

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

# tried in turn for sizes that the file leaves open, but for the batch
_IMAGE_SIZES = (224, 64, 48, 32, 128, 512)
_SIZES = (16, 512, 64, 128, 32, 256, 1024, 1)
_GIVE_EXAMPLE = "Give example=(tensor, ...), one tensor an input."
Dims = tuple[int | str, ...]


def read_onnx(path: Path, *, example: tuple[Tensor, ...] | Tensor | None = None) -> Model:
    """The network in `path`, with an input for each of the file's.

    example: one tensor an input, needed where the file leaves sizes open that cannot be guessed. An input without dimensions
    (a sample rate, a flag) becomes a constant of the example's value: what depends on it is decided once. Sizes that the file
    leaves open stay open; a batch that it fixes at 1 is opened where the network gives each example the same result by itself.

    Raises InputError when the file is damaged or its inputs cannot be guessed, UnfitError when it uses an operator that is not
    read.
    """
    proto = open_onnx(path, KNOWN)
    known = {tensor.name for tensor in proto.graph.initializer}
    declared = [entry for entry in proto.graph.input if entry.name not in known]
    if not declared:
        raise InputError(f"{path} takes no input.")
    dims = {entry.name: _dims(entry, number) for number, entry in enumerate(declared)}
    try:
        inputs, module = _first_that_fits(proto, declared, dims, example=example, folder=path.parent)
    except LightenError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error
    names = [name for name in inputs if dims[name]]
    values = tuple(inputs[name] for name in names)
    dynamic = tuple({dim: size for dim, size in enumerate(dims[name]) if isinstance(size, str)} for name in names)
    values, dynamic = _open_batch(module, values, dynamic)
    origin = Origin("onnx", str(path), dynamic=dynamic)
    return Model(module, values, origin, tuple(names), tuple(entry.name for entry in proto.graph.output))


def _dims(entry: "ValueInfoProto", number: int) -> Dims:
    """Each size, or a name where it is open."""
    if not entry.type.HasField("tensor_type"):
        raise InputError(f"The input {entry.name!r} is not a tensor.")
    if not entry.type.tensor_type.HasField("shape"):
        raise InputError(f"The file does not say how many dimensions the input {entry.name!r} has.")
    found: list[int | str] = []
    for dim, size in enumerate(entry.type.tensor_type.shape.dim):
        if size.dim_value > 0:
            found.append(size.dim_value)
        else:
            is_name = size.dim_param.isidentifier()
            found.append(size.dim_param if is_name else "batch" if dim == 0 else f"size_{number}_{dim}")
    return tuple(found)


def _first_that_fits(
    proto: "ModelProto",
    declared: "list[ValueInfoProto]",
    dims: dict[str, Dims],
    *,
    example: tuple[Tensor, ...] | Tensor | None,
    folder: Path,
) -> tuple[dict[str, Tensor], fx.GraphModule]:
    """The example, given or the first of those tried, and the network built on it."""
    tried = [_given(example, declared, dims)] if example is not None else _guesses(declared, dims)
    failure: InputError | None = None
    for inputs in tried:
        fixed = {name: value for name, value in inputs.items() if not dims[name]}
        real = {name: value for name, value in inputs.items() if dims[name]}
        if not real:
            raise InputError("No input of the network has a dimension.")
        try:
            with quiet():
                return inputs, convert(proto, real, fixed=fixed, folder=folder)
        except InputError as error:
            failure = failure or error
    if failure is None:
        raise InputError("The sizes of the inputs cannot be guessed.", hint=_GIVE_EXAMPLE)
    is_open = example is None and any(isinstance(size, str) for sizes in dims.values() for size in sizes)
    raise InputError(failure.message, hint=failure.hint or (_GIVE_EXAMPLE if is_open else "")) from failure


def _given(example: tuple[Tensor, ...] | Tensor, declared: "list[ValueInfoProto]", dims: dict[str, Dims]) -> dict[str, Tensor]:
    values = (example,) if isinstance(example, Tensor) else tuple(example)
    if len(values) != len(declared):
        raise InputError(f"The example has {len(values)} tensors, the file {len(declared)} inputs: {', '.join(dims)}.")
    for value, (name, sizes) in zip(values, dims.items(), strict=True):
        fits = value.dim() == len(sizes) and all(
            isinstance(size, str) or size == given for size, given in zip(sizes, value.shape, strict=False)
        )
        if not fits:
            raise InputError(f"The example of {name!r} has the shape {tuple(value.shape)}, the file says {sizes}.")
    return {
        entry.name: value.to(torch_type(entry.type.tensor_type.elem_type))
        for entry, value in zip(declared, values, strict=True)
    }


def _guesses(declared: "list[ValueInfoProto]", dims: dict[str, Dims]) -> Iterator[dict[str, Tensor]]:
    """Zeros for real inputs, ones for integers: batches of 2 where the batch is open."""
    flags = [name for name, sizes in dims.items() if not sizes]
    if flags:
        raise InputError(f"The input {flags[0]!r} has no dimensions: what it should be cannot be guessed.", hint=_GIVE_EXAMPLE)
    is_image = any(len(sizes) == 4 for sizes in dims.values())
    batches = {sizes[0] for sizes in dims.values() if isinstance(sizes[0], str)}
    others = {size for sizes in dims.values() for size in sizes if isinstance(size, str)} - batches
    for guess in (_IMAGE_SIZES if is_image else _SIZES) if others else (1,):
        made = {}
        for entry in declared:
            shape = [size if isinstance(size, int) else 2 if size in batches else guess for size in dims[entry.name]]
            if math.prod(shape) > MAX_ELEMENTS:
                raise InputError(f"The input {entry.name!r} would have the shape {tuple(shape)}.", hint="The file is damaged.")
            kind = torch_type(entry.type.tensor_type.elem_type)
            made[entry.name] = torch.zeros(shape, dtype=kind) if kind.is_floating_point else torch.ones(shape, dtype=kind)
        yield made


def _open_batch(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], dynamic: tuple[dict[int, str], ...]
) -> tuple[tuple[Tensor, ...], tuple[dict[int, str], ...]]:
    """Two examples at once where the file has one, if the network treats each by itself."""
    if any(dynamic) or any(value.shape[0] != 1 for value in inputs):
        return inputs, dynamic
    generator = torch.Generator().manual_seed(0)
    pairs = [(_random(value, generator), _random(value, generator)) for value in inputs]
    try:
        with torch.no_grad(), quiet():
            apart = [_first(module(*(pair[number] for pair in pairs))) for number in range(2)]
            together = _first(module(*(torch.cat(pair) for pair in pairs)))
    except (RuntimeError, ValueError, IndexError):
        return inputs, dynamic
    joined = torch.cat(apart)
    if together.shape != joined.shape or not torch.allclose(together, joined, rtol=1e-3, atol=1e-4):
        return inputs, dynamic
    return tuple(torch.cat([value, value]) for value in inputs), tuple({0: "batch"} for _ in inputs)


def _random(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(value.shape, generator=generator) if value.dtype == torch.float32 else value


def _first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    found = outputs if isinstance(outputs, Tensor) else outputs[0]
    return found if found.dim() else found.reshape(1)
