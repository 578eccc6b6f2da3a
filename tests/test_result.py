"""A result that cannot be written says where and why."""

import errno
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import vit
from networks import images, residual

import lighten.result
from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.reclass import Reclassed, as_class
from lighten.analyze.trace import trace, traced
from lighten.core.errors import InputError, UnfitError
from lighten.core.method import Compressed
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe
from lighten.core.run import Run
from lighten.methods.quantize.integer import Quantize
from lighten.result import Result

REPORT = ("report.json", "report.html")


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


@pytest.fixture
def pruned(tmp_path, monkeypatch):
    """Of a Hugging Face folder, with half of its neurons; the report is not what is tested."""
    model = lighten.load(vit(tmp_path / "vit"))
    graph = traced(model)
    coupling = couple(graph)
    keep = {group.name: torch.arange(group.size // 2) for group in coupling.groups if group.kind == "neuron"}
    smaller = replace(model, module=cut(graph, coupling, keep))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(lighten.result, "write", lambda report, folder: [(folder / name).touch() for name in REPORT])
    facts = ("versions", "seed", "runtime", "threads", "batch", "metric", "device", "data")
    report = {**dict.fromkeys(facts), "interrupted": False}
    compressed = Compressed(trace(smaller).module, Plan(), smaller, {})
    return Result(report, compressed, Recipe(), b"onnx", as_class(model.module, smaller.module, (pixels,)))


def test_a_pruned_folder_of_transformers_is_saved_as_one(pruned, tmp_path):
    folder = pruned.save(tmp_path / "out")
    files = ["pretrained/config.json", "pretrained/model.safetensors", "pretrained/preprocessor_config.json"]
    assert sorted(name for name in json.loads((folder / "manifest.json").read_text())["files"] if "/" in name) == files
    again = lighten.load(folder / "pretrained")
    assert again.module.network.config.intermediate_size == 16
    assert type(again.module.network) is type(pruned.module())
    value = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # the same operators on the same numbers: the last bits of float32 at most
        torch.testing.assert_close(again.module(value), pruned.compressed.model.module(value), rtol=1e-5, atol=1e-5)


def test_a_later_result_that_no_config_describes_leaves_no_earlier_one_behind(pruned, tmp_path):
    folder = pruned.save(tmp_path / "out")
    own = folder / "pretrained" / "mine.txt"
    own.write_text("of the user")
    replace(pruned, reclassed=Reclassed(pruned.reclassed.module, None, "No number of the config sets it.")).save(folder)
    assert list((folder / "pretrained").iterdir()) == [own]


def test_a_result_is_an_instance_of_its_class_or_says_why_not(pruned, result):
    assert type(pruned.module()).__name__ == "ViTForImageClassification"
    assert type(result.module()) is type(residual().module)
    with pytest.raises(UnfitError, match=r"ViT has a size in its code\."):
        replace(pruned, reclassed=Reclassed(None, None, "ViT has a size in its code.")).module()
