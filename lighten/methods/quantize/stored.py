"""Weights in few bits, computed in float: what a spec makes of a weight, and how the graph reads it back.

Three forms, each a few plain tensors beside the weight's name and a node or two that give the weight again:

    uniform   scale * (code - zero)     Quant: groups of columns, or rows, with a scale and a zero point each
    looked    scale * values[code]      Float formats of at most 8 bits, and codebooks (scale 1)
    half      the rounded weight        Float in fp16 or bf16

Scales are rounded to float16 before the codes are chosen, wherever that type can hold them: the file keeps them in 16 bits.
What a runtime computes on these bits and what it only stores is the exporter's business.

Dimension key: O output channels (rows of a weight seen as a matrix), K everything else, G groups of a row, R = O G rows of
values that share a scale, M values of such a row, P parts that share a codebook, N weights of a part, V values of a codebook.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.graph import Graph, Site
from lighten.core.plan import Plan
from lighten.core.spec import Codebook, Float, Quant, Spec
from lighten.ops import codebooks, floats, grids
from lighten.ops.hqq import hqq

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
FILE_BITS = (2, 4, 8)
"""Widths of an integer in the file; ONNX has no others."""


@dataclass(frozen=True)
class Stored:
    """What the file holds of one weight. tensors: by suffix of their name; `codes` and `zero` are integers of `bits` bits in
    the file, all others floats. kind: "uniform", "looked" or "half". tiles: parts down and across, and the rows and columns of
    each, where parts of a matrix have a codebook each.
    """

    kind: str
    bits: int
    tensors: Mapping[str, Tensor]
    value_OK: Tensor
    tiles: tuple[int, int, int, int] | None = None

    @property
    def stored_bytes(self) -> int:
        """Of codes, zero points, scales and tables as the file keeps them, without names."""
        return sum(self._bytes(name, value) for name, value in self.tensors.items())

    def facts(self, rows_OK: Tensor) -> dict[str, float]:
        """For the report. weight_sqnr_db: of the weight, in decibels. bits_per_weight: everything stored, over the weights."""
        noise = (self.value_OK - rows_OK).square().sum().clamp_min(1e-30)
        return {
            "weight_sqnr_db": float(10 * torch.log10(rows_OK.square().sum() / noise)),
            "stored_bytes": self.stored_bytes,
            "bits_per_weight": 8 * self.stored_bytes / rows_OK.numel(),
        }

    def _bytes(self, name: str, value: Tensor) -> int:
        if name in ("codes", "zero"):
            return 0 if name == "zero" and not value.any() else (value.numel() * self.bits + 7) // 8
        return value.numel() * (1 if is_power_of_two(value) else 2 if self.kind == "half" or _fits_half(value) else 4)


def keeps(spec: Spec) -> bool:
    """True for the specs that are this file's alone: int8 and few bits with a scale a row are also stored by store.py."""
    if type(spec) is Quant:
        return spec.activations is None and (spec.group is not None or not spec.symmetric or spec.weights == 1)
    return type(spec) in (Float, Codebook)


def store_weights(
    module: fx.GraphModule,
    graph: Graph,
    plan: Plan,
    *,
    which: Callable[[Spec], bool] = keeps,
    sparse: Collection[str] = (),
    **how: Any,
) -> dict[str, dict[str, float]]:
    """Replaces, in place, the weights of the sites whose spec is one of `which`; gives facts by site. sparse: names of weights
    whose zeros stay zeros. how: as of `fit`.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    facts: dict[str, dict[str, float]] = {}
    written: dict[str, Spec] = {}
    for site in graph.sites:
        spec = plan.spec(site.name)
        for name in site.weights if which(spec) else ():
            rows_OK = _matrix(tensor_of(graph.module, name).detach(), site)
            stored = fit(rows_OK, spec, keep_zeros=name in sparse, **how)
            # a weight that two sites share may have a spec from each
            own = name if written.setdefault(name, spec) == spec else f"{name}_{site.node}"
            _store_site(module, nodes[site.node], site, name=name, own=own, stored=stored)
            facts[site.name] = stored.facts(rows_OK)
    module.graph.eliminate_dead_code()
    module.recompile()
    return facts


def _matrix(weight: Tensor, site: Site) -> Tensor:
    """The weight as O x K."""
    dim = _outputs_dim(site)
    return weight.transpose(0, dim).reshape(weight.shape[dim], -1).float()


def _shaped(value_OK: Tensor, like: Tensor, site: Site) -> Tensor:
    """The reverse of `_matrix`."""
    dim = _outputs_dim(site)
    return value_OK.reshape(like.transpose(0, dim).shape).transpose(0, dim)


def _outputs_dim(site: Site) -> int:
    return 1 if site.kind.startswith("conv_transpose") else 0


def fit(rows_OK: Tensor, spec: Spec, *, ranges: str = "mse", without_data: bool = False, keep_zeros: bool = False) -> Stored:
    """The weight in the form of its spec, rounded to nearest. ranges: "minmax" or "mse", of uniform grids. without_data: affine
    grids by HQQ. keep_zeros: of a sparse weight; only codebooks need to be told. Raises ValueError where columns do not split.
    """
    if type(spec) is Quant:
        return _uniform(rows_OK, spec, ranges=ranges, without_data=without_data)
    if type(spec) is Codebook:
        return _codebook(rows_OK, spec, keep_zeros)
    if type(spec) is Float and spec.format in floats.HALVES:
        half_OK = floats.half(rows_OK, spec.format).float()
        return Stored("half", 16, {"half": half_OK}, half_OK)
    if type(spec) is Float:
        return _float(rows_OK, spec)
    raise ValueError(f"{spec} stores no weight.")


def _uniform(rows_OK: Tensor, spec: Quant, *, ranges: str, without_data: bool) -> Stored:
    bits = spec.weights or 8
    if without_data and not spec.symmetric:
        _, grid = hqq(rows_OK, bits=bits, group=spec.group)
    else:
        grid = grids.fit(rows_OK, bits=bits, group=spec.group, symmetric=spec.symmetric, ranges=ranges)
    grid = in_half(grid)
    codes_OK = grids.encode(rows_OK, grid)
    value_OK = grids.decode(codes_OK, grid)
    codes, scale, zero = codes_OK.reshape(grid.scale.numel(), -1), grid.scale.flatten(), grid.zero.flatten()
    if bits == 1:
        # {-s, s} as codes -1 and 1 of half the scale about a zero point that is a whole number
        codes, scale, zero = 2 * codes + 1, scale / 2, torch.zeros_like(zero)
    return Stored("uniform", file_bits(bits), {"codes": codes, "scale": scale, "zero": zero.to(torch.int64)}, value_OK)


def _codebook(rows_OK: Tensor, spec: Codebook, keep_zeros: bool) -> Stored:
    book = codebooks.fit(rows_OK, bits=spec.bits, rows=spec.rows, columns=spec.columns, keep_zero=keep_zeros)
    if _fits_half(book.values_PV, exactly=False):
        book = replace(book, values_PV=_as_half(book.values_PV))
    codes_OK = codebooks.encode(rows_OK, book)
    down, across = len(rows_OK) // book.rows, rows_OK.shape[1] // book.columns
    codes_PN = codes_OK.reshape(down, book.rows, across, book.columns).transpose(1, 2).reshape(down * across, -1)
    tensors = {"codes": codes_PN, "values": book.values_PV.float()}
    tiles = (down, across, book.rows, book.columns)
    return Stored("looked", file_bits(book.bits), tensors, codebooks.decode(codes_OK, book), tiles)


def _float(rows_OK: Tensor, spec: Float) -> Stored:
    blocks = floats.fit(rows_OK, format=spec.format, block=spec.block, scale=spec.scale)
    if spec.scale != "mx" and _fits_half(blocks.scale, exactly=False):
        blocks = replace(blocks, scale=_as_half(blocks.scale))
    codes_OK = floats.encode(rows_OK, blocks)
    # a pattern that is no finite number is never a code
    values_1V = torch.tensor(floats.FORMATS[spec.format].values).nan_to_num(0.0)[None]
    tensors = {"codes": codes_OK.reshape(1, -1), "values": values_1V, "scale": blocks.scale.float().reshape(-1, 1)}
    return Stored("looked", file_bits(blocks.bits), tensors, floats.decode(codes_OK, blocks))


def file_bits(bits: int) -> int:
    """The narrowest width of the file that holds codes of `bits` bits."""
    return next(width for width in FILE_BITS if bits <= width)


def in_half(grid: grids.Grid) -> grids.Grid:
    """The grid with scales rounded to float16, held in float32, where none of them leaves that type's normal numbers."""
    return replace(grid, scale=_as_half(grid.scale)) if _fits_half(grid.scale, exactly=False) else grid


def is_power_of_two(value: Tensor) -> bool:
    """True where a byte of exponent says each value (OCP MX, E8M0)."""
    return bool((torch.frexp(value).mantissa == 0.5).all())


def _fits_half(value: Tensor, *, exactly: bool = True) -> bool:
    limits, size = torch.finfo(torch.float16), value.abs()
    # a group of zeros has the smallest scale there is; any other scale for it is as good
    inside = (size <= limits.max) & ((size >= limits.tiny) | (size <= grids.SMALLEST_SCALE))
    return bool(inside.all()) and (not exactly or torch.equal(value, value.half().float()))


def _as_half(value: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float16).tiny
    return torch.where(value.abs() < tiny, tiny * (value != 0), value).half().float()


def _store_site(module: fx.GraphModule, node: fx.Node, site: Site, *, name: str, own: str, stored: Stored) -> None:
    if site.kind == "embedding" and stored.kind == "uniform":
        _look_up_rows(module, node, own, stored)
        return
    tensors = dict(stored.tensors)
    if stored.kind == "half":
        tensors["half"] = _shaped(tensors["half"], tensor_of(module, name), site)
    for suffix, value in tensors.items():
        set_tensor(module, f"{own}_{suffix}", value.contiguous())
    read = [argument for argument in node.all_input_nodes if argument.target == name]
    with module.graph.inserting_before(node):
        written = _weight(module, own, stored, like=tensor_of(module, name), site=site)
    for argument in read:
        node.replace_input_with(argument, written)


def _weight(module: fx.GraphModule, own: str, stored: Stored, *, like: Tensor, site: Site) -> fx.Node:
    """The nodes that give the weight in its own shape."""
    call = module.graph.call_function
    part = {suffix: module.graph.get_attr(f"{own}_{suffix}") for suffix in stored.tensors}
    if stored.kind == "uniform":
        facts = (part["codes"], part["scale"], part["zero"], 0, -128, 127, torch.int8)
        value = call(quantized.dequantize_per_channel.default, facts)
    elif stored.kind == "looked":
        value = call(aten.gather.default, (part["values"], 1, call(aten.to.dtype, (part["codes"], torch.int64))))
        if "scale" in part:
            value = call(aten.reshape.default, (value, [len(stored.tensors["scale"]), -1]))
            value = call(aten.mul.Tensor, (value, part["scale"]))
        if stored.tiles is not None and stored.tiles[1] > 1:
            value = call(aten.transpose.int, (call(aten.reshape.default, (value, list(stored.tiles))), 1, 2))
    else:
        return part["half"]
    dim = _outputs_dim(site)
    shape = list(like.transpose(0, dim).shape)
    value = call(aten.reshape.default, (value, shape))
    return call(aten.transpose.int, (value, 0, 1)) if dim else value


def _look_up_rows(module: fx.GraphModule, node: fx.Node, own: str, stored: Stored) -> None:
    """table[i] = scale[i] * (codes[i] - zero[i]): only the rows that are asked for are ever turned into floats."""
    call, rows = module.graph.call_function, len(stored.value_OK)
    groups = stored.tensors["scale"].numel() // rows
    parts = {
        "codes": stored.tensors["codes"].reshape(rows, groups, -1),
        "scale": stored.tensors["scale"].reshape(rows, groups, 1),
    }
    if stored.tensors["zero"].any():
        parts["zero"] = stored.tensors["zero"].to(torch.int8).reshape(rows, groups, 1)
    found: dict[str, fx.Node] = {}
    with module.graph.inserting_before(node):
        for suffix, value in parts.items():
            set_tensor(module, f"{own}_rows_{suffix}", value.contiguous())
            row = call(aten.index.Tensor, (module.graph.get_attr(f"{own}_rows_{suffix}"), [node.args[1]]))
            found[suffix] = row if suffix == "scale" else call(aten.to.dtype, (row, torch.float32))
        steps = call(aten.sub.Tensor, (found["codes"], found["zero"])) if "zero" in found else found["codes"]
        looked_up = call(aten.flatten.using_ints, (call(aten.mul.Tensor, (steps, found["scale"])), -2, -1))
    node.replace_all_uses_with(looked_up)
    module.graph.erase_node(node)
