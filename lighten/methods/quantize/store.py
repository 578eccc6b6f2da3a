"""Weights stored in int8 and computed in float: embeddings, recurrent cells, and any layer whose activations stay in float.

Dimension key: R rows of a table, D its width.
"""

from collections.abc import Mapping

import torch
from torch import fx

from lighten.analyze.trace import set_tensor
from lighten.core.graph import Graph, Site
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.methods.quantize.annotate import Rows, write_rows
from lighten.methods.quantize.stored import keeps

aten = torch.ops.aten


def store(module: fx.GraphModule, graph: Graph, plan: Plan, *, rows: Mapping[str, Rows]) -> None:
    """Replaces, in place, the weights of every weights-only site by their codes."""
    nodes = {node.name: node for node in module.graph.nodes}
    for site in graph.sites:
        spec = plan.spec(site.name)
        if type(spec) is Quant and spec.activations is None and not keeps(spec):
            _store_site(module, nodes[site.node], site, rows)
    module.graph.eliminate_dead_code()
    module.recompile()


def _store_site(module: fx.GraphModule, node: fx.Node, site: Site, rows: Mapping[str, Rows]) -> None:
    if site.kind == "embedding":
        _look_up_codes(module, node, site.weights[0], rows[site.weights[0]])
        return
    for name in site.weights:
        weights = [argument for argument in node.all_input_nodes if argument.target == name]
        with module.graph.inserting_before(node):
            written = write_rows(module, name, rows[name])
        for weight in weights:
            node.replace_input_with(weight, written)


def _look_up_codes(module: fx.GraphModule, node: fx.Node, name: str, rows: Rows) -> None:
    """table[i] = codes[i] * scale[i]: only the rows that are asked for are ever turned into floats."""
    set_tensor(module, f"{name}_codes", rows.codes)
    set_tensor(module, f"{name}_row_scale", rows.scale_O[:, None].clone())
    call, get = module.graph.call_function, module.graph.get_attr
    with module.graph.inserting_before(node):
        codes = call(aten.embedding.default, (get(f"{name}_codes"), node.args[1]))
        scale = call(aten.embedding.default, (get(f"{name}_row_scale"), node.args[1]))
        value = call(aten.mul.Tensor, (call(aten.to.dtype, (codes, torch.float32)), scale))
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)
