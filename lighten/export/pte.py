"""What ExecuTorch's lowering takes into XNNPACK, and what a program holds in the end."""

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.engine.quiet import mute

_XNNPACK = "XnnpackBackend"
_PLACES = (10, 14)  # of the graph's offset and size in the delegate's header
# names as ONNX has them, so that counts of several runtimes compare
_WITHOUT_WORK = {"StaticReshape": "Reshape", "StaticTranspose": "Transpose", "Copy": "Copy"}
_NAMES = {
    "Conv2d": "Conv", "DepthwiseConv2d": "Conv", "ConvTranspose2d": "ConvTranspose", "FullyConnected": "Gemm",
    "BatchMatrixMultiply": "MatMul", "GlobalAvgPooling2d": "GlobalAveragePool", "AvgPooling2d": "AveragePool",
    "MaxPooling2d": "MaxPool", "Multiply": "Mul", "Subtract": "Sub", "StaticConstantPad": "Pad", "Clamp": "Clip",
    "Concatenate2": "Concat", "Concatenate3": "Concat", "Concatenate4": "Concat", "Concatenate5": "Concat",
    "StaticSlice": "Slice",
}  # fmt: skip
# XNNPACK's names of integer formats; a channel, a block, or each input may have a scale of its own
_FORMATS = dict.fromkeys(("qint8", "quint8", "qcint8", "qdint8", "qpint8"), "int8") | dict.fromkeys(
    ("qcint4", "qbint4"), "int4"
)


def partitioner() -> Any:
    """XNNPACK's, which takes integer padding too: its kernel knows zero points, its rules leave it in float."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import ConstantPadConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class PadConfig(ConstantPadConfig):  # type: ignore[misc]
        """As the one it replaces, for codes too."""

        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    rules = [PadConfig if rule is ConstantPadConfig else rule for rule in ALL_PARTITIONER_CONFIGS]
    return XnnpackPartitioner(configs=rules)


def count_operators(path: Path) -> dict[str, int]:
    """By operator and number format: "Gemm:int8" in XNNPACK, "embedding:portable" outside. Raises InputError when the file is
    no program.
    """
    from executorch.exir._serialize import _deserialize_pte_binary

    try:
        with mute():
            counts = _count(_deserialize_pte_binary(path.read_bytes()).program)
    except Exception as error:  # flatc and the parser raise types of their own
        raise InputError(f"{path} is no ExecuTorch program: {(str(error).splitlines() or ['?'])[0][:200]}") from error
    return dict(sorted(counts.items()))


def _count(program: Any) -> Counter[str]:
    (plan,) = program.execution_plan
    counts: Counter[str] = Counter()
    for instruction in (one.instr_args for chain in plan.chains for one in chain.instructions):
        if hasattr(instruction, "op_index"):
            operator = plan.operators[instruction.op_index]
            counts[f"{operator.name.rpartition('::')[2]}:portable"] += 1
        elif hasattr(instruction, "delegate_index"):
            delegate = plan.delegates[instruction.delegate_index]
            counts.update(_count_delegate(delegate.id, program.backend_delegate_data[delegate.processed.index].data))
    return counts


def _count_delegate(name: str, data: bytes) -> Counter[str]:
    if name != _XNNPACK:
        return Counter({f"{name}:delegate": 1})
    graph = _xnnpack_graph(data)
    tensors = [value["xvalue_union"] for value in graph["xvalues"]]
    tensors = [tensor.get("tensor_value", tensor) for tensor in tensors]
    formats = {tensor["id_out"]: tensor["datatype"].removeprefix("xnn_datatype_") for tensor in tensors}
    return Counter(_name(node, formats) for node in graph["xnodes"])


def _name(node: dict[str, Any], formats: dict[int, str]) -> str:
    """The number format is that of the weights, where activations are codes too; else that of the first input."""
    kind, facts = node["xnode_union_type"].removeprefix("XNN"), node["xnode_union"]
    if kind in _WITHOUT_WORK:
        return _WITHOUT_WORK[kind]
    if kind == "Convert":
        return "QuantizeLinear" if formats[facts["output_id"]] in _FORMATS else "DequantizeLinear"
    read = formats[next(facts[name] for name in ("input1_id", "input_id") if name in facts)]
    weights = formats[facts["filter_id"]] if "filter_id" in facts else read
    return f"{_NAMES.get(kind, kind)}:{_FORMATS.get(weights, weights) if read in _FORMATS else read}"


def _xnnpack_graph(data: bytes) -> dict[str, Any]:
    """XNNPACK's graph, read by the compiler of its own schema, which the package brings."""
    import executorch.backends.xnnpack.serialization as schemas
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    start, size = (int.from_bytes(data[place : place + 4], "little") for place in _PLACES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.bin"
        file.write_bytes(data[start : start + size])
        _flatc_decompile(folder, str(Path(schemas.__path__[0]) / "schema.fbs"), str(file), ["--raw-binary"])
        # JSON has no infinity, which stands where a clip is open
        text = re.sub(rb":\s*-?(inf|nan)\b", b": null", file.with_suffix(".json").read_bytes())
        return dict(json.loads(text))
