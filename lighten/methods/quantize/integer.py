"""Integers: weights of 2 to 8 bits per channel, activations of 2 to 8 bits per tensor.

The float graph runs once over the calibration data; everything after that - ranges, codes, a new plan - needs no forward
pass but the one that corrects biases.

Dimension key: O output channels, K everything else.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from lighten.analyze.trace import set_tensor, tensor_of
from lighten.core.data import Batch, Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.graph import Graph, Site
from lighten.core.method import Card, Compressed
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Quant, Spec
from lighten.engine.quiet import quiet
from lighten.methods.quantize import annotate, sites, weights_only
from lighten.methods.quantize.bias import CORRECTABLE, correct_biases, round_biases
from lighten.methods.quantize.equalization import equalized
from lighten.methods.quantize.learned import Learned
from lighten.methods.quantize.observe import (
    Observer,
    fastest_layout,
    from_tensors,
    observe,
    to_tensors,
)
from lighten.methods.quantize.rounding import SOLVERS, Rounding, round_layers
from lighten.methods.quantize.screen import MOST_ERROR, layer_errors
from lighten.methods.quantize.smooth import smooth
from lighten.methods.quantize.store import store
from lighten.methods.quantize.stored import keeps, store_weights
from lighten.methods.quantize.weights_only import WeightsOnly
from lighten.ops.grids import Affine, affine, decode, encode, fit
from lighten.ops.ranges import RANGES, Seen, percentile

_BATCH = 16
_BATCH_VALUES = 400_000  # more input values a batch than this, and activations leave the cache: a third slower
_REPAIR_EXAMPLES = 8
_SMOOTHING = 0.5
_RESIDUAL = ("add", "mul")
_WEIGHT_RANGES = ("minmax", "percentile", "entropy", "mse")
_LEAST_SAFE_BITS = 7  # from here on, rounding to nearest is as good as any
_SOLVER_EXAMPLES = 512
_SOLVER_VALUES = 8_000_000  # input values of these, at most: activations hold some sixty times as many
_ACTIVATIONS = (*range(2, 9), "dynamic", "float")


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to integers.

    bits: 8, of weights and activations. weights: 2 to 8, of linear layers and convolutions; the first and the last keep 8, and
    so does everything else. mean_bits: in place of `weights`, in [2, 8]: the mean that the search keeps while it chooses each
    layer's width (search.bits). rounding: "nearest", "gptq", "adaround" or "anneal" (methods.quantize.rounding); None:
    "nearest" for 7 and 8 bits, "anneal" below.
    activations: 2 to 8, ranges from calibration (below 8 of what linear layers and convolutions read, with the first and the
    last at 8); "dynamic", 8 bits and the range of each input, for linear layers; "float", weights are stored in int8 and
    computation stays in float; None: what suits the network.
    ranges: of activations; "minmax" ("mse" below 7 bits), "moving_average", "percentile", "mse" or "entropy". percentile: kept
    share in percent, in (50, 100], for ranges="percentile". weight_ranges: ops.grids.WEIGHT_RANGES.
    bias_correction: shift biases so that channel means stay; None: except in transformers, whose channel means depend on which
    tokens calibration happened to see. smoothing: how much of the linear layers' input outliers moves into their weights, in
    [0, 1]; 0 for none, None: 0.5 for transformers (the paper's; higher values fit the calibration texts closer and other texts
    worse), none elsewhere. equalization: whether channels' gains move between layers (methods.quantize.equalization); None:
    no, each row of weights has a scale of its own already. samples: calibration examples, at least 1.

    For weights alone (methods.quantize.weights_only), with activations in float: group: input columns that share a scale.
    symmetric: False gives weights zero points; None: True, but for rounding="hqq", which needs no data. format: a floating
    format in place of integers, of weights_only.FORMATS. codebook: bits, 1 to 8, of a codebook for each weight.
    """

    bits: int = 8
    weights: int = 8
    mean_bits: float | None = None
    rounding: str | None = None
    activations: int | str | None = None
    ranges: str = "minmax"
    percentile: float = 99.99
    weight_ranges: str = "mse"
    bias_correction: bool | None = None
    smoothing: float | None = None
    equalization: bool | None = None
    samples: int = 128
    group: int | None = None
    symmetric: bool | None = None
    format: str | None = None
    codebook: int | None = None

    card: ClassVar[Card] = Card(
        name="quantize",
        title="Post-training quantization with calibrated ranges, solved codes and bias correction",
        paper="Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295",
        needs_data=True,
    )

    def __post_init__(self) -> None:
        _one_of("bits", self.bits, (8,))
        _one_of("weights", self.weights, tuple(range(2, 9)))
        _check_mean_bits(self.mean_bits, self.weights)
        _one_of("rounding", self.rounding, (None, "nearest", weights_only.HQQ, *SOLVERS))
        _one_of("activations", self.activations, (None, *_ACTIVATIONS))
        _one_of("ranges", self.ranges, tuple(RANGES))
        _one_of("weight_ranges", self.weight_ranges, _WEIGHT_RANGES)
        _one_of("bias_correction", self.bias_correction, (None, True, False))
        _one_of("equalization", self.equalization, (None, True, False))
        if not isinstance(self.percentile, int | float) or not 50 < self.percentile <= 100:
            raise InputError(f"percentile must be in (50, 100]. Got {self.percentile!r}.")
        if self.smoothing is not None and not (isinstance(self.smoothing, int | float) and 0 <= self.smoothing <= 1):
            raise InputError(f"smoothing must be in [0, 1]. Got {self.smoothing!r}.")
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise InputError(f"samples must be an integer >= 1. Got {self.samples!r}.")
        _one_of("symmetric", self.symmetric, (None, True, False))
        weights_only.spec_of(self)

    def prepare(self, model: Model, graph: Graph, *, data: Data, run: Run) -> "Calibrated | WeightsOnly":
        """Observes every tensor that any plan could quantize: one float forward pass over `samples` examples.

        Raises UnfitError when the network is quantized already: its float weights are gone.
        """
        if any("quantized_decomposed" in str(node.target) for node in graph.module.graph.nodes):
            raise UnfitError(f"{model.origin.source} is quantized already.", hint="Compress the original network.")
        form = weights_only.spec_of(self)
        if form is not None:
            # rounding to nearest and HQQ ask nothing of the data
            inputs = _joined(_of_one_shape(_to_solve_on(data, _batch_size(model)))) if self.solver else ()
            solving = _rounding(self, model, graph, inputs) if self.solver else None
            return WeightsOnly(model, graph, form, self.weight_ranges, self.rounding == weights_only.HQQ, solving, inputs)
        graph = Graph(_in_fastest_layout(graph), graph.sites)
        graph = equalized(graph).graph if self.equalization else graph
        everything = Plan({site.name: _static(site) for site in graph.sites if sites.takes(site, _static(site))})
        num_samples = min(self.samples, len(data.calibration))
        size = _batch_size(model)
        batches = list(data.calibration.batches(size, num_samples))
        few = _of_one_shape(batches[: max(_REPAIR_EXAMPLES // size, 1)])
        alpha = self.smoothing if self.smoothing is not None else _SMOOTHING if _is_transformer(graph) else 0.0
        graph = smooth(graph, few[:1], alpha=alpha) if alpha else graph
        ruined = self._ruined(graph, few[:1], run) if _is_transformer(graph) else frozenset()

        def see() -> dict[str, Tensor]:
            tracked = run.progress.track(batches, what="calibrating", total=len(batches))
            kinds = {site.node: site.kind for site in graph.sites if site.bias and site.kind in CORRECTABLE}
            watched = {*sites.widths(graph, everything), *sites.float_outputs(graph, everything)}
            observer = Observer(graph.module, watched, means_of=kinds, num_batches=len(batches), seed=run.seed)
            return to_tensors(*observe(observer, tracked, num_means=len(few)))

        seen, means = from_tensors(run.memory.remember_tensors(f"seen-{num_samples}", see))
        run.ledger.note("calibrate", examples=num_samples, tensors=len(seen))
        return Calibrated(self, model, graph, seen, means, few, ruined, data)

    @property
    def solver(self) -> str | None:
        """Of SOLVERS, for codes of fewer than 7 bits; None for rounding to nearest."""
        return None if self.rounding in ("nearest", weights_only.HQQ) else self.rounding or "anneal"

    def _ruined(self, graph: Graph, batches: tuple[Batch, ...], run: Run) -> frozenset[str]:
        """Linear sites that 8-bit activations would ruin."""
        errors = run.memory.remember(
            "layer-errors", lambda: layer_errors(graph, batches, ranges=self.weight_ranges, seed=run.seed)
        )
        return frozenset(site for site, error in errors.items() if error > MOST_ERROR)


@dataclass(frozen=True)
class Calibrated:
    """A network whose tensors are known: any plan for it can now be carried out in seconds."""

    method: Quantize
    model: Model
    graph: Graph
    seen: Mapping[str, Seen]
    means: Mapping[str, Tensor]
    batches: tuple[Batch, ...] = field(repr=False)
    ruined: frozenset[str] = frozenset()
    data: Data | None = field(default=None, repr=False)
    learned: Learned = field(default_factory=Learned, repr=False)

    def proposals(self) -> tuple[Plan, ...]:
        """Every site that can be int8. Where the user leaves the activations open: static ranges and, for networks of linear
        layers on sequences, dynamic ones first (a single static range fits the outliers of a transformer badly). Layers that
        8-bit activations would ruin are only stored in int8; last comes the plan that computes them in integers all the same.
        """
        wanted = self.method.activations
        is_transformer = _is_transformer(self.graph)
        modes = (wanted,) if wanted is not None else ("dynamic", 8) if is_transformer else (8,)
        # the residual stream of a transformer carries the outliers that one static range cannot hold
        left = _RESIDUAL if is_transformer else ()
        plans = [self._everything(mode, left) for mode in modes]
        stored: dict[str, Spec] = dict.fromkeys(sorted(self.ruined), Quant(activations=None))
        return (*(plan.replace(stored) for plan in plans), plans[0]) if stored else tuple(plans)

    def gentler(self, site: str, spec: Spec) -> Spec:
        """Activations of few bits get 8; integer computation becomes integer storage where the site has weights (few bits stay
        few), storage becomes float.
        """
        by_name = {site.name: site for site in self.graph.sites}
        if type(spec) is Quant and spec.activations is not None and spec.activations < sites.FULL_BITS:
            return replace(spec, activations=sites.FULL_BITS)
        is_low = type(spec) is Quant and spec.weights is not None and spec.weights < _LEAST_SAFE_BITS
        stored = Quant(weights=spec.weights if is_low else 8, activations=None)  # type: ignore[union-attr]
        return stored if spec != stored and sites.takes(by_name[site], stored) else Keep()

    def realize(self, plan: Plan, *, repair: bool = True) -> Compressed:
        """The network in which each site is as the plan says; repair solves for the codes and corrects the biases."""
        sites.check(self.graph, plan)
        rows, errors = self._rows(plan)
        needed = [(name, bits) for name, widths in sites.widths(self.graph, plan).items() for bits in widths]
        grids = {(name, bits): self._grid(name, bits) for name, bits in needed}
        module = annotate.insert(self.graph, plan, grids=grids, rows=rows)
        store(module, self.graph, plan, rows=rows)
        errors |= store_weights(module, self.graph, plan, sparse=self.model.sparse, ranges=self.method.weight_ranges)
        solved = self._solve(module, plan) if repair and self.method.solver else frozenset()
        wanted = self.method.bias_correction
        if repair and (not _is_transformer(self.graph) if wanted is None else wanted):
            self._correct(module, plan, but=solved)
        round_biases(module, {site.node: site for site in self.graph.sites if site.kind in CORRECTABLE})
        _make_contiguous(module)
        return Compressed(module, plan, self.model, errors, self._outputs(plan))

    def _outputs(self, plan: Plan) -> dict[str, tuple[float, int]]:
        names = [name for name in sites.float_outputs(self.graph, plan) if name in self.seen]
        grids = {name: self._grid(name, sites.FULL_BITS) for name in names}
        return {name: (grid.scale, grid.zero) for name, grid in grids.items()}

    def _everything(self, activations: int | str, left: tuple[str, ...]) -> Plan:
        specs = {site.name: _preferred(site, activations) for site in self.graph.sites if site.kind not in left}
        plan = Plan({name: spec for name, spec in specs.items() if spec is not None})
        if isinstance(activations, int):
            inner = {site: plan.spec(site) for site in self._inner()}
            fewer = {site: replace(spec, activations=activations) for site, spec in inner.items() if _is_static(spec)}
            plan = plan.replace(fewer)
        return plan.with_widths(dict.fromkeys(self._inner(), self.method.weights))

    def _inner(self) -> list[str]:
        """Sites whose weights have the bits that were asked for: all that can, but the first and the last bear it worst."""
        return [site.name for site in self.graph.sites if site.kind in sites.FEW_BITS and site.weights][1:-1]

    def _solve(self, module: Any, plan: Plan) -> frozenset[str]:
        """Codes of few bits solved for, in place; gives the sites."""
        named = {site.name: plan.spec(site.name) for site in self.graph.sites if site.kind in sites.FEW_BITS and site.weights}
        few = {
            name: spec
            for name, spec in named.items()
            if type(spec) is Quant and spec.weights is not None and 1 < spec.weights < _LEAST_SAFE_BITS
        }
        codes = {site.name: site.weights[0] for site in self.graph.sites if site.name in few}
        few = {name: spec for name, spec in few.items() if self.learned.codes(codes[name], spec.weights or 0) is None}
        if few and self.data is not None:
            batches = _of_one_shape(_to_solve_on(self.data, _batch_size(self.model)))
            inputs = _joined(batches)
            rounding = _rounding(self.method, self.model, self.graph, inputs)
            round_layers(module, self.graph, replace(rounding, specs=few), inputs=inputs)
        return frozenset(few)

    def _rows(self, plan: Plan) -> tuple[dict[str, annotate.Rows], dict[str, dict[str, float]]]:
        rows: dict[str, annotate.Rows] = {}
        errors: dict[str, dict[str, float]] = {}
        for site in self.graph.sites:
            spec = plan.spec(site.name)
            if type(spec) is not Quant or spec.weights is None or keeps(spec):
                continue
            for name in site.weights:
                learned = self.learned.codes(name, spec.weights)
                if learned is not None:
                    rows[name] = learned
                    continue
                rows[name], errors[site.name] = self._encode(name, site, spec.weights)
        return rows, errors

    def _encode(self, name: str, site: Site, bits: int) -> tuple[annotate.Rows, dict[str, float]]:
        weight = tensor_of(self.graph.module, name).detach()
        # a transposed convolution holds its output channels in dimension 1
        dim = 1 if site.kind.startswith("conv_transpose") else 0
        rows_OK = weight.transpose(0, dim).reshape(weight.shape[dim], -1)
        grid = fit(rows_OK, bits=bits, ranges=self.method.weight_ranges)
        codes_OK = encode(rows_OK, grid)
        noise = (decode(codes_OK, grid) - rows_OK).square().sum()
        sqnr = 10 * torch.log10(rows_OK.square().sum() / noise.clamp_min(1e-30))
        moved = [weight.shape[dim], *(size for index, size in enumerate(weight.shape) if index != dim)]
        codes = codes_OK.reshape(weight.transpose(0, dim).shape) if dim else codes_OK.reshape(moved)
        # a copy in the weight's own memory layout
        codes = torch.empty_like(weight, dtype=torch.int8).copy_(codes.transpose(0, dim))
        return annotate.Rows(codes, grid.scale.flatten(), dim), {"weight_sqnr_db": float(sqnr)}

    def _grid(self, tensor: str, bits: int) -> Affine:
        return self.learned.grid(tensor, bits) or affine(*self._range(self.seen[tensor], bits), bits=bits)

    def _range(self, seen: Seen, bits: int) -> tuple[float, float]:
        """Few levels cannot afford to reach the extremes: there "minmax", the default, stands for "mse"."""
        if self.method.ranges == "percentile":
            return percentile(seen, percent=self.method.percentile)
        is_few = bits < _LEAST_SAFE_BITS and self.method.ranges == "minmax"
        return RANGES["mse" if is_few else self.method.ranges](seen, bits)

    def _correct(self, module: Any, plan: Plan, *, but: frozenset[str]) -> None:
        rounded = {site.node: site for site in self.graph.sites if site.bias and site.kind in CORRECTABLE and site.name in plan}
        rounded = {node: site for node, site in rounded.items() if type(plan[site.name]) is Quant and site.name not in but}
        if rounded and self.batches:
            correct_biases(module, rounded, self.means, inputs=_joined(self.batches))


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise InputError(f"quantize: {name} must be one of {', '.join(map(repr, allowed))}. Got {value!r}.")


def _check_mean_bits(mean: Any, weights: int) -> None:
    if mean is None:
        return
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not 2 <= mean <= 8:
        raise InputError(f"quantize: mean_bits must be a number in [2, 8]. Got {mean!r}.")
    if weights != 8:
        raise InputError(f"quantize: mean_bits chooses the widths of weights, so weights={weights} has no meaning with it.")


def _is_transformer(graph: Graph) -> bool:
    """A network of linear layers on tokens, or with attention."""
    kinds = [site.kind for site in graph.sites if site.weights]
    on_tokens = any(site.kind in ("embedding", "attention", "matmul") for site in graph.sites)
    return kinds.count("linear") > len(kinds) / 2 and on_tokens


def _static(site: Site) -> Quant:
    return Quant(weights=8 if site.weights else None)


def _preferred(site: Site, activations: int | str) -> Quant | None:
    """The strongest spec of this kind that the site can take: computed in integers, else stored in them."""
    stored = Quant(activations=None)
    computed = {"dynamic": [Quant(dynamic=True)], "float": []}.get(str(activations), [_static(site)])
    return next((spec for spec in (*computed, stored) if sites.takes(site, spec)), None)


def _is_static(spec: Spec) -> TypeGuard[Quant]:
    return type(spec) is Quant and spec.activations is not None and not spec.dynamic


def _batch_size(model: Model) -> int:
    """As many examples as the processor's cache likes."""
    each = sum(value.numel() // len(value) for value in model.example if value.dim())
    return max(1, min(_BATCH, _BATCH_VALUES // max(each, 1)))


def _of_one_shape(batches: list[Batch]) -> tuple[Batch, ...]:
    """The batches, where all are of one shape; else the first."""
    shapes = [[value.shape for value in batch.inputs] for batch in batches]
    return tuple(batches) if all(shape == shapes[0] for shape in shapes) else tuple(batches[:1])


def _to_solve_on(data: Data, size: int) -> list[Batch]:
    """Calibration batches to solve on, as many as memory allows."""
    first = next(iter(data.calibration.batches(1, 1)))
    most = max(_SOLVER_VALUES // max(sum(value.numel() for value in first.inputs), 1), 1)
    return list(data.calibration.batches(size, min(_SOLVER_EXAMPLES, most, len(data.calibration))))


def _joined(batches: Sequence[Batch]) -> tuple[Tensor, ...]:
    joined = (torch.cat(values) for values in zip(*(batch.inputs for batch in batches), strict=True))
    return tuple(fastest_layout(value) for value in joined)


def _rounding(method: Quantize, model: Model, graph: Graph, inputs: Sequence[Tensor]) -> Rounding:
    """By the method's solver, of no site yet."""
    real, drift = _real_tokens(model, inputs), not _is_transformer(graph)
    return Rounding(str(method.solver), {}, follows_drift=drift, real=real, sparse=model.sparse)


def _real_tokens(model: Model, inputs: Sequence[Tensor]) -> Tensor | None:
    """Where padded texts have tokens; None for a network without such a mask."""
    named = dict(zip(model.input_names, inputs, strict=False))
    return named["attention_mask"].bool() if "attention_mask" in named else None


def _make_contiguous(module: torch.fx.GraphModule) -> None:
    """So that the graph computes bit for bit what it computes after being saved and loaded."""
    for name, value in list(module.named_buffers()):
        if not value.is_contiguous():
            set_tensor(module, name, value.contiguous())


def _in_fastest_layout(graph: Graph) -> torch.fx.GraphModule:
    """A copy whose image convolutions hold their weights channels-last, which the CPU kernels want."""
    with quiet():
        module = copy.deepcopy(graph.module)
    for site in graph.sites:
        for name in site.weights:
            set_tensor(module, name, fastest_layout(tensor_of(module, name).detach()))
    return module
