"""Tensors to parts of an archive and back: exact for every type, and near what information theory allows."""

import numpy as np
import pytest

from lighten.core.errors import InputError
from lighten.export.pack.coder import Decoder, Encoder, bits_each, read_varint, uniform, varint
from lighten.export.pack.kinds import KINDS, element_bytes, elements
from lighten.export.pack.tables import code_table
from lighten.export.pack.tensors import _ways, decode, encode, layout_of

pytest.importorskip("constriction")

BY_NAME = {kind.name: kind for kind in KINDS}
OVERHEAD = 40  # bytes: the state of the coder, the head of a tensor, and a table of two letters or a few contexts


def packed_size(array, kind="int8"):
    """Bytes of the part, which is first proved to give the array again."""
    layout = layout_of(BY_NAME[kind], array.shape)
    part = encode(array.tobytes(), layout)
    assert decode(part, layout) == array.tobytes()
    return len(part)


def entropy_bytes(*counts):
    """Of symbols that came so often, told apart with the best frequencies."""
    shares = np.array(counts) / sum(counts)
    return float(-(shares * np.log2(shares)).sum()) * sum(counts) / 8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 3, 3, 3), (0, 4), (1500,)])
@pytest.mark.parametrize("fill", ["random", "zeros", "sparse", "few"])
def test_every_type_and_shape_comes_back_bit_for_bit(kind, shape, fill):
    random = np.random.default_rng(0)
    layout = layout_of(kind, shape)
    pattern_N = random.integers(0, 2**kind.bits, layout.num_elements, dtype=np.uint64)
    if fill == "zeros":
        pattern_N[:] = 0
    elif fill == "sparse":
        pattern_N[random.random(len(pattern_N)) < 0.9] = 0
    elif fill == "few":
        pattern_N %= 3
    data = element_bytes(pattern_N.astype(np.uint64 if kind.bits > 8 else np.uint8), kind)
    assert len(data) == layout.num_bytes
    assert decode(encode(data, layout), layout) == data


def test_bits_behind_the_last_element_are_kept_too():
    layout = layout_of(BY_NAME["int4"], (3,))
    assert decode(encode(b"\x21\xf3", layout), layout) == b"\x21\xf3"


def test_nan_payloads_and_negative_zeros_survive():
    values = np.array([0.0, -0.0, np.inf, -np.inf], np.float32).view(np.uint32)
    patterns = np.concatenate([values, [0x7FC00001, 0xFFC12345, 1, 0x80000001]]).astype(np.uint32)
    assert packed_size(patterns.repeat(300).view(np.float32), "float32") > 0


def test_codes_cost_their_entropy():
    codes = np.random.default_rng(0).choice(np.arange(-2, 3), (128, 400), p=[0.1, 0.2, 0.4, 0.2, 0.1]).astype(np.int8)
    best = entropy_bytes(*np.unique(codes, return_counts=True)[1])
    assert best <= packed_size(codes) <= best + OVERHEAD


def test_a_table_of_255_letters_costs_far_less_than_a_byte_a_letter():
    codes = np.clip(np.round(np.random.default_rng(0).normal(0, 30, (64, 320))), -127, 127).astype(np.int8)
    best = entropy_bytes(*np.unique(codes, return_counts=True)[1])
    # the best frequencies are fitted to the sample, by about 255 / (2 ln 2) bits; the table pays for that
    assert best < packed_size(codes) < best + 110


def test_the_positions_of_zeros_cost_their_entropy():
    random = np.random.default_rng(0)
    codes = (random.integers(1, 3, (200, 300)) * (random.random((200, 300)) < 0.1)).astype(np.int8)
    kept = int((codes != 0).sum())
    best = entropy_bytes(kept, codes.size - kept) + kept / 8
    assert best - 20 <= packed_size(codes) <= best + OVERHEAD


def test_two_of_four_costs_the_logarithm_of_six():
    random = np.random.default_rng(0)
    mask = random.permuted(np.tile([1, 1, 0, 0], (40_000, 1)), axis=1).reshape(400, 400)
    best = 40_000 * np.log2(6) / 8
    assert best <= packed_size(mask.astype(np.int8)) <= best * 1.001 + OVERHEAD


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (16, 1), (1, 4), (1, 8)])
def test_a_block_costs_as_much_as_one_weight(rows, columns):
    blocks = np.random.default_rng(0).random((128 // rows * 4, 512 // columns)) < 0.2
    mask = np.kron(blocks, np.ones((rows, columns), bool)).astype(np.int8)
    best = entropy_bytes(int(blocks.sum()), int((~blocks).sum()))
    # a context that is certain still costs 2^-24 of a bit or so a symbol, but each has a table
    assert packed_size(mask) <= best * 1.02 + 3 * OVERHEAD


def test_kernels_that_are_zero_as_a_whole_cost_one_bit_at_most():
    alive = np.random.default_rng(0).random((64, 64)) < 0.3
    mask = np.broadcast_to(alive[..., None, None], (64, 64, 3, 3)).astype(np.int8)
    assert packed_size(mask) <= entropy_bytes(int(alive.sum()), int((~alive).sum())) + 3 * OVERHEAD


def test_rows_of_other_densities_get_frequencies_of_their_own():
    random = np.random.default_rng(0)
    density_O1 = random.permutation(np.repeat([0.02, 0.5], 64))[:, None]
    mask = (random.random((128, 2000)) < density_O1).astype(np.int8)
    best = sum(entropy_bytes(*np.bincount(mask[density_O1[:, 0] == density].ravel())) for density in (0.02, 0.5))
    alone = entropy_bytes(*np.bincount(mask.ravel()))
    assert best < packed_size(mask) < best + 128 / 8 + OVERHEAD < 0.9 * alone


def test_few_distinct_floats_are_told_by_their_indices():
    random = np.random.default_rng(0)
    shared = random.normal(size=16).astype(np.float32)
    weight = shared[random.integers(0, 16, (256, 256))]
    best = weight.size * 4 / 8 + 16 * 4
    assert packed_size(weight, "float32") <= best + OVERHEAD + 10


def test_the_sign_of_a_zero_costs_one_bit_and_none_where_all_are_positive():
    random = np.random.default_rng(0)
    kept = random.random((200, 200)) < 0.1
    masked = random.normal(size=(200, 200)).astype(np.float32) * kept  # of both signs
    difference = packed_size(masked, "float32") - packed_size(masked + np.float32(0), "float32")
    assert difference == pytest.approx((~kept).sum() / 8, abs=10)


def test_a_float_weight_loses_the_bits_of_its_exponent():
    weight = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    # a normal variable's exponent has an entropy of 2.07 bits, and 24 bits of sign and mantissa remain
    assert packed_size(weight, "float32") < weight.size * 26.6 / 8


def test_what_cannot_be_compressed_grows_by_a_few_bytes_only():
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    assert packed_size(noise, "uint8") <= 5000 + 8


def test_a_large_tensor_is_judged_by_a_sample_and_still_exact():
    random = np.random.default_rng(0)
    codes = np.clip(np.round(random.normal(size=(1100, 1000)) * random.uniform(1, 3, (1100, 1))), -7, 7).astype(np.int8)
    assert packed_size(codes) < entropy_bytes(*np.unique(codes, return_counts=True)[1])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 255])
def test_the_decoder_gets_the_table_that_the_encoder_wrote(size):
    count_A = np.random.default_rng(size).integers(0, 400, size) + 1
    encoder = Encoder()
    written = code_table(encoder, count_A)
    read = code_table(Decoder(encoder.finish()), np.zeros(size, np.int64))
    assert written.sum() == 2**20
    np.testing.assert_array_equal(read, written)


def test_the_coder_is_constrictions_in_integers():
    # the format promises these intervals; a version of constriction that rounds otherwise must not go unnoticed
    frequency_A = np.array([1, 2**20 - 100, 0, 99])
    symbol_N = np.array([1, 1, 3, 0, 2, 1])
    encoder = Encoder()
    encoder.code(symbol_N, frequency_A)
    assert encoder.finish().hex() == "004cec8be836a4f02b"
    np.testing.assert_array_equal(Decoder(encoder.finish()).code(np.zeros(6), frequency_A), symbol_N)


def test_a_letter_costs_what_its_interval_says():
    np.testing.assert_allclose(bits_each(uniform(16)), 4.0, rtol=1e-6)
    assert bits_each(np.array([2**20, 0]))[1] == 24.0


@pytest.mark.parametrize("value", [0, 127, 128, 300, 2**62])
def test_numbers_of_any_size_come_back(value):
    assert read_varint(varint(value) + b"\x00", 0) == (value, len(varint(value)))


def test_a_number_that_does_not_end_is_refused():
    with pytest.raises(InputError, match="does not end"):
        read_varint(b"\x80\x80", 0)


def test_narrow_integers_lie_as_in_onnx():
    kind = BY_NAME["int4"]
    np.testing.assert_array_equal(elements(b"\x21\x03", kind, 3), [1, 2, 3])
    assert element_bytes(np.array([1, 2, 3], np.uint8), kind) == b"\x21\x03"


@pytest.mark.parametrize("part", [b"", b"\x05", b"\x00\x00", b"\x00\x01\x02\x03\x04\x05\x06"])
def test_a_part_that_no_encoder_wrote_is_refused(part):
    with pytest.raises(InputError, match="damaged"):
        decode(part, layout_of(BY_NAME["int8"], (1000,)))


def test_noise_in_a_large_tensor_is_not_taken_for_structure():
    weight = np.random.default_rng(0).normal(size=(1500, 1500)).astype(np.float32)
    kind = BY_NAME["float32"]
    (way,) = _ways(elements(weight.tobytes(), kind, weight.size), layout_of(kind, weight.shape))
    assert way.streams[:2] == (None, None)  # the low bytes of the mantissa stay raw
    assert not way.has_contexts
