"""The table, the page and the files of `lighten sensitivity`."""

import json

import pytest
from report.test_page import HOSTILE, Reader

from lighten.report.sensitivity import JSON_NAME, page, table, write


def width(bits: int, harm: float, *, kl: bool = True) -> dict:
    return {
        "bits": bits,
        "bytes": 100 * bits,
        "weight_sqnr_db": 6.0 * bits,
        "output_sqnr_db": 5.0 * bits,
        "noise": harm,
        "kl": harm if kl else None,
        "loss_rise": 2 * harm if kl else None,
    }


def found(num_layers: int = 3, *, timed: bool = True, kl: bool = True) -> dict:
    """Layer n does n + 1 times the harm of the first."""
    layers = [
        {
            "site": f"stages.{number}.conv",
            "kind": "conv2d",
            "weights": 800,
            "macs": 10_000,
            "widths": [width(bits, (number + 1) * 2.0**-bits, kl=kl) for bits in (8, 4, 2)],
            **({"float_cost_bytes": 2_400 - number, "float_cost_ms": -0.25 * number, "noise_ms": 0.1} if timed else {}),
        }
        for number in range(num_layers)
    ]
    return {
        "model": {"source": "nets:build", "kind": "callable", "task": "image-classification"},
        "data": {"source": "data.npz", "num_examples": 40, "digest": ""},
        "harm": "kl" if kl else "noise",
        "widths": [8, 4, 2],
        "layers": layers,
        **({"all_in_8_bits": {"size_bytes": 9_000, "latency_ms_p50": 2.0, "noise_ms": 0.1}} if timed else {}),
        "runtime": "onnxruntime",
        "threads": 1,
        "batch": 1,
        "seed": 0,
        "device": "a processor, 2 cores",
        "versions": {},
        "seconds": 1.0,
    }


def test_the_table_lists_the_worst_layer_first_with_a_line_for_each_width() -> None:
    lines = table(found()).splitlines()
    assert [line.split()[0] for line in lines[1:10:3]] == ["stages.2.conv", "stages.1.conv", "stages.0.conv"]
    first = lines[1].split()
    assert first[:5] == ["stages.2.conv", "conv2d", "800", "8", "800"]
    assert first[5:9] == ["48.0", "dB", "40.0", "dB"]
    assert "11.7" in lines[1]  # 3 / 256 nats in millinats
    assert "+1.5000" in lines[3]  # the loss rise at 2 bits
    assert "+2.40 kB" in lines[1]
    assert "-0.5 ms" in lines[1]


def test_a_time_within_the_noise_is_no_time() -> None:
    assert "same time" in table(found())


def test_an_untimed_table_says_what_float_costs_by_its_bits() -> None:
    shown = table(found(timed=False))
    assert "+2.40 kB" in shown
    assert " ms" not in shown


def test_outputs_that_are_no_classes_are_told_by_their_noise() -> None:
    shown = table(found(kl=False))
    assert "noise on the output, thousandths" in shown
    assert "millinats" not in shown


@pytest.mark.parametrize("made", [found(), found(40), found(1, timed=False), found(kl=False)])
def test_the_page_is_closed_fetches_nothing_and_shows_every_layer(made) -> None:
    content = page(made)
    read = Reader(content)
    assert len(read.all("h1")) == 1
    assert all(layer["site"] in read.text for layer in made["layers"])
    assert "http" not in content.replace("http-equiv", "")
    assert content.count("<svg") == 1
    assert len(read.all("title")) == 1 + len(made["layers"])  # a tip for each place of the plot


def test_a_name_that_is_code_stays_a_name() -> None:
    made = found(1)
    made["layers"][0]["site"] = made["model"]["source"] = HOSTILE
    content = page(made)
    assert "<script>alert" not in content
    assert len(Reader(content).all("script")) == 1


def test_the_files_hold_the_same_figures(tmp_path) -> None:
    path = write(found(), tmp_path / "new")
    assert json.loads((tmp_path / "new" / JSON_NAME).read_text()) == json.loads(json.dumps(found()))
    assert path.read_text() == page(found())
