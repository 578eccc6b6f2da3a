"""What the user's module does when it is imported or called."""

import sys

import pytest

from lighten.core.errors import InputError
from lighten.engine.importing import call

MODULES = {
    "leaving_at_once": "raise SystemExit(3)",
    "leaving_later": "import sys\n\n\ndef build():\n    sys.exit('no checkpoint here')\n",
    "staying": "def build():\n    return 5\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_callable_gives_its_result_and_the_path_is_as_before():
    before = list(sys.path)
    assert call("staying:build") == 5
    assert sys.path == before


@pytest.mark.parametrize(("name", "code"), [("leaving_at_once", "3"), ("leaving_later", "no checkpoint here")])
def test_a_module_that_ends_the_program_is_the_callers_error(name, code):
    before = list(sys.path)
    with pytest.raises(InputError, match=f"{name}:build ended the program: exit {code}"):
        call(f"{name}:build")
    assert sys.path == before
