"""Folders to archives and back, tensors out of them, and everything that must be refused."""

import hashlib
import io
import json
import lzma

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from packing import files, onnx_bytes, tensors, write_folder

from lighten.core.errors import InputError, ParityError
from lighten.export.pack import writing
from lighten.export.pack.carve import carve
from lighten.export.pack.coder import varint
from lighten.export.pack.index import safe_name
from lighten.export.pack.reading import MAGIC, Archive, check_of
from lighten.export.pack.text import expand, squeeze
from lighten.export.pack.writing import archive_of
from lighten.pack import pack, unpack

pytest.importorskip("constriction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def archive(folder, tmp_path_factory):
    """All files in one."""
    path = tmp_path_factory.mktemp("archive") / "model.lighten"
    pack(folder, path, everything=True)
    return path


def refused(data):
    """The message of the one error that these bytes give."""
    with pytest.raises(InputError) as caught:
        Archive(io.BytesIO(data)).check()
    return caught.value.message


def resealed(data):
    """With the sha256 of the whole put right."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_everything_comes_back_bit_for_bit(folder, archive, tmp_path):
    names = unpack(archive, tmp_path)
    assert set(names) == {*files(), "manifest.json"}
    assert [name for name in names if (tmp_path / name).read_bytes() != (folder / name).read_bytes()] == []


def test_by_default_only_what_a_device_needs_goes_in(folder, tmp_path):
    packed = pack(folder, tmp_path / "small.lighten")
    assert packed["left_out"] == ["structure.json", "weights.safetensors", "report.json", "report.html"]
    assert set(packed["files"]) == {"labels.json", "manifest.json", "vocab/words.txt", "recipe.yaml", "model.onnx"}
    assert packed["size_bytes"] == (tmp_path / "small.lighten").stat().st_size
    unpack(tmp_path / "small.lighten", tmp_path)
    assert json.loads((tmp_path / "labels.json").read_text(encoding="utf-8")) == ["cat", "dög"]


def test_the_same_folder_gives_the_same_archive(folder, archive, tmp_path):
    pack(folder, tmp_path / "again.lighten", everything=True)
    assert (tmp_path / "again.lighten").read_bytes() == archive.read_bytes()


def test_it_is_smaller_than_xz_of_the_same_file():
    random = np.random.default_rng(0)
    pruned = np.where(random.random((100, 100)) < 0.1, random.normal(size=(100, 100)), 0).astype(np.float32)
    codes = np.round(random.normal(size=(100, 100)) * 20).astype(np.int8)
    weights = [numpy_helper.from_array(array, name) for name, array in (("pruned", pruned), ("codes", codes))]
    data = onnx.helper.make_model(onnx.helper.make_graph([], "main", [], [], weights)).SerializeToString()
    kept = int((pruned != 0).sum())
    # positions at 10 %, 26.6 bits a normal float32, and log2(20 sqrt(2 pi e)) bits a normal code of deviation 20
    ideal = 10_000 * 0.469 / 8 + kept * 26.6 / 8 + 10_000 * np.log2(20 * np.sqrt(2 * np.pi * np.e)) / 8
    assert (
        ideal < len(archive_of({"model.onnx": data})) < ideal + 400 < len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    )


def test_a_tensor_that_two_files_hold_is_stored_once():
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = onnx.helper.make_graph([], "main", [], [], [numpy_helper.from_array(weight, "weight")])
    model = onnx.helper.make_model(graph).SerializeToString()
    alone, both = archive_of({"a.onnx": model}), archive_of({"a.onnx": model, "b.onnx": model})
    assert len(both) < len(alone) + 100
    read = Archive(io.BytesIO(both))
    assert b"".join(read.chunks("b.onnx")) == b"".join(read.chunks("a.onnx")) == model


@pytest.mark.parametrize("name", [name for name, array in tensors().items() if array.size])
def test_a_tensor_is_read_without_the_others(archive, name):
    expected = tensors()[name]
    found = Archive.open(archive).tensor(name, file="model.onnx")
    assert tuple(found.shape) == expected.shape
    np.testing.assert_array_equal(found.numpy(), expected.astype(found.numpy().dtype))


def test_a_tensor_is_found_in_damaged_neighbours_and_not_in_its_own_damaged_part(archive):
    data = archive.read_bytes()
    read = Archive(io.BytesIO(data))
    codes, dense = (
        next(one.piece.part for one in read.index.tensors if one.name == name and one.file == read.names.index("model.onnx"))
        for name in ("codes", "dense")
    )
    place = read._starts[codes] + 5
    damaged = Archive(io.BytesIO(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]))
    assert codes != dense
    np.testing.assert_array_equal(damaged.tensor("dense", file="model.onnx").numpy(), tensors()["dense"])
    with pytest.raises(InputError, match="damaged"):
        damaged.tensor("codes", file="model.onnx")


def test_what_is_not_there_is_an_input_error(archive):
    with pytest.raises(InputError, match=r"no tensor missing.*lists them"):
        Archive.open(archive).tensor("missing")
    with pytest.raises(InputError, match="no file missing"):
        list(Archive.open(archive).chunks("missing"))
    with pytest.raises(InputError, match="Cannot read"):
        Archive.open(archive.with_name("missing"))


def test_onnx_files_are_carved_at_the_bytes_that_onnx_reads():
    data = onnx_bytes()
    spans = {span.name: span for span in carve("model.onnx", data)}
    model = onnx.load_from_string(data)
    held = [*model.graph.initializer, model.graph.node[0].attribute[0].t]
    for tensor in held:
        if tensor.raw_data:
            span = spans.pop(tensor.name)
            assert data[span.start : span.start + span.size] == tensor.raw_data
            assert span.shape == tuple(tensor.dims)
    assert spans == {}


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "words.txt"])
@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x3a\x7f", b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}', b"12345678{}"])
def test_files_that_only_have_the_name_are_stored_all_the_same(name, data):
    assert b"".join(Archive(io.BytesIO(archive_of({name: data}))).chunks(name)) == data


def test_a_changed_folder_is_not_packed(folder, tmp_path):
    write_folder(tmp_path / "changed")
    (tmp_path / "changed" / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"not as it was written: model.onnx"):
        pack(tmp_path / "changed", tmp_path / "model.lighten")
    with pytest.raises(InputError, match="manifest"):
        pack(tmp_path, tmp_path / "model.lighten")
    assert not (tmp_path / "model.lighten").exists()


def test_an_archive_that_does_not_give_the_file_back_is_not_kept(folder, tmp_path, monkeypatch):
    whole = writing.encode
    monkeypatch.setattr(writing, "encode", lambda data, layout: whole(bytes(len(data)), layout))
    with pytest.raises((ParityError, InputError)):
        pack(folder, tmp_path / "model.lighten")
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_refused(archive):
    data = archive.read_bytes()
    for size in [*range(0, 400), *range(400, len(data), 997)]:
        assert "archive" in refused(data[:size])
    assert "should have" in refused(data + b"\0")


def test_a_flipped_bit_is_refused_and_nothing_is_written(archive, tmp_path):
    data, path = archive.read_bytes(), tmp_path / "damaged.lighten"
    for place in range(0, len(data), 1499):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(InputError):
            unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_larger_archive_than_allowed_is_refused_before_anything_is_unpacked(archive, tmp_path):
    with pytest.raises(InputError, match=r"0.0 MB are allowed. See --max-size"):
        unpack(archive, tmp_path / "out", max_size=1000)
    assert not (tmp_path / "out").exists()


def bomb(stated, text):
    """An archive whose head is said to unpack to `stated` bytes."""
    squeezed = squeeze(text)
    start = MAGIC + stated.to_bytes(4, "little") + len(squeezed).to_bytes(4, "little")
    return resealed(start + squeezed + check_of(start + text) + bytes(32))


def test_a_text_larger_than_stated_is_never_unpacked():
    packed = squeeze(bytes(50_000_000))
    assert len(packed) < 10_000
    with pytest.raises(InputError, match="not its stated size|cannot be read"):
        expand(packed, 100)
    assert "damaged" in refused(bomb(100, bytes(5_000_000)))
    assert "too long" in refused(bomb(2**31, b"x"))


def test_a_tensor_cannot_be_stated_larger_than_the_limit():
    # one part of 2^40 zeros in one file: refused by the sum, before a byte is allocated
    shape = varint(1) + varint(2**40)
    index = b"".join(
        [
            *(varint(2), varint(0), varint(0), varint(0), varint(1), shape, varint(1)),
            *(varint(1), varint(1), b"a", bytes(32), varint(1), varint(1), varint(0), varint(1), b"t", varint(0)),
        ]
    )
    squeezed = squeeze(index)
    start = MAGIC + len(index).to_bytes(4, "little") + len(squeezed).to_bytes(4, "little")
    data = start + squeezed + check_of(start + index) + b"\0" + bytes(8)
    with pytest.raises(InputError, match="are allowed"):
        Archive(io.BytesIO(data + hashlib.sha256(data).digest()))


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "a//b", "./a", "a/", "", "..", "a\\b", "c:a", "a\0b", "a\n", " ", "nul*"]
)
def test_names_that_lead_elsewhere_are_refused(name):
    assert not safe_name(name)
    with pytest.raises(InputError, match="cannot be a file's name"):
        archive_of({name: b""})


def test_a_name_that_leads_out_of_the_folder_is_refused_when_reading_too(monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "safe_name", lambda name: True)
    monkeypatch.setattr(writing, "_prove", lambda archive, files: None)
    (tmp_path / "evil.lighten").write_bytes(archive_of({"../evil": b"content"}))
    with pytest.raises(InputError, match="leads out of the folder"):
        unpack(tmp_path / "evil.lighten", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_link_in_the_folder_is_not_followed_out_of_it(tmp_path):
    (tmp_path / "a.lighten").write_bytes(archive_of({"sub/a": b"new"}))
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="behind a link"):
        unpack(tmp_path / "a.lighten", tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []


def test_torch_sees_narrow_integers_with_their_signs(archive):
    narrow = Archive.open(archive).tensor("narrow")
    assert narrow.dtype == torch.int8
    assert (int(narrow.min()), int(narrow.max())) == (-8, 7)
