"""The house rules over the whole package, and the proof on planted sources that each rule can fail."""

import ast
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePath

import pytest
from house_rules import RULES, Module

import lighten

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "lighten").rglob("*.py"))
MAX_PUBLIC_NAMES = 24

# joined here so that this file does not name them either
HOSTS = [
    ".".join(parts)
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("crates", "io"), ("anaconda", "org"))
]
HOSTS += [".".join(parts) for parts in (("download", "pytorch", "org"), ("deb", "debian", "org"), ("index-url ", "http"))]

_LONG = "def f():\n    '''d'''\n" + "    x = 1\n" * 40
_DEEP = "def f():\n  for a in b:\n    if a:\n      while a:\n        with a:\n          pass\n"
_FLAT = "def f():\n  if a:\n    pass\n" + "  elif a:\n    pass\n" * 5
PLANTED = {
    "short_functions": (_LONG, "def f():\n    '''" + "d\n" * 60 + "'''\n" + "    x = 1\n" * 39),
    "shallow_nesting": (_DEEP, _FLAT),
    "few_parameters": ("def f(a, b, *, c, d, e, g, h): ...", "class C:\n  def f(self, a, b, *, c, d, e, g): ..."),
    "keywords_after_three": (
        "class C:\n  def f(self, a, b, c, d): ...",
        "class C:\n  def f(self, a, b, c, *, d): ...\ndef _f(a, b, c, d): ...",
    ),
    "short_files": ("x = 1\n" * 401, "x = 1\n" * 400),
    "no_assert": ("assert x", "'assert x'"),
    "no_bare_except": ("try:\n  f()\nexcept:\n  g()", "try:\n  f()\nexcept OSError:\n  g()"),
    "no_pickle": ("from pickle import loads", "from pickle import UnpicklingError"),
    "no_print": ("print(1)", "x = 'print(1)'"),
    "module_docstring": ("x = 1", "'''What it is.'''\nx = 1"),
    "public_docstrings": ("def f(): ...", "def f():\n  '''Gives 1.'''\ndef _g(): ...\nclass C:\n  '''A thing.'''"),
}
ALSO_REFUSED = {
    "no_pickle": [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "import dill as d",
    ],
    "no_bare_except": ["try:\n  f()\nexcept OSError:\n  pass"],
}


def violations(rule: str, source: str, path: str = "lighten/core/planted.py") -> list[str]:
    check = next(candidate for candidate in RULES if candidate.__name__ == rule)
    return list(check(Module(PurePath(path), source)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    broken = [line for path in PACKAGE for line in rule(Module(path.relative_to(ROOT), path.read_text(encoding="utf-8")))]
    assert not broken, "\n".join([rule.__doc__ or "", *broken])


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_found_and_its_correct_neighbour_is_not(rule):
    wrong, right = PLANTED[rule]
    assert len(violations(rule, wrong)) == 1
    assert violations(rule, right) == []


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, sources in ALSO_REFUSED.items() for source in sources])
def test_further_forms_of_a_violation_are_found(rule, source):
    assert len(violations(rule, source)) == 1


def test_names_that_say_nothing_are_found_in_files_and_folders():
    assert len(violations("telling_names", "", path="lighten/core/utils.py")) == 1
    assert len(violations("telling_names", "", path="lighten/common/_base.py")) == 2
    assert violations("telling_names", "", path="lighten/core/baseline.py") == []


def test_the_command_line_may_print():
    assert violations("no_print", "print(1)", path="lighten/cli/main.py") == []


def test_every_rule_has_a_planted_violation():
    assert {rule.__name__ for rule in RULES} == {*PLANTED, "telling_names"}


def test_no_tracked_file_names_the_host_of_a_package_registry():
    assert named_hosts(tracked_files()) == []


def test_the_name_of_a_registry_is_found_where_it_is_planted(tmp_path):
    planted = tmp_path / "README.md"
    planted.write_text(f"Install from https://{HOSTS[0]}/simple.\n", encoding="utf-8")
    assert named_hosts([planted]) == [f"{planted}: {HOSTS[0]}"]


def test_contributing_says_what_every_file_at_the_top_is_for():
    names = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    described = set(re.findall(r"^\| `([^`]+?)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert names - described == {"CONTRIBUTING.md"}


def test_the_public_names_are_few_exact_and_importable():
    assert len(lighten.__all__) <= MAX_PUBLIC_NAMES
    assert sorted(lighten.__all__) == lighten.__all__
    values = {name: getattr(lighten, name) for name in dir(lighten) if not name.startswith("_")}
    public = {name for name, value in values.items() if getattr(value, "__module__", "").startswith("lighten.")}
    assert public | {"__version__"} == set(lighten.__all__)


def test_type_checkers_and_the_interpreter_take_public_names_from_the_same_modules():
    tree = ast.parse((ROOT / "lighten" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    for_checkers = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert for_checkers == lighten._HOMES


@pytest.mark.parametrize("name", ["compare", "compress", "sensitivity", "verify"])
def test_the_imported_module_does_not_hide_the_function_of_its_name(name):
    module = importlib.import_module(f"lighten.{name}")
    assert getattr(lighten, name) is getattr(module, name)


def tracked_files() -> list[Path]:
    """What git tracks, and what is new and not ignored."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("Only a git checkout knows which files belong to it.")
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def named_hosts(paths: Iterable[Path]) -> list[str]:
    found = []
    for path in paths:
        content = path.read_bytes()
        text = "" if b"\0" in content else content.decode("utf-8", errors="replace").lower()
        found += [f"{path}: {host}" for host in HOSTS if host in text]
    return found
