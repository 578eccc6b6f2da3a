"""Weights in few bits, activations in float: groups, floating formats, codebooks.

What counts is bytes, and the time to read them: a language model reads every weight for each token. Nothing has to be known of
the activations but what a solver of codes asks for, and `rounding: hqq` asks for nothing.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, fx

from lighten.analyze.trace import tensor_of
from lighten.core.errors import InputError, UnfitError
from lighten.core.graph import Graph, Site
from lighten.core.method import Compressed
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.spec import FLOAT_FORMATS, Codebook, Float, Keep, Quant, Spec
from lighten.engine.quiet import quiet
from lighten.methods.quantize import sites, stored
from lighten.methods.quantize.rounding import Rounding, round_layers
from lighten.ops import floats

if TYPE_CHECKING:
    from lighten.methods.quantize.integer import Quantize

HQQ = "hqq"
MX = "mx-"
FORMATS = (*FLOAT_FORMATS, *(f"{MX}{name}" for name in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8")))
_MX_BLOCK = 32
_EDGE = Quant(activations=None)
_FULL_BITS, _HALF_BITS = 8, 16
_LEAST_SAFE_BITS = 7


def spec_of(knobs: "Quantize") -> Spec | None:
    """What weights become where the knobs ask for a form that is for weights only; None where they do not.

    Raises InputError on knobs that exclude each other.
    """
    forms = {
        "format": knobs.format,
        "codebook": knobs.codebook,
        "weights": knobs.weights if knobs.weights < _FULL_BITS else None,
    }
    is_affine = knobs.symmetric is False or (knobs.rounding == HQQ and knobs.symmetric is None)
    if knobs.format is None and knobs.codebook is None and knobs.group is None and not is_affine and knobs.rounding != HQQ:
        return None
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"quantize: {' and '.join(given)} exclude each other.", hint="A weight has one form.")
    if knobs.activations not in (None, "float"):
        raise InputError(
            f"quantize: groups, zero points, formats and codebooks are for weights alone. Got {knobs.activations!r}.",
            hint="Use activations: float.",
        )
    if knobs.mean_bits is not None:
        raise InputError("quantize: mean_bits chooses among whole rows of integers.", hint="Leave out group and the like.")
    if knobs.format is None and knobs.codebook is None:
        if knobs.rounding == HQQ and knobs.symmetric:
            raise InputError("quantize: rounding hqq fits zero points, so symmetric must not be true.")
        return Quant(knobs.weights, None, group=knobs.group, symmetric=not is_affine)
    return _without_solver(knobs)


def _without_solver(knobs: "Quantize") -> Spec:
    if knobs.symmetric is not None:
        raise InputError("quantize: symmetric is of integers: it has no meaning with format or codebook.")
    if knobs.rounding not in (None, "nearest"):
        raise InputError(
            f"quantize: rounding {knobs.rounding!r} is of integers.", hint="Use rounding: nearest, or leave it out."
        )
    if knobs.codebook is not None:
        if knobs.group is not None:
            raise InputError("quantize: a codebook has no scales, so it has no groups.")
        return Codebook(knobs.codebook)
    if knobs.format not in FORMATS:
        raise InputError(f"quantize: format must be one of {', '.join(FORMATS)}. Got {knobs.format!r}.")
    if knobs.format.startswith(MX):
        if knobs.group not in (None, _MX_BLOCK):
            raise InputError(f"quantize: blocks of {knobs.format} have {_MX_BLOCK} values. Got group={knobs.group}.")
        return Float(knobs.format.removeprefix(MX), _MX_BLOCK, "mx")
    return Float(knobs.format, knobs.group)


@dataclass(frozen=True)
class WeightsOnly:
    """A network whose weights can become `spec`. ranges: of its integers. without_data: their zero points and scales by HQQ.
    rounding: how the codes of integers below 7 bits are solved for, on `inputs`, a batch of calibration examples; None: not.
    """

    model: Model
    graph: Graph
    spec: Spec
    ranges: str = "mse"
    without_data: bool = False
    rounding: Rounding | None = field(default=None, repr=False)
    inputs: tuple[Tensor, ...] = field(default=(), repr=False)

    def proposals(self) -> tuple[Plan, ...]:
        """One: every linear layer, convolution and embedding in the form that was asked for. Below 7 bits the first and the
        last of the convolutions and linear layers, recurrent cells and transposed convolutions are stored in int8.
        """
        weighted = [site for site in self.graph.sites if site.kind in sites.WEIGHTS_ONLY and site.weights]
        formed = {site.name for site in weighted if site.kind in (*sites.FEW_BITS, "embedding") or not self._is_few}
        edges = [site.name for site in weighted if site.kind in sites.FEW_BITS and self._is_few]
        formed -= {*edges[:1], *edges[-1:]}
        return (Plan({site.name: self._form(site) if site.name in formed else _EDGE for site in weighted}),)

    def gentler(self, site: str, spec: Spec) -> Spec:
        """int8 storage, then float."""
        return Keep() if spec == _EDGE else _EDGE

    def realize(self, plan: Plan, *, repair: bool = True) -> Compressed:
        """The network with its weights stored as the plan says; repair solves for the codes of integers below 7 bits.

        Raises UnfitError for a site whose columns do not split, or whose activations the plan quantizes.
        """
        sites.check(self.graph, plan)
        _refuse_activations(plan)
        with quiet():
            module = copy.deepcopy(self.graph.module)
        facts = stored.store_weights(
            module,
            self.graph,
            plan,
            which=lambda spec: type(spec) is not Keep,
            sparse=self.model.sparse,
            ranges=self.ranges,
            without_data=self.without_data,
        )
        if repair and self.rounding is not None:
            self._solve(module, plan, self.rounding)
        return Compressed(module, plan, self.model, facts)

    @property
    def _is_few(self) -> bool:
        """Whether a weight has so few bits that the edges of a network feel it."""
        spec = self.spec
        bits = spec.weights or _FULL_BITS if type(spec) is Quant else spec.bits if type(spec) is Codebook else _width(spec)
        return bits < _LEAST_SAFE_BITS

    def _form(self, site: Site) -> Spec:
        """The spec with a row no longer than a group as a group of its own."""
        weight = tensor_of(self.graph.module, site.weights[0])
        columns = weight.numel() // len(weight)
        if type(self.spec) is Quant and self.spec.group is not None and columns <= self.spec.group:
            return Quant(self.spec.weights, None, symmetric=self.spec.symmetric)
        if type(self.spec) is Float and self.spec.block is not None and columns <= self.spec.block and self.spec.scale != "mx":
            return Float(self.spec.format)
        return self.spec

    def _solve(self, module: fx.GraphModule, plan: Plan, rounding: Rounding) -> None:
        few = {site.name: plan.spec(site.name) for site in self.graph.sites if site.kind in sites.FEW_BITS}
        specs = {
            name: spec
            for name, spec in few.items()
            if type(spec) is Quant and spec.weights is not None and 1 < spec.weights < _LEAST_SAFE_BITS
        }
        if specs:
            round_layers(module, self.graph, replace(rounding, specs=specs), inputs=self.inputs)


def _width(spec: Spec) -> int:
    is_short = type(spec) is Float and spec.format in floats.FORMATS
    return floats.FORMATS[spec.format].bits if is_short else _HALF_BITS  # type: ignore[union-attr]


def _refuse_activations(plan: Plan) -> None:
    computed = [name for name, spec in plan.items() if type(spec) is Quant and spec.activations is not None]
    if computed:
        raise UnfitError(
            f"{computed[0]}: {plan[computed[0]]} has activations to calibrate, which a step for weights alone does not.",
            hint="Leave group, symmetric, format, codebook and hqq out of the step; the plan says them by site.",
        )
