"""ExecuTorch programs (.pte) for XNNPACK, and ExecuTorch's runtime to run them.

A compressed graph is brought to the forms XNNPACK has kernels for (signed.py), exported, and lowered with the XNNPACK
partitioner: what it takes runs in XNNPACK, all else in ExecuTorch's portable kernels, one at a time and in float. Weights that
a plan only stores in few bits are written in float32: ExecuTorch would compute them anew at each call, and XNNPACK takes no
weight that is computed. Embeddings keep their codes, of which a call reads only the rows it needs.
"""

import copy
import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.analyze.trace import tensor_of
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.executorch_session import ExecutorchSession, executorch_runtime
from lighten.engine.files import write_atomic
from lighten.engine.quiet import mute
from lighten.export.signed import DEQUANTIZE_ROWS, fold_constants, is_dynamic, is_integer, to_signed
from lighten.export.single import single

_FEW_BITS = (-8, 7)  # the codes of 4 bits


class ExecutorchExporter:
    """Writes .pte files that hold one example and runs them in ExecuTorch with XNNPACK on the CPU.

    Dimensions that may vary, other than the batch, reach from 1 to what they are in the model's example.
    """

    name, suffix, holds_one = "executorch", ".pte", True

    def __init__(self) -> None:
        if find_spec("executorch") is None:
            raise InputError("ExecuTorch is not installed.", hint='pip install "lighten[executorch]"')

    def write_float(self, model: Model, path: Path) -> Export:
        """The original network in float32. Raises UnfitError when it cannot be lowered, InputError without the package."""
        return _write(model.module, model, path)

    def write(self, compressed: Compressed, path: Path) -> Export:
        """The compressed network: int8 with fixed and with dynamic ranges, 4-bit weights with dynamic int8 activations. Raises
        as `write_float`.
        """
        with mute():
            graph = copy.deepcopy(compressed.graph)
        to_signed(graph, compressed.outputs)
        fold_constants(graph, keeps=_feeds_integers)
        few = _narrow(graph)
        return _write(graph, compressed.model, path, computed=few)

    def open(self, path: Path, target: Target) -> ExecutorchSession:
        """Loads a file. Raises InputError when ExecuTorch refuses it. Threads are those of the process: the latest call's."""
        return ExecutorchSession(path, target.threads)

    def weight_widths(self) -> tuple[int, ...]:
        """8, and 4 where activations are dynamic."""
        return 8, 4

    def exact_weight_bits(self) -> int:
        """8: XNNPACK multiplies in 16 bits or more."""
        return 8

    def operators(self, path: Path) -> dict[str, int]:
        """Counts of what the program holds: {"Conv:int8": 9} in XNNPACK, {"embedding:portable": 1} outside it. ExecuTorch
        runs a program as it is written. Raises InputError when the file is no program.
        """
        from lighten.export.pte import count_operators

        executorch_runtime()
        return count_operators(path)


def _feeds_integers(node: fx.Node) -> bool:
    return node.target is DEQUANTIZE_ROWS and any(is_integer(user) for user in node.users)


def _narrow(graph: fx.GraphModule) -> frozenset[str]:
    """Says which weights of dynamic layers need 4 bits only, and gives their names."""
    found = []
    for node in graph.graph.nodes:
        if node.target is not DEQUANTIZE_ROWS or not all(is_dynamic(user) for user in node.users):
            continue
        name = str(node.args[0].target)
        least, most = (int(end) for end in torch.aminmax(tensor_of(graph, name)))
        if _FEW_BITS[0] <= least and most <= _FEW_BITS[1]:
            node.args = (*node.args[:4], *_FEW_BITS, torch.int8)
            found.append(name.removesuffix("_codes"))
    graph.recompile()
    return frozenset(found)


def _write(module: nn.Module, model: Model, path: Path, *, computed: frozenset[str] = frozenset()) -> Export:
    executorch_runtime()
    data = _lower(module, *single(model))
    write_atomic(path, data)
    return Export(path, len(data), hashlib.sha256(data).hexdigest(), computed)


def _lower(module: nn.Module, example: tuple[Tensor, ...], shapes: tuple[Mapping[int, Any], ...] | None) -> bytes:
    try:
        with torch.no_grad(), mute():
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

            from lighten.export.pte import partitioner

            program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
            # the check refuses int8 codes in operators that the partitioner then takes
            checks = EdgeCompileConfig(_check_ir_validity=False)
            edge = to_edge_transform_and_lower(program, partitioner=[partitioner()], compile_config=checks)
            lowered = edge.to_executorch()
            _refuse_unknown(lowered.executorch_program)
            return bytes(lowered.buffer)
    except UnfitError:
        raise
    except Exception as error:  # lowering raises whatever a pass raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnfitError(f"The network cannot be written for ExecuTorch: {reason.strip()[:300]}") from error


def _refuse_unknown(program: Any) -> None:
    """Lowering writes operators that the runtime lacks, which then does not load the file."""
    names = {
        f"{one.name}.{one.overload}" if one.overload else one.name for plan in program.execution_plan for one in plan.operators
    }
    unknown = sorted(names - set(executorch_runtime()._get_operator_names()))
    if unknown:
        raise UnfitError(f"The network cannot be written for ExecuTorch: its runtime has no {', '.join(unknown)}.")
