"""lighten pack and lighten unpack on the command line."""

import json

import pytest
from packing import files, write_folder

from lighten.cli.main import main

pytest.importorskip("constriction")


def test_a_folder_goes_through_one_file(tmp_path, capsys):
    folder = write_folder(tmp_path / "result")
    assert main(["pack", str(folder), str(tmp_path / "model.lighten")]) == 0
    said = capsys.readouterr().out
    assert f"{(tmp_path / 'model.lighten').stat().st_size:,} bytes for " in said
    assert "Left out (--all keeps them): structure.json, weights.safetensors, report.json, report.html" in said
    assert main(["unpack", str(tmp_path / "model.lighten"), str(tmp_path / "out")]) == 0
    assert "model.onnx" in capsys.readouterr().out.split()
    assert (tmp_path / "out" / "model.onnx").read_bytes() == files()["model.onnx"]


def test_all_and_json(tmp_path, capsys):
    folder = write_folder(tmp_path / "result")
    assert main(["pack", str(folder), str(tmp_path / "model.lighten"), "--all", "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert set(packed["files"]) == {*files(), "manifest.json"}
    assert packed["left_out"] == []
    assert main(["unpack", str(tmp_path / "model.lighten"), str(tmp_path / "out"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == set(packed["files"])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["pack", "missing", "model.lighten"], "missing has no manifest.json"),
        (["unpack", "missing", "out"], "Cannot read missing"),
        (["unpack", "other", "out"], "no archive of lighten"),
        (["unpack", "model.lighten", "out", "--max-size", "1kB"], "0.0 MB are allowed"),
        (["unpack", "model.lighten", "out", "--max-size", "much"], "'much' is not a size"),
        (["unpack", "model.lighten", "model.lighten"], "Cannot write model.lighten"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_bytes(b"not an archive, but long enough to be one")
    main(["pack", str(write_folder(tmp_path / "result")), "model.lighten"])
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
