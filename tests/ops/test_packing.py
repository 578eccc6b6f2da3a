"""Dimension key: N codes."""

import pytest
import torch

from lighten.ops.packing import pack, packed_bytes, unpack

WIDTHS = range(1, 9)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 63, 1001])
def test_unpacking_gives_back_every_code_at_every_width_and_length(bits: int, length: int) -> None:
    codes_N = torch.randint(0, 2**bits, (length,), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    packed = pack(codes_N, bits)
    assert packed.shape == (packed_bytes(length, bits),)
    assert torch.equal(unpack(packed, bits, num_codes=length), codes_N)


@pytest.mark.parametrize("bits", WIDTHS)
def test_signed_codes_come_back_signed_from_a_matrix(bits: int) -> None:
    low = -(2 ** (bits - 1))
    codes = torch.arange(low, low + 2**bits, dtype=torch.int8).repeat(3).reshape(3, -1)
    back_N = unpack(pack(codes, bits, low=low), bits, num_codes=codes.numel(), low=low)
    assert back_N.dtype == torch.int8
    assert torch.equal(back_N.reshape(codes.shape), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_bytes_are_those_of_one_long_little_endian_number(bits: int) -> None:
    codes_N = torch.randint(0, 2**bits, (37,), generator=torch.Generator().manual_seed(bits))
    number = sum(code << (bits * place) for place, code in enumerate(codes_N.tolist()))
    assert bytes(pack(codes_N, bits).tolist()) == number.to_bytes((37 * bits + 7) // 8, "little")


def test_four_bit_codes_fill_the_low_nibble_first() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]


def test_a_view_that_is_not_contiguous_packs_in_its_own_order() -> None:
    codes = torch.arange(12).reshape(3, 4).t()
    assert torch.equal(pack(codes, 5), pack(codes.contiguous(), 5))


@pytest.mark.parametrize(("codes", "low"), [([4], 0), ([-1], 0), ([2], -2), ([-3], -2)])
def test_a_code_that_does_not_fit_is_refused(codes: list[int], low: int) -> None:
    with pytest.raises(ValueError, match="2 bits"):
        pack(torch.tensor(codes), 2, low=low)


@pytest.mark.parametrize("bits", [0, 9])
def test_widths_outside_one_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        pack(torch.zeros(3, dtype=torch.uint8), bits)


def test_the_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="take 4 bytes. Got 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, num_codes=10)
