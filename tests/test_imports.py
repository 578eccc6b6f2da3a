"""Importing: every module can be, and `import lighten` brings nothing that is not needed yet."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import lighten

MODULES = ["lighten", *(module.name for module in pkgutil.walk_packages(lighten.__path__, "lighten."))]
OPTIONAL = ("transformers", "tokenizers", "PIL", "scipy", "sklearn", "onnx", "onnxscript", "onnxruntime", "torchao", "rich")
MAX_SECONDS = 0.3


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("name", MODULES)
def test_the_module_imports(name):
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize(
    "use", ["import lighten", "import lighten; lighten.compress, lighten.load, lighten.load_data, lighten.inspect"]
)
def test_no_optional_package_is_loaded_before_it_is_needed(use):
    loaded = run(f"{use}; import sys; print([name for name in {OPTIONAL!r} if name in sys.modules])")
    assert loaded == "[]"


def test_every_public_name_together_loads_in_a_third_of_a_second_on_top_of_torch():
    code = """
import time

import torch

started = time.process_time()
import lighten
for name in lighten.__all__:
    getattr(lighten, name)
print(time.process_time() - started)
"""
    # of the processor, the fastest of three: other work on the machine only ever adds time
    assert min(float(run(code)) for _ in range(3)) < MAX_SECONDS


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="compres"):
        lighten.compres  # noqa: B018
