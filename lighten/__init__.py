"""lighten makes a trained neural network small and fast, and proves the result on the exported file.

    model = lighten.load("checkpoints/classifier")
    result = lighten.compress(model, "images/", budget=lighten.Budget(max_drop=0.01))
    result.save("classifier-int8")

The names below are the whole public interface. Each is imported at its first use, so `import lighten` costs nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighten.analyze.cost import inspect
    from lighten.compare import compare
    from lighten.compress import compress
    from lighten.core.cost import Budget, Target
    from lighten.core.data import Data
    from lighten.core.errors import InputError, LightenError, ParityError, UnfitError
    from lighten.core.model import Model, Origin
    from lighten.core.plan import Plan
    from lighten.core.recipe import Recipe
    from lighten.core.run import Run
    from lighten.core.spec import Keep, Quant
    from lighten.data.source import load_data
    from lighten.read.source import load
    from lighten.result import Result
    from lighten.sensitivity import sensitivity
    from lighten.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Data",
    "InputError",
    "Keep",
    "LightenError",
    "Model",
    "Origin",
    "ParityError",
    "Plan",
    "Quant",
    "Recipe",
    "Result",
    "Run",
    "Target",
    "UnfitError",
    "__version__",
    "compare",
    "compress",
    "inspect",
    "load",
    "load_data",
    "sensitivity",
    "verify",
]

_HOMES = {
    "Budget": "lighten.core.cost",
    "Data": "lighten.core.data",
    "InputError": "lighten.core.errors",
    "Keep": "lighten.core.spec",
    "LightenError": "lighten.core.errors",
    "Model": "lighten.core.model",
    "Origin": "lighten.core.model",
    "ParityError": "lighten.core.errors",
    "Plan": "lighten.core.plan",
    "Quant": "lighten.core.spec",
    "Recipe": "lighten.core.recipe",
    "Result": "lighten.result",
    "Run": "lighten.core.run",
    "Target": "lighten.core.cost",
    "UnfitError": "lighten.core.errors",
    "compare": "lighten.compare",
    "compress": "lighten.compress",
    "inspect": "lighten.analyze.cost",
    "load": "lighten.read.source",
    "load_data": "lighten.data.source",
    "sensitivity": "lighten.sensitivity",
    "verify": "lighten.verify",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lighten' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Python binds a module to its package when it is first imported; `lighten.compress` must stay the function of that
    name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
