"""`lighten.load` finds the reader, and says clearly when there is none."""

import pytest
from networks import residual

import lighten
from lighten.core.errors import InputError


def test_a_model_passes_through() -> None:
    model = residual()
    assert lighten.load(model) is model


def test_a_missing_path_names_the_nearest(tmp_path) -> None:
    (tmp_path / "resnet50").mkdir()
    with pytest.raises(InputError, match=r"resnet5 does not exist\. Did you mean .*resnet50\?"):
        lighten.load(tmp_path / "resnet5")


def test_a_missing_path_with_no_neighbour_says_what_a_model_is(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist. A model is an nn.Module, package.module:callable"):
        lighten.load(tmp_path / "nowhere" / "model")


@pytest.mark.parametrize(("suffix", "kind"), [("h5", "Keras"), ("tflite", "LiteRT"), ("gguf", "GGUF")])
def test_formats_that_are_not_read_yet_say_so(suffix, kind, tmp_path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"bytes")
    with pytest.raises(InputError, match=f"{kind} files are not read yet"):
        lighten.load(path)


def test_weights_without_a_network_say_what_is_missing(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"bytes")
    with pytest.raises(InputError, match="holds weights only. Name the network too"):
        lighten.load(path)


def test_another_file_is_no_model(tmp_path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("notes")
    with pytest.raises(InputError, match=r"a \.md file is not a model"):
        lighten.load(path)


def test_a_folder_of_something_else_names_what_it_lacks(tmp_path) -> None:
    with pytest.raises(InputError, match=r"has neither structure\.json nor config\.json"):
        lighten.load(tmp_path)


def test_an_object_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="A int is not a model"):
        lighten.load(3)
