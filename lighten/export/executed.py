"""What runtimes execute, measured: `lighten.targets` asks each, and what it said is kept beside this file.

For each kind of layer and each form of it: the number format that the runtime computes it in, "int8", "int4", "fp32" and so
on; "fused" where nothing of the layer is left by itself; "refused" where it cannot be written. Where the format is float
although int8 was asked for, a plan must not ask.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

FILE = "executed.json"
FLOAT = "fp32"


@cache
def executed() -> Mapping[str, Any]:
    """By runtime: {"version", "device", "kinds": {"conv2d": {"float32": "fp32", "int8": "int8"}}}."""
    return dict(json.loads(resources.files("lighten.export").joinpath(FILE).read_text(encoding="utf-8")))


def computes_in_float(runtime: str, kind: str, form: str) -> bool:
    """True when the runtime is known to compute this form of this kind of layer in float. form: a key of `targets.FORMS`."""
    found = executed().get(runtime, {}).get("kinds", {}).get(kind, {})
    return bool(found.get(form) == FLOAT)
