"""`--data synthetic`: examples from the network itself."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import encoder, images, residual
from torch import Tensor, nn

import lighten
import lighten.compress
from lighten.cli.main import main
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.data.source import calibrated_on, load_data
from lighten.data.synthetic import synthetic_count


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("synthetic:32", model=residual())


def test_half_calibrates_and_half_is_scored_by_agreement(data) -> None:
    assert (data.source, data.metric, data.task) == ("synthetic:32", "agreement", "classification")
    assert (len(data.train), len(data.test)) == (16, 16)
    (batch,) = data.test.batches(16)
    assert batch.inputs[0].shape == (16, 3, 16, 16)
    assert batch.target is None


def test_a_reader_is_told_what_the_score_is_worth(data) -> None:
    (note,) = data.notes
    assert note.startswith("Scored on inputs synthesized from the statistics of 1 batch norms (mismatch 0.")
    assert note.endswith("score those before you rely on it.")


def test_the_digest_is_of_the_inputs(data) -> None:
    again, other = (load_data("synthetic:32", model=residual(), seed=seed) for seed in (0, 1))
    assert data.digest == again.digest != other.digest


@pytest.mark.slow
def test_the_whole_job_runs_without_data_and_says_so(data) -> None:
    result = lighten.compress(residual(), data, target=lighten.Target(threads=1))
    assert result.report["data"]["source"] == "synthetic:32"
    assert data.notes[0] in result.report["notes"]
    assert result.report["drop"] <= 0.2


def test_real_data_is_scored_and_synthetic_inputs_calibrate() -> None:
    real = images(12)
    made = calibrated_on(real, "synthetic:24", model=residual())
    assert made.test is real.test
    assert (len(made.train), made.metric, made.digest) == (24, real.metric, real.digest)
    assert made.calibration_digest
    assert made.notes[0].startswith("Calibrated on inputs synthesized")


def test_other_real_data_calibrates_too() -> None:
    real, other = images(12), [(torch.randn(5, 3, 16, 16), torch.arange(5))]
    made = calibrated_on(real, other, model=residual())
    assert (len(made.train), made.notes) == (5, ("Calibrated on Python batches.",))


def test_a_probe_is_not_calibrated_on_other_data() -> None:
    with pytest.raises(InputError, match="probe is fitted"):
        calibrated_on(replace(images(), metric="probe"), "synthetic", model=residual())


@pytest.mark.parametrize(("source", "count"), [("synthetic", 0), ("synthetic:64", 64), ("synth", None), ([], None)])
def test_the_name_and_its_number(source, count) -> None:
    assert synthetic_count(source) == count


@pytest.mark.parametrize(
    "source", ["synthetic:", "synthetic:x", "synthetic:-4", "synthetic:15", "synthetic:1.5", "synthetic:²"]
)
def test_a_bad_number_is_refused(source) -> None:
    with pytest.raises(InputError, match="N must be a whole number of 16 or more"):
        synthetic_count(source)


def test_a_file_of_that_name_is_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    assert synthetic_count("synthetic") is None


def test_networks_that_keep_no_record_of_their_inputs_are_refused() -> None:
    plain = lighten.load(nn.Linear(4, 3), example=torch.zeros(2, 4))
    with pytest.raises(InputError, match="gives no synthetic data: The network has no batch norm .* Give real inputs"):
        load_data("synthetic", model=plain)
    with pytest.raises(InputError, match="gives no synthetic data: Only real-valued inputs"):
        load_data("synthetic", model=encoder())
    saved = replace(residual(), origin=Origin("saved", "folder"))
    with pytest.raises(InputError, match="batch norms are folded"):
        load_data("synthetic", model=saved)


class Writer(nn.Module):
    """A language model of one table: what follows depends on the last token alone."""

    def __init__(self, vocabulary: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids)


def test_a_language_model_writes_its_own_texts() -> None:
    torch.manual_seed(0)
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    dims = {0: "batch", 1: "tokens"}
    origin = Origin("module", "writer", task="language-model", dynamic=(dims, dims))
    model = Model(Writer().eval(), example, origin, ("input_ids", "attention_mask"))
    made = load_data("synthetic", model=model)
    assert (made.metric, len(made.train), len(made.test)) == ("perplexity", 16, 16)
    (batch,) = made.test.batches(16)
    assert [value.shape for value in batch.inputs] == [(16, 64), (16, 64)]
    fixed = replace(model, origin=replace(origin, dynamic=({0: "batch"}, {0: "batch"})))
    assert next(iter(load_data("synthetic:16", model=fixed).test.batches(4))).inputs[0].shape == (4, 8)


TINY = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval(), torch.zeros(2, 1, 5, 5)


def plain():
    return nn.Linear(4, 3), torch.zeros(2, 4)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `lighten compress` in a folder with networks, the main job replaced; gives exit code and the data it got."""
    (tmp_path / "tiny_nets.py").write_text(TINY)
    np.savez(tmp_path / "data.npz", x=np.zeros((12, 1, 5, 5), np.float32), y=np.arange(12) % 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[Data] = []

    def compressed(model, data, **given):
        seen.append(data)
        raise InputError("enough")

    monkeypatch.setattr(sys.modules["lighten.compress"], "compress", compressed)

    def run(model: str, *options: str) -> tuple[int, list[Data]]:
        return main(["compress", model, *options, "--out", "out", "--quiet"]), seen

    return run


def test_the_command_line_calibrates_on_synthetic_inputs_and_scores_the_data(command) -> None:
    _, (data,) = command("tiny_nets:build", "--data", "data.npz", "--calibration", "synthetic:16")
    assert (data.source, data.metric, len(data.train), len(data.test)) == ("data.npz", "accuracy", 16, 9)


def test_the_command_line_goes_without_data(command) -> None:
    _, (data,) = command("tiny_nets:build", "--data", "synthetic:16")
    assert (data.source, data.metric, len(data.train), len(data.test)) == ("synthetic:16", "agreement", 8, 8)


def test_the_command_line_says_why_there_is_no_synthetic_data(command, capsys) -> None:
    code, seen = command("tiny_nets:plain", "--data", "synthetic")
    assert (code, seen) == (2, [])
    assert "tiny_nets:plain gives no synthetic data: The network has no batch norm" in capsys.readouterr().err
