"""An ONNX file as a graph that can be built node by node: checked, its functions inlined, old operators upgraded.

Nothing here trusts the file: its size, the size of every tensor, the number of nodes and the place of external data are
compared with what is really there before anything is allocated.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lighten.core.errors import InputError, UnfitError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

MAX_FILE_BYTES = 1 << 31  # protobuf's own limit on a message
MAX_NODES = 100_000
MAX_BYTES = 1 << 33  # of one tensor, external data included
OLDEST_OPSET, NEWEST_OPSET = 7, 28  # of the operators in onnx_operators; older files are upgraded to UPGRADED
_UPGRADED = 13
_ELEMENT_BYTES = 16  # the widest type
_DAMAGED = "The file is damaged."


def open_onnx(path: Path, known: frozenset[str]) -> "ModelProto":
    """The model in `path`, whose operators are all in `known`, with every node behind those it reads.

    Raises InputError when the file is damaged, larger than 2 GB, or reads outside its folder; UnfitError when it uses operators
    that are not known.
    """
    proto = _parse(path)
    for graph in graphs_of(proto.graph):
        for tensor in _tensors(graph):
            check_tensor(tensor, path.parent)
    proto = _inlined(_upgraded(proto, path), known, path)
    _refuse_unknown(proto, known, path)
    return proto


def read_tensor(tensor: "TensorProto", folder: Path) -> Tensor:
    """As a torch tensor of the same type; float16 and bfloat16 become float32, in which everything is computed."""
    from onnx import TensorProto, numpy_helper

    kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
    if kind in ("STRING", "UNDEFINED", "?", "COMPLEX64", "COMPLEX128") or kind.startswith("FLOAT4"):
        raise UnfitError(f"{tensor.name or 'A constant'} is a tensor of {kind}, which is not read.")
    try:
        array = numpy_helper.to_array(tensor, str(folder))
        if kind in ("FLOAT16", "BFLOAT16") or kind.startswith("FLOAT8"):
            array = array.astype("float32")
        elif kind in ("INT4", "UINT4", "INT2", "UINT2"):
            array = array.astype("int8" if kind.startswith("INT") else "uint8")
        return torch.from_numpy(array.copy())
    except (ValueError, TypeError, OSError, RuntimeError, AttributeError) as error:
        raise InputError(f"The tensor {tensor.name!r} cannot be read: {str(error)[:150]}.", hint=_DAMAGED) from error


def torch_type(number: int) -> torch.dtype:
    """The torch type of an ONNX one; float16 and bfloat16 are computed in float32. Raises UnfitError where there is none."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
    same = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float32", "BFLOAT16": "float32"}
    found = getattr(torch, same.get(name, name.lower()), None)
    if not isinstance(found, torch.dtype):
        raise UnfitError(f"Tensors of type {name} are not read.")
    return found


def check_tensor(tensor: "TensorProto", folder: Path) -> None:
    """Raises InputError when a tensor says that it is larger than its data, or keeps them outside `folder`."""
    from onnx import TensorProto, helper

    if any(size < 0 for size in tensor.dims):
        raise InputError(f"The tensor {tensor.name!r} has a negative size.", hint=_DAMAGED)
    count = math.prod(tensor.dims)
    if count * _ELEMENT_BYTES > MAX_BYTES * 4:
        raise InputError(f"The tensor {tensor.name!r} says that it has {count:,} values.", hint=_DAMAGED)
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, folder)
        return
    if tensor.HasField("raw_data"):
        try:
            wide = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"The tensor {tensor.name!r} is of an unknown type.", hint=_DAMAGED) from error
        # several values of fewer than 8 bits share a byte
        if not (len(tensor.raw_data) == count * wide or (wide == 1 and len(tensor.raw_data) * 4 >= count)):
            given = f"{len(tensor.raw_data)} bytes for {count:,} values"
            raise InputError(f"The tensor {tensor.name!r} has {given}.", hint=_DAMAGED)
        return
    stored = max(
        len(getattr(tensor, name)) for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )
    if count > 8 * max(stored, len(tensor.string_data)):
        raise InputError(f"The tensor {tensor.name!r} has {stored} of {count:,} values.", hint=_DAMAGED)


def graphs_of(graph: "GraphProto") -> Iterator["GraphProto"]:
    """The graph and all that lie within its nodes."""
    from onnx import AttributeProto

    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            waiting += [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
            waiting += [inner for attribute in node.attribute for inner in attribute.graphs]


def in_order(graph: "GraphProto", outer: Mapping[str, object]) -> list["NodeProto"]:
    """The graph's nodes, each behind those whose outputs it or its subgraphs read.

    outer: the names that are there already. Raises InputError for a cycle, a name nobody makes, and a name made twice.
    """
    makers = _makers(graph)
    needs = [{makers[name] for name in read_by(node) if name in makers} for node in graph.node]
    missing = [name for node in graph.node for name in node.input if name and name not in makers and name not in outer]
    if missing:
        raise InputError(f"Nothing in the file gives {missing[0]!r}.", hint="An initializer or a node is missing.")
    readers: list[list[int]] = [[] for _ in needs]
    for number, needed in enumerate(needs):
        for maker in needed:
            readers[maker].append(number)
    waits = [len(needed) for needed in needs]
    ready, ordered = [number for number, count in enumerate(waits) if count == 0][::-1], []
    while ready:
        number = ready.pop()
        ordered.append(graph.node[number])
        for reader in reversed(readers[number]):
            waits[reader] -= 1
            if waits[reader] == 0:
                ready.append(reader)
    if len(ordered) < len(needs):
        stuck = next(node for node, count in zip(graph.node, waits, strict=True) if count)
        raise InputError(f"The nodes around {stuck.name or stuck.op_type!r} form a cycle.", hint=_DAMAGED)
    return ordered


def read_by(node: "NodeProto") -> set[str]:
    """Every name that a node reads, those that its subgraphs read from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            graphs = list(graphs_of(attribute.g))
            read = {name for graph in graphs for inner in graph.node for name in inner.input if name}
            read |= {output.name for graph in graphs for output in graph.output}
            made = {name for graph in graphs for inner in graph.node for name in inner.output}
            names |= read - made - {entry.name for graph in graphs for entry in graph.initializer}
    return names


def opset_of(proto: "ModelProto", domain: str = "") -> int:
    """The version of a domain's operators; 0 where the file does not say."""
    return next((entry.version for entry in proto.opset_import if entry.domain in (domain, domain or "ai.onnx")), 0)


def _parse(path: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than 2 GB.", hint="Keep the weights as external data beside it.")
        proto: ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file, or is damaged: {error}.") from error
    count = sum(len(graph.node) for graph in graphs_of(proto.graph)) + sum(len(entry.node) for entry in proto.functions)
    if not count or not proto.graph.output:
        raise InputError(f"{path} holds no network.", hint="It has no node or no output.")
    if count > MAX_NODES:
        raise InputError(f"{path} has {count:,} nodes; {MAX_NODES:,} are read.")
    return proto


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    if graph.sparse_initializer:
        raise UnfitError("The file has sparse initializers, which are not read.")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_external(tensor: "TensorProto", folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    outside = not path.resolve().is_relative_to(folder.resolve()) or Path(location).is_absolute()
    if not location or outside:
        raise InputError(
            f"The tensor {tensor.name!r} keeps its data in {location!r}, outside the model's folder.",
            hint="External data must lie beside the file.",
        )
    if not path.is_file():
        raise InputError(f"{path}, which holds the tensor {tensor.name!r}, does not exist.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise InputError(f"The tensor {tensor.name!r} has a malformed place in {location!r}.", hint=_DAMAGED) from error
    size = path.stat().st_size
    length = size - offset if length < 0 else length
    if offset < 0 or offset + length > size or length * 4 < math.prod(tensor.dims):
        raise InputError(f"{path} is too short for the tensor {tensor.name!r}.", hint=_DAMAGED)


def _upgraded(proto: "ModelProto", path: Path) -> "ModelProto":
    import onnx.version_converter

    opset = opset_of(proto)
    if opset > NEWEST_OPSET:
        raise UnfitError(f"{path} uses version {opset} of ONNX's operators; {NEWEST_OPSET} is the newest that is read.")
    if opset >= OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _UPGRADED)
    except Exception as error:  # the converter's C++ raises types of its own
        said = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise InputError(f"{path} uses version {opset} of ONNX's operators and cannot be upgraded: {said}.") from error


def _inlined(proto: "ModelProto", known: frozenset[str], path: Path) -> "ModelProto":
    """Local functions in place of their calls; operators that are not known but that ONNX defines by others, as these."""
    from onnx import defs, inliner

    unknown = {(node.domain, node.op_type) for node in _nodes(proto) if _key(node) not in known}
    local = {(function.domain, function.name) for function in proto.functions}
    defined = {entry for entry in unknown - local if _is_defined_by_others(defs, entry)}
    if not local and not defined:
        return proto
    try:
        made = inliner.inline_local_functions(proto) if local else proto
        if defined:
            made = inliner.inline_selected_functions(made, sorted(defined), inline_schema_functions=True)
    except Exception as error:  # the inliner's C++ raises types of its own
        raise InputError(f"{path} has functions that cannot be inlined: {str(error)[:150]}.") from error
    if sum(1 for _ in _nodes(made)) > MAX_NODES:
        raise InputError(f"{path} has more than {MAX_NODES:,} nodes once its functions are inlined.")
    return made


def _is_defined_by_others(defs: object, entry: tuple[str, str]) -> bool:
    domain, name = entry
    if not defs.has(name, domain):  # type: ignore[attr-defined]
        return False
    schema = defs.get_schema(name, domain)  # type: ignore[attr-defined]
    return bool(schema.has_function or schema.has_context_dependent_function)


def _refuse_unknown(proto: "ModelProto", known: frozenset[str], path: Path) -> None:
    unknown = sorted({_key(node) for node in _nodes(proto) if _key(node) not in known})
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UnfitError(f"{path} uses operators that are not read: {', '.join(unknown[:5])}{more}.")


def _nodes(proto: "ModelProto") -> Iterator["NodeProto"]:
    return (node for graph in graphs_of(proto.graph) for node in graph.node)


def _key(node: "NodeProto") -> str:
    """The operator's name; those of other domains have it in front."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _makers(graph: "GraphProto") -> dict[str, int]:
    makers: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        for name in node.output:
            if name in makers:
                raise InputError(f"{name!r} is made twice.", hint=_DAMAGED)
            if name:
                makers[name] = number
    return makers
