"""LiteRT files (.tflite), and LiteRT with XNNPACK to run them.

A compressed graph is brought to int8 (signed.py); weights are written as quantize and dequantize nodes on float tensors, the
form LiteRT's converter understands, which rounds them back to the very same codes. Then litert-torch converts, in its strict
mode, in which it takes all scales from the graph and none from elsewhere. What its converter has no words for is done on the
file (tflite.py): layers whose activations have dynamic ranges, 4-bit weights, half precision.

The steps of litert-torch are called one by one, because its own `convert` knows neither names nor the strict mode.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.cost import Target
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.engine.files import write_atomic
from lighten.engine.litert_session import SIGNATURE, LitertSession, litert_runtime
from lighten.engine.quiet import mute
from lighten.export.packed import HALF_SUFFIX
from lighten.export.signed import (
    DEQUANTIZE_ROWS,
    PRODUCTS,
    drop_dynamic,
    drop_unused,
    fold_constants,
    to_signed,
)
from lighten.export.single import single

quantized = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class LitertExporter:
    """Writes .tflite files that hold one example, of the shape of the model's example, and runs them in LiteRT on the CPU.

    integer_ends: inputs and outputs as int8, with scale and zero point in the file, where the network begins and ends with
    integers; False: as floats.
    """

    integer_ends: bool = False
    name: ClassVar[str] = "litert"
    suffix: ClassVar[str] = ".tflite"
    holds_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if any(find_spec(package) is None for package in ("ai_edge_litert", "litert_torch")):
            raise InputError("LiteRT is not installed.", hint='pip install "lighten[litert]"')

    def write_float(self, model: Model, path: Path) -> Export:
        """The original network in float32. Raises UnfitError when it cannot be converted, InputError without the package."""
        return _write(model.module, model, path)

    def write(self, compressed: Compressed, path: Path) -> Export:
        """The compressed network: int8 with fixed and with dynamic ranges, 4-bit weights with dynamic int8 activations, weights
        stored in int8 or float16. Raises as `write_float`.
        """
        from lighten.export.tflite import Weights

        with mute():
            graph = copy.deepcopy(compressed.graph)
        has_halves = any(node.op == "get_attr" and node.target.endswith(HALF_SUFFIX) for node in graph.graph.nodes)
        to_signed(graph, compressed.outputs)
        dynamic = drop_dynamic(graph)
        fold_constants(graph, keeps=_is_weight)
        weights = Weights({name: tensor_of(graph, f"{name}_codes").numpy() for name in dynamic}, has_halves)
        _unfold(graph)
        return _write(graph, compressed.model, path, weights=weights, integer_ends=self.integer_ends)

    def open(self, path: Path, target: Target) -> LitertSession:
        """Loads a file. Raises InputError when LiteRT refuses it."""
        return LitertSession(path, target.threads)

    def weight_widths(self) -> tuple[int, ...]:
        """8, and 4 where activations are dynamic."""
        return 8, 4

    def exact_weight_bits(self) -> int:
        """8: XNNPACK multiplies in 16 bits or more."""
        return 8

    def operators(self, path: Path) -> dict[str, int]:
        """What LiteRT executes: {"Conv:int8": 9} in XNNPACK, {"Cast:int32 builtin": 1} in LiteRT's own kernels. Raises
        InputError when LiteRT refuses the file.
        """
        from lighten.export.tflite import count_operators

        return count_operators(path)


def _is_weight(node: fx.Node) -> bool:
    """Symmetric codes with a scale a row, read by a product as they are: the only weights that the format knows."""
    return node.target is DEQUANTIZE_ROWS and all(user.target in PRODUCTS and user.args[1] is node for user in node.users)


def _unfold(graph: fx.GraphModule) -> None:
    """Codes become floats that a node rounds to these codes again."""
    for node in list(graph.graph.nodes):
        if node.target is not DEQUANTIZE_ROWS:
            continue
        arguments: Any = node.args
        codes, scale, zero, dim, *ends = arguments
        shape = [1] * tensor_of(graph, codes.target).dim()
        shape[dim] = -1
        name = f"{codes.target}_float"
        set_tensor(graph, name, tensor_of(graph, codes.target).float() * tensor_of(graph, scale.target).reshape(shape))
        with graph.graph.inserting_before(node):
            facts = (graph.graph.get_attr(name), scale, zero, dim, *ends)
            rounded = graph.graph.call_function(quantized.quantize_per_channel.default, facts)
        node.args = (rounded, *arguments[1:])
    drop_unused(graph)


def _write(module: nn.Module, model: Model, path: Path, *, weights: Any = None, integer_ends: bool = False) -> Export:
    litert_runtime()
    example, _ = single(model)
    data = _convert(module.eval(), example, names=(model.input_names, model.output_names), integer_ends=integer_ends)
    computed: frozenset[str] = frozenset()
    if weights is not None:
        from lighten.export.tflite import finish

        data, computed = finish(data, weights)
    write_atomic(path, data)
    return Export(path, len(data), hashlib.sha256(data).hexdigest(), computed)


def _convert(
    module: nn.Module, example: tuple[Tensor, ...], *, names: tuple[Sequence[str], Sequence[str]], integer_ends: bool
) -> bytes:
    try:
        with torch.no_grad(), mute():
            return _converted(module, example, names=names, is_strict=not integer_ends)
    except ImportError as error:
        raise InputError("litert-torch is not installed.", hint='pip install "lighten[litert]"') from error
    except Exception as error:  # the converter raises whatever a pass raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnfitError(f"The network cannot be written for LiteRT: {reason.strip()[:300]}") from error


def _converted(
    module: nn.Module, example: tuple[Tensor, ...], *, names: tuple[Sequence[str], Sequence[str]], is_strict: bool
) -> bytes:
    import litert_torch
    from litert_converter.mlir import passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter
    from litert_torch import backend
    from litert_torch._convert import core, signature
    from litert_torch.backend import inline_consts

    litert_torch.config.show_progress = False
    exported = core.export_torch_signature(signature.Signature(SIGNATURE, module, example, None))
    exported = core._run_convert_passes(exported)
    context = backend.export_utils.create_ir_context()
    constants = inline_consts.InlineConstsContext(enable_resource_constants=False)
    lowered = backend.export.exported_program_to_mlir(exported, ir_context=context, lowering_context_plugins=[constants])
    converter.set_signature(
        lowered.module.operation, signature_name=SIGNATURE, input_names=list(names[0]), output_names=list(names[1])
    )
    module_IR = converter.merge_modules([lowered.module])
    how = converter.ConvertToTFLConfig()
    how.model_origin_framework, how.enable_x64 = "PYTORCH", False
    how.qdq_conversion_mode, how.strict_qdq_mode = "STATIC", is_strict
    how.unsafe_fuse_dynamic_shaped_broadcast, how.canonicalizing_inf_as_min_max_float = True, False
    with context:
        converter.run_convert_to_tfl_passes(module_IR, passmanager.PassManager(), how)
        return bytes(converter.export_flatbuffer_to_bytes(getattr(module_IR, "operation", module_IR)))
