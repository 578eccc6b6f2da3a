"""A plan asks for integers only where the target computes in integers: what is known of it decides before a file is written."""

from collections.abc import Callable, Sequence

from lighten.core.graph import Site
from lighten.core.method import Prepared
from lighten.core.plan import Plan
from lighten.core.spec import Quant, Spec

Known = Callable[[str, str], bool]
"""(kind, form) -> True when the runtime is known to compute this form of this kind of layer in float."""


def executable(plan: Plan, sites: Sequence[Site], prepared: Prepared, *, in_float: Known) -> Plan:
    """The plan with every site that the runtime would compute in float softened, until it would not, or is float."""
    by_name = {site.name: site for site in sites}
    return plan.replace({name: _softened(by_name[name], spec, prepared, in_float) for name, spec in plan.items()})


def _softened(site: Site, spec: Spec, prepared: Prepared, in_float: Known) -> Spec:
    while type(spec) is Quant and spec.activations is not None and in_float(_kind(site), _form(spec)):
        spec = prepared.gentler(site.name, spec)
    return spec


def _kind(site: Site) -> str:
    return f"depthwise {site.kind}" if site.depthwise else site.kind


def _form(spec: Quant) -> str:
    return "int8 dynamic" if spec.dynamic else "int8"
