"""Whatever is wrong with the input: one line on standard error, exit code 2, no traceback, nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from workplace import make_workplace

import lighten.engine.files
from lighten.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Good files, and next to them one of each bad kind."""
    folder = make_workplace(tmp_path_factory.mktemp("place"))
    good = dict(np.load(folder / "data.npz"))
    np.savez(folder / "shape.npz", x=good["x"][:, :, :8], y=good["y"])
    np.savez(folder / "nan.npz", x=np.full_like(good["x"], np.nan), y=good["y"])
    np.savez(folder / "label.npz", x=good["x"], y=np.where(np.arange(60) == 7, 4, good["y"]))
    np.savez(folder / "rows.npz", x=good["x"], y=good["y"][:-1])
    np.savez(folder / "names.npz", images=good["x"])
    np.savez(folder / "objects.npz", x=np.array([{}]), y=np.array([0]))
    (folder / "corrupt.npz").write_bytes((folder / "data.npz").read_bytes()[:5000])
    weights = load_file(folder / "weights.safetensors")
    (folder / "corrupt.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:1000])
    save_file({**weights, "2.weight": weights["2.weight"] * float("nan")}, folder / "nan.safetensors")
    save_file({**weights, "2.weight": weights["2.weight"][:, :3].contiguous()}, folder / "shape.safetensors")
    save_file({name: value for name, value in weights.items() if name != "2.bias"}, folder / "missing.safetensors")
    torch.save(SimpleNamespace(weights=1), folder / "pickled.pt")
    (folder / "corrupt.onnx").write_bytes(b"not a model")
    (folder / "file").write_text("")
    (folder / "leaving.py").write_text(LEAVING)
    (folder / "empty").mkdir()
    (folder / "class_folders" / "cat").mkdir(parents=True)
    (folder / "class_folders" / "cat" / "a.png").write_bytes(b"not an image")
    (folder / "huggingface").mkdir()
    (folder / "huggingface" / "config.json").write_text("{")
    (folder / "saved").mkdir()
    (folder / "saved" / "structure.json").write_text("{}")
    (folder / "no_manifest").mkdir()
    (folder / "bad_manifest").mkdir()
    (folder / "bad_manifest" / "manifest.json").write_text('{"files": {"model.onnx": 1}}')
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


LEAVING = """
import sys


def leave():
    sys.exit("no checkpoint here")
"""
LONG = "a" * 300
RECIPES = {
    "key": "stps: [quantize]",
    "method": "steps: [quantise]",
    "planned": "steps: [{factor: {rank: 5}}]",
    "knob": "steps: [{quantize: {bts: 8}}]",
    "value": "steps: [{quantize: {bits: 3}}]",
    "two": "steps: [quantize, quantize]",
    "ratio": "steps: [{prune: {macs: 2}}]",
    "score": "steps: [{prune: {macs: 0.5, score: tailor}}]",
    "reach": "steps: [{prune: {macs: 0.001}}]",
    "empty": "",
    "broken": "steps: [",
    "site": "sites: {head: keep}",
    "plan": "plan: {'22': {kind: keep}}",
    "spec": "plan: {'2': {kind: quantt}}",
}


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """Runs a command that must be refused, and returns what it said after `lighten: error: `."""
    monkeypatch.chdir(place)

    def run(*arguments: str) -> str:
        before = sorted(place.rglob("*"))
        code = main(list(arguments))
        shown = capsys.readouterr()
        assert code == 2, shown.err
        assert shown.out == ""
        assert shown.err.count("\n") == 1, shown.err
        assert shown.err.startswith("lighten: error: ")
        shutil.rmtree(place / "out" / ".work", ignore_errors=True)  # what a resumed run takes up
        if (place / "out").is_dir():
            assert os.listdir(place / "out") == []
            (place / "out").rmdir()
        assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == [
            path for path in before if "__pycache__" not in path.parts
        ]
        return shown.err.removeprefix("lighten: error: ").strip()

    yield run
    for name in ("nets", "leaving"):
        sys.modules.pop(name, None)


@pytest.fixture
def compress(refused):
    """The same for `lighten compress`, with everything good that is not named."""

    def run(model="nets:build", *options, data="data.npz", out="out") -> str:
        return refused("compress", model, "--data", data, "--out", out, "--quiet", "--threads", "1", *options)

    return run


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("corrupt.safetensors", "corrupt.safetensors is corrupt"),
        ("pickled.pt", "pickled.pt is refused"),
        ("corrupt.onnx", "corrupt.onnx is corrupt"),
        ("gone.safetensors", "gone.safetensors do not exist"),
        ("shape.safetensors", "2.weight has shape (32, 3, 3, 3), the network's is (32, 32, 3, 3)"),
        ("missing.safetensors", "does not fit the network: missing 2.bias"),
        ("nan.safetensors", "The weights hold NaN or infinity: 2.weight"),
    ],
)
def test_weights_that_cannot_be_used(compress, weights, said):
    assert said in compress("nets:build", "--weights", weights).replace("is refused: it is corrupt", "is corrupt")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nets:with_nan", "The weights hold NaN or infinity: 2.weight"),
        ("nets:without_example", "Sequential has no example of its inputs"),
        ("nets:failing", "nets:failing failed: RuntimeError: the checkpoint is elsewhere"),
        ("nets:biuld", "biuld"),
        ("ntes:build", "No module named 'ntes'"),
        ("nets:no_batches", "nets:no_batches gave a list"),
        ("fil", "fil does not exist. Did you mean file?"),
        ("file", "a plain file is not a model"),
        ("weights.safetensors", "weights.safetensors holds weights only"),
        ("corrupt.onnx", "corrupt.onnx is not an ONNX file, or is damaged"),
        ("empty", "empty has neither structure.json nor config.json"),
        ("huggingface", "huggingface"),
        ("saved", "saved cannot be read"),
        ("leaving:leave", "ended the program: exit no checkpoint here"),
        (LONG, "File name too long"),
    ],
)
def test_a_model_that_cannot_be_read(compress, model, said):
    assert said in compress(model)


def test_a_model_that_cannot_be_traced_is_named_with_module_and_line(compress, place):
    said = compress("nets:branching")
    line = 1 + (place / "nets.py").read_text().splitlines().index("        if x.sum() > 0:  # a branch on a value")
    assert "Module '1' (Gate) cannot be traced" in said
    assert f"nets.py:{line}" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("gone.npz", "The data gone.npz does not exist"),
        ("corrupt.npz", "corrupt.npz is not a readable .npz"),
        ("objects.npz", "objects.npz"),
        ("shape.npz", "an example of x has shape (3, 8, 16), the model takes (3, 16, 16)"),
        ("nan.npz", "60 of 60 rows of x hold NaN or infinity"),
        ("label.npz", "out of range: the model has 4 outputs. Labels are 0 to 3"),
        ("rows.npz", "x has 60 rows, y has 59"),
        ("names.npz", "names.npz holds images"),
        ("empty", "empty holds no image and no .wav file"),
        ("class_folders", "class_folders"),
        ("file", "file"),
        ("nets:no_batches", "The data has no batch"),
        ("nets:failing", "the checkpoint is elsewhere"),
        ("leaving:leave", "ended the program: exit no checkpoint here"),
        (LONG, "File name too long"),
    ],
)
def test_data_that_cannot_be_used(compress, data, said):
    assert said in compress(data=data)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("key", "Unknown recipe key 'stps'. Did you mean 'steps'?"),
        ("method", "Unknown method 'quantise'. Did you mean 'quantize'?"),
        ("planned", "The method 'factor' is not available in this version. Available: distill, finetune, keep, prune, qat"),
        ("knob", "Unknown knob of quantize 'bts'. Did you mean 'bits'?"),
        ("value", "bits must be one of"),
        ("two", "quantize must be the last step"),
        ("ratio", "prune: macs must be in (0, 1). Got 2."),
        ("score", "Unknown score 'tailor'. Did you mean 'taylor'?"),
        ("reach", "prune: macs 0.001 cannot be reached; the least is"),
        ("empty", "A recipe is a mapping with `steps`"),
        ("broken", "The recipe is not valid YAML"),
        ("site", "Unknown site 'head'"),
        ("plan", "Unknown site '22'"),
        ("spec", "quantt"),
        ("gone", "Cannot read the recipe gone.yaml"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out(compress, recipe, said):
    assert said in compress("nets:build", "--recipe", f"{recipe}.yaml")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("onnxruntme", "Unknown target 'onnxruntme'. Did you mean 'onnxruntime'?"),
        *(
            (
                name,
                f"The target '{name}' is not available in this version. Available: executorch, litert, onnxruntime, openvino.",
            )
            for name in ("gguf", "compressed_tensors")
        ),
    ],
)
def test_a_target_that_is_not_there(compress, target, said):
    assert said in compress("nets:build", "--target", target)


def test_a_target_that_is_not_installed_names_what_to_install(compress, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed. pip install onnxruntime" in compress()


@pytest.mark.parametrize(
    ("metric", "said"),
    [("acuracy", "Did you mean 'accuracy'?"), ("top_5", "top_5 needs more than 5 classes"), ("wer", "wer")],
)
def test_a_metric_that_does_not_suit(compress, metric, said):
    assert said in compress("nets:build", "--metric", metric)


def test_a_full_disk_is_refused_before_work(compress, monkeypatch):
    monkeypatch.setattr(lighten.engine.files.shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000_000))
    assert "1 MB are free, about 20 MB are needed" in compress()


def test_a_disk_that_fills_while_working_leaves_no_file(compress, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in compress()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file/out", "a part of the path is a file"),
        ("file", "Cannot write file"),
        ("/proc/out", "/proc/out"),
        (LONG, "too long"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_work(compress, out, said):
    assert said in compress("gone", out=out)


def test_the_models_own_folder_is_not_written_into(refused, place):
    # a saved folder is refused as soon as its files are read; here they are not even valid
    assert "saved" in refused("compress", "saved", "--data", "data.npz", "--out", "saved")
    assert os.listdir(place / "saved") == ["structure.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "gone"), "gone does not exist"),
        (("inspect", "saved"), "saved cannot be read"),
        (("inspect", "nets:branching"), "Module '1' (Gate) cannot be traced"),
        (("compare", "corrupt.onnx", "nets:build", "--data", "data.npz"), "ONNX Runtime cannot load corrupt.onnx"),
        (("compare", "nets:build", "gone.onnx", "--data", "data.npz"), "gone.onnx does not exist"),
        (("compare", "nets:build", "nets:build", "--data", "gone.npz"), "The data gone.npz does not exist"),
        (("verify", "gone"), "gone has no manifest.json"),
        (("verify", "no_manifest"), "no_manifest has no manifest.json"),
        (("verify", "bad_manifest"), "manifest.json is malformed"),
    ],
)
def test_the_other_commands_refuse_in_the_same_way(refused, arguments, said):
    assert said in refused(*arguments)


def test_a_few_bad_rows_are_left_out_and_named_in_the_report(place, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(place)
    arrays = dict(np.load("data.npz"))
    arrays["x"][[3, 5]] = np.nan
    np.savez(tmp_path / "few.npz", **arrays)
    out = tmp_path / "out"
    code = main(["compress", "nets:build", "--data", str(tmp_path / "few.npz"), "--out", str(out), "--json", "--threads", "1"])
    assert code == 0
    bad = json.loads(capsys.readouterr().out)["data"]["bad_rows"]
    assert [row["where"] for row in bad] == ["x[3]", "x[5]"]


def test_a_fresh_process_says_the_same(place):
    command = [sys.executable, "-m", "lighten.cli.main", "compress", "nets:branching", "--data", "data.npz", "--out", "out"]
    ran = subprocess.run(
        command, cwd=place, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("lighten: error: Module '1' (Gate) cannot be traced")
    assert not Path(place, "out").exists()
