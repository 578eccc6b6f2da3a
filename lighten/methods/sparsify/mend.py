"""Repair of a sparse network without training: the weights that stay take over, layer by layer, what the others carried.

One pass of the sparse network beside the intact one. Each layer sees inputs that carry what was done before it, and its weights
that stay are fitted by least squares to what the intact layer makes of its own inputs; a bias takes up what is left of means.
Statistics of batch norms move by the drift between the two networks alone. Conjugate gradients for a support of each row's own
(ops.obs.refit_masked); the ridge is the one of four with the least error on held-out rows, or the layer stays as it is.

Dimension key: O outputs, K input columns of a layer, G groups of a convolution, T outputs of a group, N sampled rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lighten.analyze.flow import bound_arguments
from lighten.engine.beside import Beside
from lighten.methods.sparsify.layers import Layer
from lighten.methods.sparsify.watch import norm_behind
from lighten.ops.obs import refit_masked
from lighten.ops.reconstruct import DAMPS, Moments, accumulate, empty_moments, matching_bias, per_row

aten = torch.ops.aten
_HELD = 4  # one in so many rows, the last ones, so whole examples, chooses between ridges
_FAINTEST = 1e-30


@torch.no_grad()
def mend(
    intact: fx.GraphModule,
    sparse: fx.GraphModule,
    layers: Sequence[Layer],
    *,
    inputs: tuple[Tensor, ...],
    seed: int,
) -> None:
    """Changes weights, biases and batch-norm statistics of `sparse` in place; zeros of the layers stay zeros.

    intact: the network before, its nodes named as those of `sparse`. inputs: calibration examples, one batch.
    """
    walk = _Walk(intact, sparse, layers, seed=seed)
    walk.run_beside(inputs)


class _Walk(fx.Interpreter):
    """Runs the sparse network and mends each layer before its output goes on."""

    def __init__(self, intact: fx.GraphModule, sparse: fx.GraphModule, layers: Sequence[Layer], *, seed: int) -> None:
        super().__init__(sparse)
        self._sparse, self._intact, self._seed = sparse, Beside(intact), seed
        self._layers = {layer.view.node.name: layer for layer in layers}
        self._moved: set[str] = set()

    def run_beside(self, inputs: tuple[Tensor, ...]) -> None:
        self._intact.begin(inputs)
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._layers:
            self._mend(n, self._layers[n.name])
        elif n.target is aten.batch_norm.default:
            self._follow(n)
        result = super().run_node(n)
        if n.op not in ("output", "placeholder"):
            self._intact.value(n.name)  # keeps up where nothing is mended
            self._intact.pass_by(n.name)
        return result

    def _mend(self, n: fx.Node, layer: Layer) -> None:
        given: dict[str, Any] = self.map_nodes_to_values(bound_arguments(n), n)  # type: ignore[assignment]
        target, view = self._intact.value(n.name), layer.view
        rows = view.sample(target.numel() // target.shape[view.dim], given, self._seed)
        target_GNT = view.grouped(target.movedim(view.dim, -1).flatten(0, -2)[rows.chosen_N].float())
        bias_O = given["bias"]
        if bias_O is not None:
            target_GNT = target_GNT - bias_O.float().reshape(view.groups, 1, -1)
        x_GNK, num_rows = layer.columns(rows.x_GNJ), target_GNT.shape[1]
        is_held_N = torch.arange(num_rows) >= num_rows - num_rows // _HELD
        every, fit, held = (
            _moments(x_GNK[:, chosen_N], target_GNT[:, chosen_N])
            for chosen_N in (torch.ones_like(is_held_N), ~is_held_N, is_held_N)
        )
        is_centred = bias_O is not None or norm_behind(n) is not None
        w_OK = layer.rows(given["weight"])
        mended_OK = _refit_chosen(w_OK, every, fit, held, is_centred=is_centred)
        given["weight"].data.copy_(layer.weight(mended_OK, given["weight"]))
        if bias_O is not None:
            w_GTK = mended_OK.reshape(view.groups, -1, mended_OK.shape[1])
            mean_GT = every.sum_T / every.count + bias_O.reshape(view.groups, -1)
            bias_O.data.copy_(matching_bias(mean_GT, w_GTK, every.sum_J / every.count).flatten())

    def _follow(self, n: fx.Node) -> None:
        """The mean and variance that a batch norm holds move as those of its input do from the intact network to this one."""
        given: dict[str, Any] = self.map_nodes_to_values(bound_arguments(n), n)  # type: ignore[assignment]
        if given["running_mean"] is None or str(bound_arguments(n)["running_mean"].target) in self._moved:
            return
        self._moved.add(str(bound_arguments(n)["running_mean"].target))
        others = self._intact.value(str(n.args[0]))
        now, was = (value.movedim(1, 0).flatten(1).double() for value in (given["input"], others))
        given["running_mean"].add_((now.mean(1) - was.mean(1)).to(given["running_mean"]))
        given["running_var"].mul_((now.var(1) / was.var(1).clamp_min(_FAINTEST)).to(given["running_var"]))


def _moments(x_GNK: Tensor, target_GNT: Tensor) -> Moments:
    moments = empty_moments(x_GNK.shape[2], target_GNT.shape[2], lead=(len(x_GNK),))
    accumulate(moments, x_GNK, target_GNT)
    return moments


def _refit_chosen(w_OK: Tensor, every: Moments, fit: Moments, held: Moments, *, is_centred: bool) -> Tensor:
    """With the ridge of least error on held-out rows; w itself if none lowers it."""
    mask_OK = w_OK != 0
    if not held.count:
        return w_OK
    fitted, judged, whole = (per_row(one, centred=is_centred) for one in (fit, held, every))

    def refit(moments: tuple[Tensor, Tensor], damp: float) -> Tensor:
        return refit_masked(w_OK, moments[0].reshape(w_OK.shape), moments[1], mask_OK=mask_OK, damp=damp)

    errors = {damp: _error(refit(fitted, damp), judged) for damp in DAMPS}
    best = min(errors, key=errors.__getitem__)
    return refit(whole, best) if errors[best] < _error(w_OK, judged) else w_OK


def _error(w_OK: Tensor, moments: tuple[Tensor, Tensor]) -> float:
    """E||y - W x||^2, less what does not depend on W."""
    cross_GTK, gram_GKK = moments
    w_GTK = w_OK.double().reshape(cross_GTK.shape)
    return float(((w_GTK @ gram_GKK) * w_GTK).sum() - 2 * (w_GTK * cross_GTK).sum())
