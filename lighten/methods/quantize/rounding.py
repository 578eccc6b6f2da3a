"""Weights of few bits are not rounded to the nearest codes but to those that keep each layer's outputs.

One pass of the quantized network beside the float one, layer by layer. Each layer sees inputs that carry the errors of the
layers before it; the weights to round are those that come nearest to the float layer's outputs on these inputs, and what
rounding them costs is known from the inputs' second moments alone:

    E ||W x - Q x'||^2 = E ||(W* - Q) x'||^2 + constant,    W* = E[W x x'^T] E[x' x'^T]^-1

This is the asymmetric calibration of GPTAQ (arXiv:2504.02692) with any solver of ops for the second step. A bias takes up
what is left of the mean.

Dimension key: G groups of a convolution, N sampled rows, J inputs and T outputs of a group, O outputs (G T).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.rows import View, view_of
from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.graph import Graph, Site
from lighten.core.spec import Quant
from lighten.engine.beside import Beside
from lighten.methods.quantize.bias import fake_quantized
from lighten.methods.quantize.stored import in_half, keeps
from lighten.ops.adaround import adaround
from lighten.ops.anneal import anneal
from lighten.ops.gptq import gptq
from lighten.ops.grids import Grid, decode, fit
from lighten.ops.obs import refit_masked
from lighten.ops.reconstruct import accumulate, empty_moments, matching_bias, per_row, refit_drifted
from lighten.ops.rounding import best_codes, refit_scales

Solver = Callable[..., Tensor]
"""(w_OJ, gram_GJJ, grid, held_OK=None) -> codes_OJ, int8; where held_OK is True they stand for zero."""


def _second_order(w_OJ: Tensor, gram_GJJ: Tensor, grid: Grid, *, held_OK: Tensor | None = None) -> Tensor:
    return best_codes([gptq(w_OJ, gram_GJJ, grid, held_OK=held_OK)], w_OJ, gram_GJJ, grid=grid)


SOLVERS: dict[str, Solver] = {"gptq": _second_order, "adaround": adaround, "anneal": anneal}


@dataclass(frozen=True)
class Rounding:
    """solver: of SOLVERS. specs: by site. damp: of the first least squares, fraction of the mean diagonal. seed: of rows.
    follows_drift: False rounds the weights as they are, though their inputs carry errors: dynamic ranges clip nothing, and
    what the first least squares makes up for is then the noise of the calibration texts alone (it cost a sentence encoder
    half as much error again). real: of padded texts, texts x tokens, True for a token.
    sparse: names of weights whose zeros stay zeros.
    """

    solver: str
    specs: Mapping[str, Quant]
    damp: float = 0.01
    seed: int = 0
    follows_drift: bool = True
    real: Tensor | None = None
    sparse: Collection[str] = ()


@torch.no_grad()
def round_layers(quantized: fx.GraphModule, graph: Graph, rounding: Rounding, *, inputs: tuple[Tensor, ...]) -> None:
    """Changes codes, scales and biases of the sites in `rounding.specs` in `quantized`, in place.

    quantized: has codes, scales and nodes for every one of these sites; its other nodes are named as those of `graph`.
    inputs: calibration examples, one batch. Sites that are no linear layer or convolution stay as they are.
    """
    walk = _Walk(quantized, graph, rounding)
    walk.beside.begin(inputs)
    walk.run(*inputs)


class _Walk(fx.Interpreter):
    """Runs the quantized network and rounds each layer before its output goes on."""

    def __init__(self, quantized: fx.GraphModule, graph: Graph, rounding: Rounding) -> None:
        super().__init__(quantized)
        self.beside = Beside(graph.module)
        self._quantized, self._float, self._rounding = quantized, graph.module, rounding
        self._nodes = {node.name: node for node in graph.module.graph.nodes}
        self._sites = {site.node: site for site in graph.sites if site.name in rounding.specs}

    def run_node(self, n: fx.Node) -> Any:
        site = self._sites.get(n.name)
        view = None if site is None else view_of(self._nodes[n.name])
        result = fake_quantized(self, n) if site is None or view is None else self._round(n, site, view)
        if n.name in self._nodes and n.op != "output":
            self.beside.value(n.name)  # keeps up where nothing is rounded
            self.beside.pass_by(n.name)
        return result

    def _round(self, n: fx.Node, site: Site, view: View) -> Tensor:
        given: dict[str, Any] = self.map_nodes_to_values(bound_arguments(n), n)  # type: ignore[assignment]
        target = self.beside.value(n.name)
        rows = view.sample(target.numel() // target.shape[view.dim], given, self._rounding.seed, real=self._rounding.real)
        target_GNT = view.grouped(target.movedim(view.dim, -1).flatten(0, -2)[rows.chosen_N].float())
        layer = view.layer(tensor_of(self._float, site.weights[0]).detach(), given["bias"], has_bias=given["bias"] is not None)
        moments = empty_moments(layer.w_GTJ.shape[2], layer.w_GTJ.shape[1], lead=(view.groups,))
        accumulate(moments, rows.x_GNJ, target_GNT - (0.0 if given["bias"] is None else layer.bias_GT[:, None]))
        cross_GTJ, gram_GJJ = per_row(moments, centred=given["bias"] is not None)
        wanted_OJ = layer.w_GTJ.flatten(0, 1)
        held_OJ = wanted_OJ == 0 if site.weights[0] in self._rounding.sparse else None
        if self._rounding.follows_drift and held_OJ is not None:
            wanted_OJ = refit_masked(wanted_OJ, cross_GTJ.flatten(0, 1), gram_GJJ, mask_OK=~held_OJ, damp=self._rounding.damp)
        elif self._rounding.follows_drift:
            wanted_OJ = refit_drifted(layer.w_GTJ, cross_GTJ, gram_GJJ, damp=self._rounding.damp).flatten(0, 1)
        codes_OJ, grid = self._solve(wanted_OJ, gram_GJJ, self._rounding.specs[site.name], held_OJ)
        w_GTJ = decode(codes_OJ, grid).reshape(layer.w_GTJ.shape)
        self._write(site, codes_OJ, grid)
        arguments = {**given, "weight": view.weight_from(w_GTJ, given["weight"])}
        if site.bias is not None:
            mean_GT = moments.sum_T / moments.count + layer.bias_GT
            arguments["bias"] = matching_bias(mean_GT, w_GTJ, moments.sum_J / moments.count).flatten().to(given["bias"])
            set_tensor(self._quantized, site.bias, arguments["bias"])
        return n.target(**arguments)  # type: ignore[operator, no-any-return]

    def _solve(self, w_OJ: Tensor, gram_GJJ: Tensor, spec: Quant, held_OJ: Tensor | None) -> tuple[Tensor, Grid]:
        """The grid is that of the least squared error of the weights; once the codes are known, its scales follow them. Groups
        have so many of them that the file keeps 16 bits of each.
        """
        grid = fit(w_OJ, bits=spec.weights or 8, group=spec.group, symmetric=spec.symmetric, ranges="mse")
        codes_OJ = SOLVERS[self._rounding.solver](w_OJ, gram_GJJ, grid, held_OK=held_OJ)
        grid = refit_scales(w_OJ, gram_GJJ, codes_OJ, grid=grid)
        return codes_OJ, in_half(grid) if keeps(spec) else grid

    def _write(self, site: Site, codes_OJ: Tensor, grid: Grid) -> None:
        for part, value in (("codes", codes_OJ), ("scale", grid.scale), ("zero", grid.zero)):
            name = f"{site.weights[0]}_{part}"
            old = tensor_of(self._quantized, name)
            set_tensor(self._quantized, name, value.reshape(old.shape).to(old.dtype).contiguous())
