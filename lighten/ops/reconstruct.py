"""Repair of a pruned layer without training: its kept input columns take over, by least squares, what the cut ones carried.

Channel pruning (He et al. 2017, arXiv:1707.06168) and ThiNet (Luo et al. 2017, arXiv:1707.06342) refit a layer's weights on
sampled inputs; optimal brain surgeon (Hassibi and Stork 1993) and Optimal Brain Compression (Frantar et al. 2022,
arXiv:2208.11580) give the same answer in closed form.

Dimension key: N rows (examples, tokens or positions), O outputs, K input columns of the intact layer, P the kept ones among
them, J columns of the input as it is now (kept, and perhaps drifted), T targets, C channels, R columns a channel, B examples,
S spatial positions, Q positions of a kernel. A convolution is a linear layer on unfolded columns, K = C * Q, channel by
channel. Every Gram matrix may have leading dimensions, one for each group of a grouped convolution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

DAMP = 0.01
"""Fraction of the mean diagonal, as in GPTQ (arXiv:2210.17323)."""
DAMPS = (1e-6, 1e-4, 1e-2, 1.0)
"""What `refit_chosen` chooses from."""
STEPS = 5
ROWS_AT_ONCE = 2048
_SMALLEST_DIAGONAL = 1e-30


@dataclass
class Moments:
    """Sums over rows of an input x and a target t; what a refit needs of the data, whatever the number of rows.

    count: rows seen. Without targets of their own, sum_T and cross_TJ are sum_J and gram_JJ themselves.
    """

    count: int
    sum_T: Tensor
    sum_J: Tensor
    cross_TJ: Tensor
    gram_JJ: Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution walks over its input, one number for each spatial dimension. padding: zeros on both sides."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def empty_moments(
    num_inputs: int, num_targets: int | None = None, *, lead: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> Moments:
    """Moments of no rows, on the CPU. num_targets: None where the target is the input itself. lead: leading dimensions.

    dtype: float32 halves the memory; where a column's mean is m times its deviation, about 7 - 2 log10(m) digits are left.
    """
    sum_J, gram_JJ = torch.zeros(*lead, num_inputs, dtype=dtype), torch.zeros(*lead, num_inputs, num_inputs, dtype=dtype)
    if num_targets is None:
        return Moments(0, sum_J, sum_J, gram_JJ, gram_JJ)
    sum_T, cross_TJ = torch.zeros(*lead, num_targets, dtype=dtype), torch.zeros(*lead, num_targets, num_inputs, dtype=dtype)
    return Moments(0, sum_T, sum_J, cross_TJ, gram_JJ)


def accumulate(moments: Moments, x_NJ: Tensor, target_NT: Tensor | None = None) -> None:
    """Adds rows to `moments` in place; rows are the dimension before the last, leading dimensions those of the moments.

    Rows are widened to the moments' type 2048 at a time, so memory does not grow with N.
    Raises ValueError when there is a target and the moments hold none, or the reverse.
    """
    if (target_NT is None) != (moments.cross_TJ is moments.gram_JJ):
        raise ValueError("The moments and the rows must both have targets, or neither.")
    for start in range(0, x_NJ.shape[-2], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part_NJ = x_NJ[..., rows, :].to(moments.gram_JJ)
        moments.count += part_NJ.shape[-2]
        moments.sum_J += part_NJ.sum(-2)
        moments.gram_JJ += part_NJ.mT @ part_NJ
        if target_NT is not None:
            part_NT = target_NT[..., rows, :].to(moments.gram_JJ)
            moments.sum_T += part_NT.sum(-2)
            moments.cross_TJ += part_NT.mT @ part_NJ


def per_row(moments: Moments, *, centred: bool = True) -> tuple[Tensor, Tensor]:
    """(cross_TJ, gram_JJ) averaged over rows; centred: of deviations from the means, for layers that have a bias to move.

    Raises ValueError when no row was seen.
    """
    if not moments.count:
        raise ValueError("No row was accumulated.")
    cross_TJ, gram_JJ = moments.cross_TJ / moments.count, moments.gram_JJ / moments.count
    if not centred:
        return cross_TJ, gram_JJ
    mean_T, mean_J = moments.sum_T / moments.count, moments.sum_J / moments.count
    return cross_TJ - mean_T[..., :, None] * mean_J[..., None, :], gram_JJ - mean_J[..., :, None] * mean_J[..., None, :]


def damped(gram_KK: Tensor, damp: float) -> Tensor:
    """gram + damp * mean(diag gram) * I, float64. damp: >= 0, no unit; above 0 the result is never singular."""
    gram_KK = gram_KK.double()
    mean = gram_KK.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(_SMALLEST_DIAGONAL)
    return gram_KK + damp * mean[..., None, None] * torch.eye(gram_KK.shape[-1], dtype=torch.float64, device=gram_KK.device)


def inverse(gram_KK: Tensor, damp: float) -> Tensor:
    """The inverse of `damped`, float64. Raises torch.linalg.LinAlgError when it is singular (damp 0, dependent columns)."""
    lower_KK: Tensor = torch.linalg.cholesky(damped(gram_KK, damp))
    return torch.cholesky_inverse(lower_KK)


def refit(w_OK: Tensor, gram_KK: Tensor, kept_P: Tensor, *, damp: float = DAMP) -> Tensor:
    """w'_OP over the kept columns that minimizes ||W X - W' X_P||^2 + ridge ||W' - W_P||^2, in w's type.

    kept_P: int64 columns, the same for every leading dimension. damp: as in `damped`; the ridge is damp * mean diagonal.
    The error never exceeds that of dropping columns, at any damp. Zero correlation with the cut columns: nothing changes.
    Equals the update of optimal brain surgeon with Hessian gram + ridge I (arXiv:2208.11580).
    Raises torch.linalg.LinAlgError as `inverse` does. Cost: P^3 / 3.
    """
    cross_OP = w_OK.double() @ gram_KK.double()[..., kept_P]
    return refit_drifted(w_OK[..., kept_P], cross_OP, gram_KK[..., kept_P, :][..., kept_P], damp=damp)


def refit_drifted(w_OJ: Tensor, cross_OJ: Tensor, gram_JJ: Tensor, *, damp: float = DAMP) -> Tensor:
    """w'_OJ that minimizes E||y - W' x'||^2 + ridge ||W' - W||^2, in w's type, for inputs x' that earlier cuts changed.

    w_OJ: the layer as it stands, cut columns gone. cross_OJ: E[y x'^T], y the intact layer's output without its bias (or
    centred); where only inputs were kept, W E[x x'^T]. gram_JJ: E[x' x'^T]. At damp 0 this is y x'^T (x' x'^T)^-1
    (arXiv:1707.06168, arXiv:1707.06342). Raises torch.linalg.LinAlgError as `inverse` does.
    """
    # differs from the papers: the ridge pulls towards the weights, not towards zero, so that damping never does harm
    gap_OJ = cross_OJ.double() - w_OJ.double() @ gram_JJ.double()
    lower_JJ: Tensor = torch.linalg.cholesky(damped(gram_JJ, damp))
    change_OJ = torch.cholesky_solve(gap_OJ.mT, lower_JJ).mT
    return (w_OJ.double() + change_OJ).to(w_OJ.dtype)


def matching_bias(mean_O: Tensor, w_OJ: Tensor, mean_J: Tensor) -> Tensor:
    """The bias, shape O, with which W' x' has mean `mean_O`; in w's type.

    mean_O: mean output of the intact layer, W m + b. mean_J: mean of the input that w_OJ now sees.
    With weights refitted on centred moments it is the joint least-squares solution of weights and bias.
    """
    return (mean_O.double() - (w_OJ.double() @ mean_J.double()[..., None])[..., 0]).to(w_OJ.dtype)


@dataclass(frozen=True)
class Affine:
    """y_GNT = x_GNJ W^T + b, of each group. has_bias: whether b may move; else it is zero."""

    w_GTJ: Tensor
    bias_GT: Tensor
    has_bias: bool

    def __call__(self, x_GNJ: Tensor) -> Tensor:
        return x_GNJ @ self.w_GTJ.mT + self.bias_GT[:, None]


@dataclass(frozen=True)
class Goal:
    """Where outputs y should go: slope * y + offset equals `target` once both are clamped to [low, high].

    offset: what is added behind the layer, a residual stream for instance. low 0, high infinite: a ReLU follows. slope: not 0.
    """

    target_GNT: Tensor
    offset_GNT: Tensor
    slope_GT: Tensor
    low: float = -math.inf
    high: float = math.inf

    def rows(self, chosen_N: Tensor) -> "Goal":
        """The goal of some of the rows, a mask or positions."""
        return replace(self, target_GNT=self.target_GNT[:, chosen_N], offset_GNT=self.offset_GNT[:, chosen_N])

    def nearest(self, y_GNT: Tensor) -> Tensor:
        """The outputs closest to y that meet the goal: where the target is clamped, whatever is clamped too."""
        now_GNT, wanted_GNT = y_GNT * self.slope_GT[:, None] + self.offset_GNT, self.target_GNT
        if self.low > -math.inf:
            wanted_GNT = torch.where(wanted_GNT <= self.low, now_GNT.clamp_max(self.low), wanted_GNT)
        if self.high < math.inf:
            wanted_GNT = torch.where(wanted_GNT >= self.high, now_GNT.clamp_min(self.high), wanted_GNT)
        return (wanted_GNT - self.offset_GNT) / self.slope_GT[:, None]

    def error(self, y_GNT: Tensor) -> float:
        """Mean squared distance of what the clamp gives."""
        now_GNT = y_GNT * self.slope_GT[:, None] + self.offset_GNT
        gap_GNT = now_GNT.clamp(self.low, self.high) - self.target_GNT.clamp(self.low, self.high)
        return float(gap_GNT.square().mean())


def refit_chosen(layer: Affine, x_GNJ: Tensor, goal: Goal, *, is_held_N: Tensor) -> Affine:
    """The refitted layer with the ridge of DAMPS that has the least error on held-out rows; the layer itself if none lowers it.

    is_held_N: bool, rows that take no part in the choice's fits; the chosen ridge is then fitted on all rows. So a repair that
    does not carry over to other examples is not made. Cost: two Gram matrices, a Cholesky factorization a damp and step.
    """
    held, fit = goal.rows(is_held_N), _Rows.of(x_GNJ[:, ~is_held_N], layer.has_bias)
    x_held_GNJ = x_GNJ[:, is_held_N]
    errors: dict[float, float] = {}
    for damp in DAMPS:
        errors[damp] = held.error(_refit(layer, fit, goal.rows(~is_held_N), damp=damp, steps=1)(x_held_GNJ))
    best = min(DAMPS, key=errors.__getitem__)
    if not errors[best] < held.error(layer(x_held_GNJ)):
        return layer
    return refit_rows(layer, x_GNJ, goal, damp=best)


def refit_rows(layer: Affine, x_GNJ: Tensor, goal: Goal, *, damp: float) -> Affine:
    """W', b' that minimize E dist(W' x + b', outputs that meet the goal)^2 + ridge ||W' - W||^2, in w's type.

    Without a clamp this is `refit_drifted`. With one the outputs that meet the goal are a convex set, and least squares to the
    nearest point of it and the nearest point to the new outputs take turns, five times: each turn lowers the objective (the
    auxiliary outputs of Zhang et al. 2015, arXiv:1505.06798, section 3.2, with exact penalty). Without a bias to move the
    moments are about zero. Raises torch.linalg.LinAlgError as `inverse` does.
    """
    steps = 1 if math.isinf(goal.low) and math.isinf(goal.high) else STEPS
    return _refit(layer, _Rows.of(x_GNJ, layer.has_bias), goal, damp=damp, steps=steps)


@dataclass(frozen=True)
class _Rows:
    """Inputs; their mean (zero without a bias to move); inputs about it, and the Gram matrix of these per row."""

    x_GNJ: Tensor
    mean_GJ: Tensor
    centred_GNJ: Tensor
    gram_GJJ: Tensor

    @staticmethod
    def of(x_GNJ: Tensor, has_bias: bool) -> "_Rows":
        mean_GJ = x_GNJ.mean(1) if has_bias else torch.zeros_like(x_GNJ[:, 0])
        centred_GNJ = x_GNJ - mean_GJ[:, None]
        return _Rows(x_GNJ, mean_GJ, centred_GNJ, _product(centred_GNJ, centred_GNJ))


def _refit(layer: Affine, rows: _Rows, goal: Goal, *, damp: float, steps: int) -> Affine:
    wanted_GNT = (goal.target_GNT - goal.offset_GNT) / goal.slope_GT[:, None]
    refitted = _to_outputs(layer, rows, wanted_GNT, damp)
    for _ in range(steps - 1):
        wanted_GNT = goal.nearest(refitted(rows.x_GNJ))
        refitted = _to_outputs(layer, rows, wanted_GNT, damp)
    return refitted


def _to_outputs(layer: Affine, rows: _Rows, wanted_GNT: Tensor, damp: float) -> Affine:
    mean_GT = wanted_GNT.mean(1) if layer.has_bias else layer.bias_GT
    cross_GTJ = _product(wanted_GNT - mean_GT[:, None], rows.centred_GNJ)
    w_GTJ = refit_drifted(layer.w_GTJ, cross_GTJ, rows.gram_GJJ, damp=damp)
    bias_GT = matching_bias(mean_GT, w_GTJ, rows.mean_GJ) if layer.has_bias else layer.bias_GT
    return Affine(w_GTJ, bias_GT, layer.has_bias)


def _product(y_GNT: Tensor, x_GNJ: Tensor) -> Tensor:
    """E[y x^T], float64, widened 2048 rows at a time."""
    total_GTJ = torch.zeros(len(x_GNJ), y_GNT.shape[2], x_GNJ.shape[2], dtype=torch.float64, device=x_GNJ.device)
    for start in range(0, x_GNJ.shape[1], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total_GTJ += y_GNT[:, rows].double().mT @ x_GNJ[:, rows].double()
    return total_GTJ / x_GNJ.shape[1]


def channel_columns(positions_CP: Tensor, kernel: int = 1) -> Tensor:
    """columns_CR: which columns of a flattened weight (O, I * kernel) belong to each channel, int64, R = P * kernel.

    positions_CP: each channel's positions along the weight's input dimension. kernel: elements of the kernel.
    """
    return (positions_CP[..., None] * kernel + torch.arange(kernel, device=positions_CP.device)).flatten(1)


def sample_rows(x_NK: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` distinct rows; all of them, in order, when there are no more. One seed, one choice for equal N."""
    return x_NK[_sample(x_NK.shape[0], count, generator).to(x_NK.device)]


def unfold_columns(x_BCS: Tensor, window: Window, *, count: int, generator: torch.Generator) -> Tensor:
    """x_NK: the input patches of at most `count` random output positions of a convolution; K = C * Q as in its weight.

    x_BCS: (B, C, then 1, 2 or 3 spatial dimensions). Only the chosen patches are copied: N * K values, not B * S * K.
    Equally seeded generators choose the same positions in two networks with equal spatial sizes.
    Grouped convolution: `x_NK.reshape(N, groups, -1).movedim(1, 0)` has a leading dimension for the moments.
    Raises ValueError when the window is larger than the padded input.
    """
    padded = F.pad(x_BCS, [side for pad in reversed(window.padding) for side in (pad, pad)])
    sizes = padded.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    steps = [(size - r) // s + 1 for size, r, s in zip(sizes, reach, window.stride, strict=True)]
    if min(steps) < 1:
        raise ValueError(f"A window that reaches {reach} does not fit into an input of {list(sizes)}, padding included.")
    chosen_N = _sample(padded.shape[0] * prod(steps), count, generator)
    example_N, position_N = chosen_N // prod(steps), chosen_N % prod(steps)
    pitch = [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    corner_N = _offsets(steps, window.stride, pitch)[position_N]
    index_NQ = corner_N[:, None] + _offsets(window.kernel, window.dilation, pitch)
    patches_NQC = padded.flatten(2)[example_N[:, None].to(x_BCS.device), :, index_NQ.to(x_BCS.device)]
    return patches_NQC.mT.flatten(1)


def stuffed(x_BCS: Tensor, stride: tuple[int, ...], more: tuple[int, ...]) -> Tensor:
    """The input with stride - 1 zeros between neighbours and `more` behind the last (the output_padding).

    A transposed convolution with padding p, dilation d and kernel k is a convolution of this, of stride 1 and padding
    d (k - 1) - p, with the kernel flipped and its channel dimensions exchanged (Dumoulin and Visin 2016, arXiv:1603.07285).
    """
    spaced = [(size - 1) * step + 1 + extra for size, step, extra in zip(x_BCS.shape[2:], stride, more, strict=True)]
    result = x_BCS.new_zeros(*x_BCS.shape[:2], *spaced)
    places = tuple(slice(0, size - extra, step) for size, step, extra in zip(spaced, stride, more, strict=True))
    result[(slice(None), slice(None), *places)] = x_BCS
    return result


def group_sparsity(w_CK: Tensor, strength_C: Tensor, *, squared: bool = False) -> Tensor:
    """A differentiable penalty, scalar: the sum over channels of strength_c ||w_c||, or 1/2 strength_c ||w_c||^2.

    Not squared: group lasso (Yuan and Lin 2006), which drives whole channels to zero; its gradient there is taken as 0.
    Squared, with strengths that grow on the channels to be cut: GReg (Wang et al. 2021, arXiv:2012.09243) and DepGraph
    (Fang et al. 2023, arXiv:2301.12900); the gradient strength_c w_c never reaches zero but needs no care near it.
    """
    if squared:
        return 0.5 * (strength_C * w_CK.square().sum(1)).sum()
    norm_C: Tensor = torch.linalg.vector_norm(w_CK, dim=1)
    return (strength_C * norm_C).sum()


def _sample(total: int, count: int, generator: torch.Generator) -> Tensor:
    if count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:count]


def _offsets(counts: Sequence[int], spacing: Sequence[int], pitch: Sequence[int]) -> Tensor:
    """Flat offsets of a grid of points, the last dimension fastest."""
    offset = torch.zeros(1, dtype=torch.int64)
    for num, space, step in zip(counts, spacing, pitch, strict=True):
        offset = (offset[:, None] + torch.arange(num) * (space * step)).flatten()
    return offset
