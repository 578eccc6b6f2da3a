"""lighten forecast: what it prints, its exit codes, and what it refuses."""

import json

import pytest

from lighten.cli import quantities
from lighten.cli.main import main
from lighten.core.errors import InputError


def test_a_grid_that_is_given_is_forecast_as_json(capsys):
    code = main(["forecast", "--params", "7B", "--gpus", "8", "--data", "8", "--batch", "64", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["distributed"]["data"] == 8
    assert found["fits"]
    assert found["is_estimate"]
    # sixteen bytes a parameter over eight ranks
    assert found["state_bytes"] == pytest.approx(16 * found["params"] / 8, rel=1e-9)
    assert 0 < found["shortest_s"] <= found["longest_s"]


def test_the_fastest_grid_is_searched_and_shown_as_a_table(capsys):
    assert main(["forecast", "--params", "7B", "--gpus", "64", "--link", "50GB/s", "--memory", "80GB"]) == 0
    out = capsys.readouterr().out
    assert "parameters, gradients, Adam" in out
    assert "nothing was run" in out


def test_a_grid_that_does_not_fit_ends_with_3_and_no_grid_at_all_with_2(capsys):
    assert main(["forecast", "--params", "70B", "--gpus", "8", "--data", "8"]) == 3
    assert "It does not fit." in capsys.readouterr().out
    assert main(["forecast", "--params", "405B", "--gpus", "8"]) == 2
    assert "do not fit" in capsys.readouterr().err


def test_a_model_or_a_count_is_needed_and_not_both(capsys):
    assert main(["forecast", "--gpus", "8"]) == 2
    assert "Give a MODEL or --params" in capsys.readouterr().err


def test_quantities_of_machines():
    assert quantities.count("7B") == 7_000_000_000
    assert quantities.bytes_per_s("50GB/s") == 50e9
    assert quantities.flop_per_s("400TFLOP/s") == 400e12
    for wrong in ("50GB", "50", "400Gbit/s", "/s"):
        with pytest.raises(InputError, match="is not a speed of a link"):
            quantities.bytes_per_s(wrong)
    with pytest.raises(InputError, match="is not a count"):
        quantities.count("7GB")
    with pytest.raises(InputError, match="is not a speed"):
        quantities.flop_per_s("400")
