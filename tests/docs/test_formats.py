"""The decoder in docs/formats.md reads what lighten packs: the description of the format is complete."""

import re
from pathlib import Path

import numpy as np
import pytest
from packing import files, onnx_bytes

from lighten.export.pack.kinds import KINDS
from lighten.export.pack.tensors import encode, layout_of
from lighten.export.pack.writing import archive_of

pytest.importorskip("constriction")

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture(scope="module")
def decoder():
    """The names that the longest block of Python defines."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(max(blocks, key=len), names)
    return names


def test_it_reads_a_whole_archive(decoder):
    packed = {**files(), "again.onnx": onnx_bytes()}
    assert decoder["read"](archive_of(packed)) == packed


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: KINDS[number].name)
def test_it_knows_every_type(decoder, number):
    kind, random = KINDS[number], np.random.default_rng(number)
    for shape in ((7,), (33, 41), (16, 8, 3, 3)):
        layout = layout_of(kind, shape)
        data = (random.integers(0, 5, layout.num_bytes) * (random.random(layout.num_bytes) < 0.4)).astype(np.uint8)
        part = encode(data.tobytes(), layout)
        assert decoder["Coder"](part).tensor(number, shape) == data.tobytes()


def patterns():
    """Tensors for which groups, thresholds, classes, values and planes pay."""
    random = np.random.default_rng(0)
    normal = random.normal(size=(64, 64)).astype(np.float32)
    strength = random.uniform(0.2, 4, (32, 16, 1, 1))
    return {
        "two of four": ("int8", random.permuted(np.tile([1, 2, 0, 0], (1500, 1)), axis=1).reshape(60, 100)),
        "blocks": ("int8", np.kron(random.random((32, 64)) < 0.3, np.ones((8, 1)))),
        "kernels": ("int4", np.round(random.normal(size=(32, 16, 3, 3)) * strength).clip(-8, 7)),
        "rows": ("uint8", random.random((64, 400)) < random.choice([0.02, 0.5], (64, 1))),
        "columns": ("int8", np.round(normal * random.choice([2, 20], 64))),
        "pruned floats": ("float32", np.where(np.abs(normal) > 1.5, normal, 0)),
        "masked floats": ("float32", normal * (np.abs(normal) > 1.5)),
        "shared floats": ("float32", np.round(normal * 3) / 7),
        "floats": ("float32", normal),
    }


@pytest.mark.parametrize("name", patterns())
def test_it_follows_every_context(decoder, name):
    kind_name, array = patterns()[name]
    number = next(number for number, kind in enumerate(KINDS) if kind.name == kind_name)
    if kind_name == "int4":
        code_N = array.astype(np.int8).ravel().view(np.uint8) & 15
        data = (code_N[::2] | code_N[1::2] << 4).tobytes()
    else:
        data = array.astype(kind_name).tobytes()
    part = encode(data, layout_of(KINDS[number], array.shape))
    assert len(part) < 0.9 * len(data)
    assert decoder["Coder"](part).tensor(number, array.shape) == data
