"""Our PT2E quantizer: the plan and the known ranges become annotations of the graph; convert_pt2e then makes them nodes.

Ranges are measured beforehand on the float graph (observe.py), so preparing, converting and re-planning cost no forward pass:
each "observer" placed here already knows its grid and only writes its quantize and dequantize nodes.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

from lighten.analyze.trace import set_tensor
from lighten.core.graph import Graph
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.engine.quiet import quiet
from lighten.methods.quantize import sites
from lighten.ops.grids import Affine

quantized = torch.ops.quantized_decomposed
ANNOTATION = "quantization_annotation"
_MANY_ROWS = ("conv1d", "conv2d", "conv3d", "linear")
Write = Callable[[fx.GraphModule, fx.Node], fx.Node]


@dataclass(frozen=True)
class Rows:
    """A weight's codes. codes: int8, the weight's shape. scale_O: one a slice of dimension `dim`."""

    codes: Tensor
    scale_O: Tensor
    dim: int = 0


def insert(graph: Graph, plan: Plan, *, grids: Mapping[tuple[str, int], Affine], rows: Mapping[str, Rows]) -> fx.GraphModule:
    """A copy of the graph with quantize and dequantize nodes where the plan asks for integers in computation.

    grids: for each tensor and width in `sites.widths`. rows: codes of each quantized weight, by parameter name.
    """
    with quiet():
        module = prepare_pt2e(copy.deepcopy(graph.module), PlanQuantizer(graph, plan, grids, rows))
        converted: fx.GraphModule = convert_pt2e(module, fold_quantize=False)
    return converted


class PlanQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates exactly the sites the plan names."""

    def __init__(self, graph: Graph, plan: Plan, grids: Mapping[tuple[str, int], Affine], rows: Mapping[str, Rows]) -> None:
        super().__init__()
        self._graph, self._plan, self._grids, self._rows = graph, plan, grids, rows
        self._widths = sites.widths(graph, plan)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Writes a QuantizationAnnotation on every node that reads or makes an integer tensor."""
        nodes = {node.name: node for node in model.graph.nodes}
        for site in self._graph.sites:
            spec = self._plan.spec(site.name)
            if type(spec) is not Quant or spec.activations is None:
                continue
            self._annotate_activations(nodes[site.node], site.kind, spec)
            if spec.weights is not None and site.kind in _MANY_ROWS:
                weight = nodes[site.node].args[1]
                name = str(weight.target)
                _annotation(nodes[site.node]).input_qspec_map[weight] = self._weight(name)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to add: `sites.check` has refused what does not fit."""

    def _annotate_activations(self, node: fx.Node, kind: str, spec: Quant) -> None:
        for edge in sites.inputs(node, kind):
            _annotation(edge.reader).input_qspec_map[edge.producer] = self._activation(edge.producer.name, spec)
        end = None if spec.dynamic else sites.output(node, kind)
        if end is not None:
            _annotation(end).output_qspec = self._static(end.name, self._widths[end.name][0])

    def _activation(self, tensor: str, spec: Quant) -> QuantizationSpec:
        if spec.dynamic:
            return _spec(tensor, _write_dynamic, torch.uint8)
        return self._static(tensor, spec.activations or sites.FULL_BITS)

    def _static(self, tensor: str, bits: int) -> QuantizationSpec:
        grid = self._grids[tensor, bits]
        name = tensor if bits == self._widths[tensor][0] else f"{tensor} in {bits} bits"
        return _spec(name, lambda model, value: _write_static(model, value, grid), torch.uint8, most=grid.high)

    def _weight(self, name: str) -> QuantizationSpec:
        return _spec(name, lambda model, _: write_rows(model, name, self._rows[name]), torch.int8)


def _annotation(node: fx.Node) -> Any:
    return node.meta.setdefault(ANNOTATION, QuantizationAnnotation(_annotated=True))


class _Constructor:
    """What PT2E calls to make an "observer" for a tensor: it makes a `_Writer`.

    Equal for equal tensors, so that PT2E places one quantize node per tensor and not one per reader.
    """

    __name__ = "Constructor"

    def __init__(self, tensor: str, write: Write) -> None:
        self.tensor, self.write = tensor, write

    def with_args(self, **_: Any) -> Callable[[], "_Writer"]:
        return lambda: _Writer(self.write)

    def __eq__(self, other: object) -> bool:
        return type(other) is _Constructor and other.tensor == self.tensor

    def __hash__(self) -> int:
        return hash(self.tensor)

    def __deepcopy__(self, memo: Any) -> "_Constructor":
        return self  # PT2E copies every spec; the codes behind `write` must not be


def _spec(tensor: str, write: Write, dtype: torch.dtype, *, most: int | None = None) -> QuantizationSpec:
    """most: the greatest code: PT2E takes two specs of a tensor for one unless they differ in dtype or in this."""
    return QuantizationSpec(dtype=dtype, observer_or_fake_quant_ctr=_Constructor(tensor, write), quant_max=most)


def _write_static(model: fx.GraphModule, value: fx.Node, grid: Affine) -> fx.Node:
    facts = (grid.scale, grid.zero, grid.low, grid.high, torch.uint8)
    codes = model.graph.call_function(quantized.quantize_per_tensor.default, (value, *facts))
    return model.graph.call_function(quantized.dequantize_per_tensor.default, (codes, *facts))


def _write_dynamic(model: fx.GraphModule, value: fx.Node) -> fx.Node:
    call = model.graph.call_function
    chosen = call(quantized.choose_qparams.tensor, (value, 0, 255, torch.finfo(torch.float32).eps, torch.uint8))
    facts = (call(operator.getitem, (chosen, 0)), call(operator.getitem, (chosen, 1)), 0, 255, torch.uint8)
    codes = call(quantized.quantize_per_tensor.tensor, (value, *facts))
    return call(quantized.dequantize_per_tensor.tensor, (codes, *facts))


def write_rows(model: fx.GraphModule, name: str, rows: Rows) -> fx.Node:
    """Stores codes, scales and zero points beside `name` and returns the node that dequantizes them (at the insertion
    point).
    """
    zero_O = torch.zeros_like(rows.scale_O, dtype=torch.int64)
    parts = {"codes": rows.codes, "scale": rows.scale_O, "zero": zero_O}
    for part, value in parts.items():
        set_tensor(model, f"{name}_{part}", value)
    nodes = [model.graph.get_attr(f"{name}_{part}") for part in parts]
    return model.graph.call_function(quantized.dequantize_per_channel.default, (*nodes, rows.dim, -127, 127, torch.int8))


class _Writer(ObserverBase):  # type: ignore[misc]
    """What PT2E takes for an observer; at conversion it writes its nodes and disappears."""

    def __init__(self, write: Write) -> None:
        super().__init__(dtype=torch.uint8, is_dynamic=False)
        self._write = write

    def forward(self, x: Tensor) -> Tensor:
        """Never called: ranges are known before PT2E sees the graph."""
        return x

    def calculate_qparams(self) -> None:
        """Unused: `convert` writes the nodes itself."""

    def convert(self, model: fx.GraphModule, node: fx.Node) -> None:
        """Replaces the observer's node by the nodes of its writer."""
        with model.graph.inserting_before(node):
            written = self._write(model, cast(fx.Node, node.args[0]))
        node.replace_all_uses_with(written)
        model.graph.erase_node(node)
