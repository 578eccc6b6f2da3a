"""Real ONNX files from public packages, against ONNX Runtime. Skipped where a package is not to be had."""

import pytest
import torch
from torch import nn

import lighten
from bench.formats.run import Random, first, reference
from bench.formats.sources import SOURCES

pytestmark = pytest.mark.slow
CLOSE = 1e-4  # what issue 8 asks for; outputs are probabilities, or a normalized text's states


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("name", SOURCES)
def test_it_gives_the_files_numbers(name, folder) -> None:
    source = SOURCES[name]
    try:
        path = source.path(folder)
    except lighten.InputError as error:
        pytest.skip(str(error))
    model = lighten.load(path, example=source.example)
    inputs = Random(model, source.highest).inputs[0]
    with torch.no_grad():
        found = first(model.module(*inputs))
    assert (found - reference(path, model, source, inputs)).abs().max() < CLOSE
    assert sum(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear | nn.LSTM) for layer in model.module.modules()) >= 3
