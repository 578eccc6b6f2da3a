"""Repair without training: every layer behind a cut is refitted so that the intact network's activations come back.

One pass through both networks side by side. Each layer of the cut one sees inputs that carry the cuts and repairs before it,
and is fitted to what the intact one makes of its own inputs (He et al. 2017, arXiv:1707.06168, eq. 5; Luo et al. 2017,
arXiv:1707.06342). Not to the layer's bare output: the batch normalization, the sum with a residual stream that has drifted, and
the ReLU behind it count too, so a branch repairs the stream that it is added to. A refit that does not lower the error on
held-out examples is not made.

Dimension key: N sampled rows (tokens, or output positions of a convolution), G groups, J inputs and T outputs of a group, P
kept outputs, C channels.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.analyze.rows import View, view_of
from lighten.analyze.trace import tensor_of
from lighten.core.data import Data
from lighten.core.run import Run
from lighten.engine.beside import Beside
from lighten.engine.renorm import reestimate
from lighten.ops.reconstruct import Affine, Goal, refit_chosen

aten = torch.ops.aten
_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
_DROPOUTS = (aten.dropout.default, aten.dropout_.default)
_CLAMPS: dict[Any, tuple[float, float]] = {
    aten.relu.default: (0.0, float("inf")),
    aten.relu_.default: (0.0, float("inf")),
    aten.relu6.default: (0.0, 6.0),
    aten.relu6_.default: (0.0, 6.0),
}
_UNBOUNDED = (float("-inf"), float("inf"))
_BOUNDED = (aten.hardtanh.default, aten.hardtanh_.default)
_HELD = 4  # one in so many rows, the last ones, so whole examples, chooses between ridges
_FAINT = 1e-3  # of the median slope of a normalization
NORMS = "norms"
_NORM_BATCH = 128  # the statistics behind the first norm come nearer with larger batches
_NOISE = 1e-11  # of the target's mean square: the rounding of float32


def refresh_norms(smaller: fx.GraphModule, data: Data, *, samples: int, run: Run) -> None:
    """All that `repair: norms` does, in place: batch norms take their statistics anew from calibration examples
    (engine.renorm). A network without batch norms stays as it is.
    """
    count = min(samples, len(data.calibration))
    batches = data.calibration.batches(_NORM_BATCH, count)
    reestimate(smaller, batches, total=-(-count // _NORM_BATCH), progress=run.progress)


@torch.no_grad()
def repair(
    intact: fx.GraphModule,
    cut: fx.GraphModule,
    kept: Callable[..., Tensor],
    *,
    inputs: tuple[Tensor, ...],
    seed: int,
    sparse: Collection[str] = (),
) -> None:
    """Changes the weights of `cut`, whose nodes are named as those of `intact`, in place.

    kept: (node, dim) -> positions that stay, `analyze.cut.kept_positions` of what was cut. inputs: calibration examples, one
    batch. sparse: names of weights whose zeros are a mask, which least squares would fill: these, recurrent layers and weights
    with more than one use stay as they are. Memory: the live activations of both networks, and 2^25 values of a layer's inputs
    three times. Time: one run of both networks, and a Gram matrix of at most 8,192 rows a layer.
    """
    walk = _Walk(cut, intact, kept, seed=seed, sparse=sparse)
    walk.run_beside(inputs)


@dataclass(frozen=True)
class _Tail:
    """What follows a layer up to its activation: batch normalization, sums with values that are known, a clamp."""

    end: fx.Node
    norm: fx.Node | None = None
    added: tuple[fx.Node, ...] = ()
    clamp: tuple[float, float] = _UNBOUNDED


class _Walk(fx.Interpreter):
    """Runs the cut network and mends each layer before its output goes on. kept: positions, by node name and dimension."""

    def __init__(
        self, cut: fx.GraphModule, intact: fx.GraphModule, kept: Callable[..., Tensor], *, seed: int, sparse: Collection[str]
    ) -> None:
        super().__init__(cut)
        self._graph, self._intact, self._kept, self._seed, self._sparse = cut, Beside(intact), kept, seed, sparse
        self._read = {node.name: {source.name for source in node.all_input_nodes} for node in intact.graph.nodes}
        self._uses = _uses(cut)
        self._settled: set[fx.Node] = set()

    def run_beside(self, inputs: tuple[Tensor, ...]) -> None:
        self._intact.begin(inputs)
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        view = view_of(n) if n.name in self._read else None
        is_sparse = view is not None and view.weight in self._sparse
        if view is not None and not is_sparse and n not in self._settled and self._uses[_memory(self._graph, view.weight)] == 1:
            self._mend(view)
        if n.name in self._read and n.op != "output":
            self._intact.value(n.name)  # keeps up where nothing is mended
            self._intact.pass_by(n.name)
        return super().run_node(n)

    def _mend(self, view: View) -> None:
        n = view.node
        given: Any = self.map_nodes_to_values(bound_arguments(n), n)
        whole = self._intact.value(n.name)
        num_rows = whole.numel() // whole.shape[view.dim]
        rows = view.sample(num_rows, given, self._seed)
        tail = self._tail(view, num_rows)
        if tail.norm is not None:
            self._settled.add(tail.norm)
        goal = self._goal(view, tail, rows.chosen_N)
        layer = view.layer(given["weight"], given["bias"], has_bias=given["bias"] is not None or tail.norm is not None)
        is_held_N = rows.chosen_N * _HELD // num_rows == _HELD - 1
        error, noise = goal.error(layer(rows.x_GNJ)), _NOISE * float(goal.target_GNT.square().mean())
        if error > noise and is_held_N.any() and not is_held_N.all():
            self._write(view, tail, refit_chosen(layer, rows.x_GNJ, goal, is_held_N=is_held_N), given)

    def _write(self, view: View, tail: _Tail, mended: Affine, given: Mapping[str, Any]) -> None:
        given["weight"].copy_(view.weight_from(mended.w_GTJ, given["weight"]))
        if given["bias"] is not None:
            given["bias"].copy_(mended.bias_GT.flatten())
        elif tail.norm is not None:
            # W x + b normalized about m is W x normalized about m - b
            self._value(tail.norm, "running_mean").sub_(mended.bias_GT.flatten())

    def _tail(self, view: View, num_rows: int) -> _Tail:
        """Goes on while each node stands right behind the one before, reads it in both networks, and is all that does."""
        tail, n = _Tail(view.node), _next(view.node)
        while list(tail.end.users) == [n] and tail.end.name in self._read.get(n.name, ()):
            if n.target in _DROPOUTS:
                tail = replace(tail, end=n)
            elif n.target is aten.batch_norm.default and tail.norm is None and not tail.added and view.dim == 1:
                tail = replace(tail, end=n, norm=n)
            elif (other := self._other(n, tail.end, view, num_rows)) is not None:
                tail = replace(tail, end=n, added=(*tail.added, other))
            else:
                return replace(tail, clamp=_clamp(n))
            n = _next(n)
        return tail

    def _other(self, n: fx.Node, end: fx.Node, view: View, num_rows: int) -> fx.Node | None:
        """What `n` adds to `end`, when it is known and laid out alike."""
        if n.target not in _ADDITIONS or n.kwargs or len(n.args) > 2:
            return None
        other: Any = n.args[1] if n.args[0] is end else n.args[0]
        value = self.env.get(other)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[view.dim] != view.num_channels:
            return None
        return other if value.numel() == num_rows * view.num_channels else None

    def _goal(self, view: View, tail: _Tail, chosen_N: Tensor) -> Goal:
        def rows(value: Tensor) -> Tensor:
            return value.movedim(view.dim, -1).flatten(0, -2)[chosen_N].float()

        target_NP = rows(self._intact.value(tail.end.name))[:, self._kept(node=view.node.name, dim=view.dim)]
        slope_P, shift_P = torch.ones_like(target_NP[0]), torch.zeros_like(target_NP[0])
        if tail.norm is not None:
            slope_P, shift_P = self._normalization(tail.norm)
        offset_NP = shift_P + sum((rows(self.env[node]) for node in tail.added), torch.zeros_like(target_NP))
        return Goal(view.grouped(target_NP), view.grouped(offset_NP), slope_P.reshape(view.groups, -1), *tail.clamp)

    def _normalization(self, norm: fx.Node) -> tuple[Tensor, Tensor]:
        """slope_C, shift_C of a batch normalization of fixed statistics."""
        mean_C, var_C = self._value(norm, "running_mean").float(), self._value(norm, "running_var").float()
        scale_C, bias_C = self._value(norm, "weight"), self._value(norm, "bias")
        slope_C = torch.rsqrt(var_C + bound_arguments(norm)["eps"]) * (1.0 if scale_C is None else scale_C.float())
        # a channel whose slope is nothing is asked for nothing much: what it gives is not to be seen
        faint = _FAINT * slope_C.abs().median().clamp_min(torch.finfo(slope_C.dtype).tiny)
        slope_C = torch.where(slope_C.abs() < faint, faint, slope_C)
        return slope_C, (0.0 if bias_C is None else bias_C.float()) - mean_C * slope_C

    def _value(self, n: fx.Node, name: str) -> Any:
        given = bound_arguments(n)[name]
        return None if given is None else tensor_of(self._graph, str(given.target))


def _next(n: fx.Node) -> fx.Node:
    n = n.next
    while n.op == "get_attr":
        n = n.next
    return n


def _clamp(n: fx.Node) -> tuple[float, float]:
    if n.target in _BOUNDED:
        named = bound_arguments(n)
        return float(named["min_val"]), float(named["max_val"])
    return _CLAMPS.get(n.target, _UNBOUNDED)


def _uses(module: fx.GraphModule) -> Counter[int]:
    """How many nodes read each parameter or buffer, by memory: tied ones are one."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "get_attr" for _ in node.users]
    return Counter(_memory(module, name) for name in names)


def _memory(module: fx.GraphModule, name: str) -> int:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    # a graph also holds submodules, of control flow
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0
