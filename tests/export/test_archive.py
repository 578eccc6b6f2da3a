import json
from dataclasses import replace

import pytest
import torch
from networks import encoder, frames, images, recurrent, residual, sentences

from lighten.analyze.trace import trace
from lighten.core.errors import InputError
from lighten.core.run import Run
from lighten.export.archive import write_archive
from lighten.methods.quantize.integer import Quantize
from lighten.read.saved import load_saved


def compressed(make, data):
    model = make()
    prepared = Quantize().prepare(model, trace(model), data=data, run=Run())
    return prepared.realize(prepared.proposals()[0])


@pytest.mark.parametrize(("make", "data"), [(residual, images), (encoder, sentences), (recurrent, frames)])
def test_a_saved_network_computes_bit_for_bit_what_it_did(make, data, tmp_path) -> None:
    data = data()
    made = compressed(make, data)
    write_archive(made, tmp_path)
    again = load_saved(tmp_path)
    assert torch.equal(again.module(*data.test.inputs), made.graph(*data.test.inputs))
    assert again.origin.dynamic == made.model.origin.dynamic
    assert again.input_names == made.model.input_names


def test_a_loaded_network_can_be_traced_again(tmp_path) -> None:
    write_archive(compressed(residual, images()), tmp_path)
    again = load_saved(tmp_path)
    torch.testing.assert_close(trace(again).module(*again.example), again.module(*again.example))


def test_an_operator_outside_the_known_ones_is_refused(tmp_path) -> None:
    write_archive(compressed(residual, images()), tmp_path)
    path = tmp_path / "structure.json"
    structure = json.loads(path.read_text())
    node = next(node for node in structure["graph"]["nodes"] if node["op"] == "call_function")
    node["target"] = "os.system"
    path.write_text(json.dumps(structure))
    with pytest.raises(InputError, match=r"os\.system"):
        load_saved(tmp_path)


@pytest.mark.parametrize("name", ["structure.json", "weights.safetensors"])
def test_a_truncated_file_is_refused(name: str, tmp_path) -> None:
    write_archive(compressed(residual, images()), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_saved(tmp_path)


def with_tokenizer(folder):
    """A compressed network whose tokenizer file lies in `folder`."""
    made = compressed(residual, images())
    origin = replace(made.model.origin, folder=folder, files=("sub/tokenizer.json",))
    return replace(made, model=replace(made.model, origin=origin))


def test_a_preprocessing_file_that_has_gone_is_named(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"Cannot read .*gone/sub/tokenizer.json: No such file"):
        write_archive(with_tokenizer(tmp_path / "gone"), tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_named(tmp_path) -> None:
    (tmp_path / "own" / "sub").mkdir(parents=True)
    (tmp_path / "own" / "sub" / "tokenizer.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("in the way")
    with pytest.raises(InputError, match=r"Cannot write .*out/sub: a file of that name is in the way"):
        write_archive(with_tokenizer(tmp_path / "own"), tmp_path / "out")
