"""`lighten sensitivity` from the command line to its page, and whatever is wrong with its input."""

import json
import sys

import pytest
from workplace import make_workplace

import lighten
from lighten.cli.main import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(make_workplace(tmp_path))
    yield tmp_path
    sys.modules.pop("nets", None)


def sensitivity(*options: str, data: str = "data.npz") -> int:
    return main(["sensitivity", "nets:build", "--weights", "weights.safetensors", "--data", data, "--threads", "1", *options])


def test_every_layer_is_tried_at_every_width_and_its_file_timed(place, capsys):
    assert sensitivity("--json", "--out", "shown") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((place / "shown" / "sensitivity.json").read_text())
    assert (place / "shown" / "sensitivity.html").read_text().startswith("<!doctype html>")
    assert [layer["site"] for layer in found["layers"]] == ["0", "2", "6"]
    assert [layer["weights"] for layer in found["layers"]] == [3 * 32 * 9, 32 * 32 * 9, 32 * 4]
    for layer in found["layers"]:
        assert [width["bits"] for width in layer["widths"]] == [8, 4, 2]
        assert [width["bytes"] for width in layer["widths"]] == [layer["weights"] * bits // 8 for bits in (8, 4, 2)]
        noise = [width["noise"] for width in layer["widths"]]
        assert noise == sorted(noise)
        # a bit is 6 dB; at few bits the grid is clipped where that errs least, so a little less is lost
        weight_db = [width["weight_sqnr_db"] for width in layer["widths"]]
        assert 20 < weight_db[0] - weight_db[1] < 28
    # in float the middle layer's weights take 3 bytes more each, its scales none
    middle = found["layers"][1]
    assert middle["float_cost_bytes"] == pytest.approx(3 * middle["weights"], rel=0.05)
    assert found["all_in_8_bits"]["latency_ms_p50"] > 0


def test_without_timing_no_file_is_written(place, capsys):
    assert sensitivity("--no-time", "--quiet") == 0
    shown = capsys.readouterr()
    assert "writing files" not in shown.err
    assert " ms" not in shown.out
    made = {path.name for path in place.iterdir()} - {"__pycache__"}
    assert made == {"data.npz", "nets.py", "weights.safetensors"}


def test_two_runs_find_the_same(place):
    model = lighten.load("nets:build", weights="weights.safetensors")
    one, two = (lighten.sensitivity(model, "data.npz", target=lighten.Target(threads=1), timed=False) for _ in range(2))
    assert one["layers"] == two["layers"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "onnxruntim"], "Did you mean 'onnxruntime'?"),
        (["--seed", "-1"], "'-1' is not a seed"),
        (["--out", ""], "--out is empty"),
        (["--out", "data.npz"], "data.npz"),
        (["--threads", "0"], "'0' is not an integer from 1 to 1024"),
        (["--no-tiem"], "Did you mean --no-time?"),
    ],
)
def test_a_wrong_option_is_told_before_the_model_is_read(place, capsys, monkeypatch, options, said):
    monkeypatch.setattr("lighten.read.source.load", None)
    assert sensitivity(*options) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert shown.err.count("\n") == 1


def test_data_that_does_not_exist_is_told_in_one_line(place, capsys):
    assert sensitivity("--quiet", data="gone.npz") == 2
    assert capsys.readouterr().err.startswith("lighten: error: The data gone.npz does not exist")


def test_a_network_without_layers_to_quantize_is_refused(place):
    import torch
    from torch import nn

    with pytest.raises(lighten.UnfitError, match="no linear layer or convolution"):
        lighten.sensitivity(lighten.load(nn.Sequential(nn.ReLU(), nn.Flatten()), example=torch.zeros(2, 3, 16, 16)), "data.npz")
