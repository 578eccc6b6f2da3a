"""What was mistyped is told first: neither model nor data are read before."""

import sys

import pytest

from lighten.cli.main import main

COMPRESS = ("compress", "gone_model", "--data", "gone_data", "--out", "out")
COMPARE = ("compare", "gone_model", "gone_model", "--data", "gone_data")


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (COMPRESS, ("--target", "onnxruntme"), "Unknown target 'onnxruntme'. Did you mean 'onnxruntime'?"),
        (COMPRESS, ("--metric", "acuracy"), "Unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        (COMPRESS, ("--recipe", "method.yaml"), "Unknown method 'quantise'. Did you mean 'quantize'?"),
        (COMPRESS, ("--recipe", "knob.yaml"), "Unknown knob of quantize 'bts'. Did you mean 'bits'?"),
        (COMPARE, ("--metric", "acuracy"), "Unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        (COMPRESS, ("--recipe", "trains.yaml", "--tensorboard", "curves"), "pip install 'lighten[tensorboard]'"),
        (COMPRESS, (), "gone_model does not exist"),
    ],
)
def test_a_mistyped_name_is_told_before_anything_is_read(command, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "method.yaml").write_text("steps: [quantise]")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    (tmp_path / "trains.yaml").write_text("steps: [finetune]")
    (tmp_path / "knob.yaml").write_text("steps: [{quantize: {bts: 8}}]")
    assert main([*command, *options, "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
