"""The decoder on bytes that nobody wrote: one InputError, or exactly what was packed; never a crash, never a wrong weight."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import onnx_bytes

from lighten.core.errors import InputError
from lighten.export.pack.index import read_index
from lighten.export.pack.kinds import KINDS
from lighten.export.pack.reading import Archive, check_of
from lighten.export.pack.tensors import decode, encode, layout_of
from lighten.export.pack.text import expand
from lighten.export.pack.writing import archive_of

pytest.importorskip("constriction")

# a fixed seed: a red run can be run again
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SHAPES = st.sampled_from([(5,), (30, 20), (8, 4, 3, 3), (0,)])
EDITS = st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4)

FILES = {"model.onnx": onnx_bytes(), "words.txt": b"some text " * 30}
WHOLE = archive_of(FILES)


def edited(data, edits):
    """Some bytes replaced."""
    out = bytearray(data)
    for place, byte in edits:
        if out:
            out[place % len(out)] = byte
    return bytes(out)


def tried(function, *arguments):
    """What it gives, or None where it refuses its input; anything else that is raised fails the test."""
    try:
        return function(*arguments)
    except InputError:
        return None


def contents(data):
    """All files; the tensors are read too."""
    archive = Archive(io.BytesIO(data), max_size=10_000_000)
    archive.check()
    for file, name in archive.tensors:
        archive.tensor(name, file=file)
    return {name: b"".join(archive.chunks(name)) for name in archive.names}


@FUZZ
@given(edits=EDITS, cut=st.integers(0, 40))
def test_a_damaged_archive_gives_what_was_packed_or_an_error(edits, cut):
    assert tried(contents, edited(WHOLE, edits)[: len(WHOLE) - cut]) in (None, FILES)


@FUZZ
@given(edits=EDITS)
def test_with_the_outer_hash_put_right_it_still_never_gives_other_files(edits):
    data = edited(WHOLE[:-32], edits)
    assert tried(contents, data + hashlib.sha256(data).digest()) in (None, FILES)


@FUZZ
@given(kind=st.sampled_from(KINDS), shape=SHAPES, part=st.binary(max_size=200))
def test_any_bytes_are_a_tensor_of_the_stated_size_or_an_error(kind, shape, part):
    layout = layout_of(kind, shape)
    found = tried(decode, part, layout)
    assert found is None or len(found) == layout.num_bytes


@settings(FUZZ, max_examples=60)
@given(kind=st.sampled_from(KINDS), shape=SHAPES, seed=st.integers(0, 9), zeros=st.sampled_from([0, 0.5, 0.95]), edits=EDITS)
def test_a_damaged_tensor_is_a_tensor_of_the_stated_size_or_an_error(kind, shape, seed, zeros, edits):
    random, layout = np.random.default_rng(seed), layout_of(kind, shape)
    value_N = np.where(random.random(layout.num_bytes) < zeros, 0, random.integers(0, 20, layout.num_bytes))
    data = value_N.astype(np.uint8).tobytes()
    part = encode(data, layout)
    assert decode(part, layout) == data
    found = tried(decode, edited(part, edits), layout)
    assert found is None or len(found) == layout.num_bytes


@FUZZ
@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_index_or_an_error(data):
    found = tried(read_index, data)
    assert found is None or (found[0].parts and found[1] <= len(data))


@FUZZ
@given(edits=EDITS)
def test_an_index_with_all_its_hashes_put_right_leads_nowhere_else(edits):
    """What an attacker can do who knows the format: the files' own sha256 still decide."""
    packed_size = int.from_bytes(WHOLE[12:16], "little")
    head = expand(WHOLE[16 : 16 + packed_size], int.from_bytes(WHOLE[8:12], "little"))
    head = edited(head, edits)
    squeezed = b"\xff" + head
    start = WHOLE[:8] + len(head).to_bytes(4, "little") + len(squeezed).to_bytes(4, "little")
    body = start + squeezed + check_of(start + head) + WHOLE[16 + packed_size + 8 : -32]
    found = tried(contents, body + hashlib.sha256(body).digest())
    assert found is None or set(found.values()) <= set(FILES.values())


@FUZZ
@given(packed=st.binary(min_size=1, max_size=100), size=st.integers(0, 1000))
def test_any_bytes_are_a_text_of_the_stated_size_or_an_error(packed, size):
    found = tried(expand, packed, size)
    assert found is None or len(found) == size
