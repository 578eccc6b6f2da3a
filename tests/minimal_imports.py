"""Imports every module of the installed package in an environment that must hold no optional dependency (.ci/run).

Run from outside the repository's package: the script's own folder, not the repository, is on the path.
"""

import importlib
import importlib.util
import pkgutil
import sys

OPTIONAL = ("transformers", "tokenizers", "PIL", "scipy", "sklearn", "tensorboard", "constriction", "pytest")


def main() -> int:
    present = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"This environment holds optional packages, so the check would prove nothing: {', '.join(present)}.")
    package = importlib.import_module("lighten")
    names = ["lighten", *(module.name for module in pkgutil.walk_packages(package.__path__, "lighten."))]
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules imported from {package.__path__[0]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
