"""The documentation is true: its snippets run, its commands and flags exist, its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lighten.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HAS_CLI = importlib.util.find_spec("lighten.cli.main") is not None

_SNIPPET = re.compile(r"^```python runnable\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets() -> list[tuple[str, str]]:
    """(page and number, code) of every block that says it can be run."""
    return [
        (f"{name(page)}-{number}", code)
        for page in PAGES
        for number, code in enumerate(_SNIPPET.findall(page.read_text(encoding="utf-8")), 1)
    ]


def commands(text: str) -> list[list[str]]:
    """Every `lighten ...` line of the shell blocks, split into words."""
    lines = "\n".join(_SHELL.findall(text)).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split() for line in lines if line.startswith("lighten ")]


def help_of(*command: str) -> str:
    # a fixed width and no colour, so that no flag is cut in two
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    code = f"import sys; sys.argv = ['lighten', *{command!r}, '--help']; from lighten.cli.main import main; sys.exit(main())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("code", [code for _, code in snippets()], ids=[where for where, _ in snippets()])
def test_the_snippet_runs(code, tmp_path):
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_readme_has_a_snippet_and_every_command():
    text = README.read_text(encoding="utf-8")
    assert any(where.startswith("README.md") for where, _ in snippets())
    assert {words[1] for words in commands(text)} == set(COMMANDS)


@pytest.mark.skipif(not HAS_CLI, reason="the command line is not there")
def test_every_command_of_the_readme_takes_the_flags_it_is_shown_with():
    for words in commands(README.read_text(encoding="utf-8")):
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        offered = set(re.findall(r"--[a-z][a-z-]*", help_of(words[1])))
        assert flags <= offered, f"lighten {words[1]}: {sorted(flags - offered)}"


@pytest.mark.skipif(not HAS_CLI, reason="the command line is not there")
def test_every_flag_named_in_the_text_belongs_to_some_command():
    offered = {
        flag
        for command in ("inspect", "compress", "compare", "verify")
        for flag in re.findall(r"--[a-z][a-z-]*", help_of(command))
    }
    named = set(re.findall(r"`(--[a-z][a-z-]*)", README.read_text(encoding="utf-8")))
    assert named <= offered | {"--help"}


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z-]+)(?:`|\s+#)", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_to_a_file_leads_to_one(page):
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "//" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_dependency_has_its_line():
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8").lower()
    named = re.findall(r'^\s+"([a-z-]+)>=', metadata, re.MULTILINE) + re.findall(r'= \["([a-z-]+)>=', metadata)
    listed = {word for row in explained.lower().splitlines() if row.startswith("|") for word in re.split(r"[|,\s]+", row)}
    assert {"torch", "pillow", "ruff"} <= set(named) <= listed
