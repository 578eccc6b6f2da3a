"""A result that cannot be written says where and why."""

import errno
import tempfile
from pathlib import Path

import pytest
from networks import images, residual

import lighten.result
from lighten.analyze.trace import trace
from lighten.core.errors import InputError
from lighten.core.recipe import Recipe
from lighten.core.run import Run
from lighten.methods.quantize.integer import Quantize
from lighten.result import Result


@pytest.fixture
def result():
    model = residual()
    prepared = Quantize().prepare(model, trace(model), data=images(), run=Run())
    return Result({"interrupted": False}, prepared.realize(prepared.proposals()[0]), Recipe(), b"onnx")


def test_a_file_in_the_place_of_the_folder_is_named(result, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"Cannot write .*/out: "):
        result.save(tmp_path / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_folder_for_unfinished_work_that_cannot_be_made_is_named(number, result, tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(number, "as the system says it", str(Path(dir) / "tmp"))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(InputError, match=r"Cannot write .*/out/\.work/tmp: (the disk is full|the folder may not be written)"):
        result.save(tmp_path / "out")


def test_an_error_without_a_path_names_the_folder(result, tmp_path, monkeypatch):
    def fail(report, folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lighten.result, "write", fail)
    with pytest.raises(InputError, match=r"Cannot write .*/out: Input/output error"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()
