"""A variant of a plan whose weights have 7 bits, for machines on which products of 8 bits saturate or run slower.

Depthwise convolutions keep 8: their kernels add in 32 bits everywhere, and they bear rounding worst.
"""

from collections.abc import Sequence
from dataclasses import replace

from lighten.core.graph import Site
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.export.saturation import NARROW_BITS


def narrowed(plan: Plan, graph_sites: Sequence[Site]) -> Plan:
    """The plan with 7-bit weights wherever a site computes in integers with 8-bit ones."""
    depthwise = {site.name for site in graph_sites if site.depthwise}
    changes = {
        name: replace(spec, weights=NARROW_BITS)
        for name, spec in plan.items()
        if type(spec) is Quant and spec.weights == 8 and spec.activations is not None and name not in depthwise
    }
    return plan.replace(changes)
