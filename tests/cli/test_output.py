"""The result reaches standard output whole, or an error says why not."""

import io
import json
import os
import subprocess
import sys

import pytest

from lighten.cli.output import as_json, show
from lighten.core.errors import InputError


def test_a_text_is_shown_with_its_line_end():
    stream = io.StringIO()
    show("a \u00b5", stream)
    assert stream.getvalue() == "a \u00b5\n"


def test_a_sign_that_the_stream_cannot_write_becomes_an_escape():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii", newline="\n")
    show("\u00b5 \udce9", stream)
    assert content.getvalue() == b"\\xb5 \\udce9\n"


def test_json_of_a_file_name_that_is_not_utf_8_reads_back_unchanged():
    assert json.loads(as_json({"source": "\udce9.npz"})) == {"source": "\udce9.npz"}


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        show("seen enough", stream)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_a_full_disk_behind_standard_output_is_said():
    with open("/dev/full", "w", encoding="utf-8") as stream, pytest.raises(InputError, match="standard output: No space left"):
        show("the result", stream)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_nothing_is_left_for_the_interpreter_to_fail_on_at_its_end():
    code = """
import sys
from lighten.cli import output
from lighten.core.errors import InputError
try:
    output.show("the result", sys.stdout)
except InputError as error:
    sys.exit(2)
"""
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "")
