"""A variant of a plan whose weights have 7 bits, for machines on which products of 8 bits saturate or run slower.

Depthwise convolutions keep 8: their kernels add in 32 bits everywhere, and they bear rounding worst.
"""

from collections.abc import Sequence

from lighten.core.graph import Site
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.export.saturation import FULL_BITS, NARROW_BITS


def narrowed(plan: Plan, graph_sites: Sequence[Site]) -> Plan:
    """The plan with 7-bit weights wherever a site computes in integers with 8-bit ones."""
    depthwise = {site.name for site in graph_sites if site.depthwise}
    wide = [name for name, spec in plan.items() if type(spec) is Quant and spec.weights == FULL_BITS and spec.activations]
    return plan.with_widths(dict.fromkeys((name for name in wide if name not in depthwise), NARROW_BITS))
