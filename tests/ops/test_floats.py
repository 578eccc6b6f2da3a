"""Dimension key: O rows, K columns, V values of a format."""

import pytest
import torch
from torch import Tensor

from lighten.ops import floats
from lighten.ops.floats import FORMATS, HALVES, decode, encode, fit, half, nearest, with_scales

FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
MX_FORMATS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8"]
# QLoRA, arXiv:2305.14314, appendix E
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def normal(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def finite(name: str) -> Tensor:
    values_V = torch.tensor(FORMATS[name].values)
    return values_V[values_V.isfinite()]


@pytest.mark.parametrize("name", FLOAT8)
def test_fp8_tables_are_those_of_torch(name: str) -> None:
    patterns_V = torch.arange(256, dtype=torch.uint8)
    theirs_V = patterns_V.view(FLOAT8[name]).float()
    ours_V = torch.tensor(FORMATS[name].values)
    assert torch.equal(ours_V.isfinite(), theirs_V.isfinite())
    assert torch.equal(ours_V[ours_V.isfinite()], theirs_V[theirs_V.isfinite()])


@pytest.mark.parametrize("name", FLOAT8)
def test_fp8_rounds_every_value_as_torch_does(name: str) -> None:
    limit = FORMATS[name].largest
    values_V = finite(name).sort().values
    ties = (values_V[1:] + values_V[:-1]) / 2
    near = torch.cat([torch.nextafter(ties, ties + sign) for sign in (-1.0, 1.0)])
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    wide = torch.exp2(drawn * 8) * drawn.sign()
    x_1K = torch.cat([values_V, ties, near, drawn, wide.clamp(-limit, limit)])[None]
    blocks = fit(x_1K, format=name, scale="one")
    assert torch.equal(decode(encode(x_1K, blocks), blocks), x_1K.to(FLOAT8[name]).float())
    # a code is the bit pattern itself
    assert torch.equal(encode(x_1K, blocks).view(FLOAT8[name]).float(), x_1K.to(FLOAT8[name]).float())


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_of_a_format_is_its_own_rounding(name: str) -> None:
    values_1V = finite(name)[None]
    assert torch.equal(nearest(values_1V, format=name, scale="one"), values_1V)


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_goes_to_the_nearest_value_and_saturates(name: str) -> None:
    values_V = finite(name)
    x_K = torch.linspace(-1.5, 1.5, 3001) * FORMATS[name].largest
    distance_KV = (x_K[:, None] - values_V).abs()
    found_K = nearest(x_K[None], format=name, scale="one")[0]
    assert torch.equal((found_K - x_K).abs(), distance_KV.amin(1))


@pytest.mark.parametrize("name", ["e3m2", "e2m3", "e2m1", "int8"])
def test_ties_go_to_the_pattern_whose_last_bit_is_zero(name: str) -> None:
    values_V = finite(name).unique()
    ties_1V = ((values_V[1:] + values_V[:-1]) / 2)[None]
    assert (encode(ties_1V, fit(ties_1V, format=name, scale="one")) % 2 == 0).all()


def test_fp4_has_the_values_of_the_standard() -> None:
    assert FORMATS["e2m1"].values[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert [FORMATS[name].largest for name in ("e4m3", "e5m2", "e3m2", "e2m3", "int8")] == [448, 57344, 28, 7.5, 127 / 64]


def test_nf4_has_the_published_values() -> None:
    # the published ones were computed in single precision
    torch.testing.assert_close(torch.tensor(FORMATS["nf4"].values), torch.tensor(PUBLISHED_NF4), atol=1e-6, rtol=0)


def test_nf4_has_less_error_than_fp4_and_integers_on_blocks_of_normal_weights() -> None:
    w_OK = normal(64, 1024)
    error = {name: (nearest(w_OK, format=name, block=64) - w_OK).square().mean() for name in ("nf4", "e2m1")}
    steps_OK = (w_OK.reshape(-1, 64) / w_OK.reshape(-1, 64).abs().amax(1, keepdim=True) * 7).round() / 7
    integer_OK = (steps_OK * w_OK.reshape(-1, 64).abs().amax(1, keepdim=True)).reshape(w_OK.shape)
    assert error["nf4"] < error["e2m1"]
    assert error["nf4"] < (integer_OK - w_OK).square().mean()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("knobs", [{"block": 32}, {}, {"per": "tensor"}, {"block": 32, "scale": "mx"}])
def test_zero_is_exact_and_a_second_rounding_changes_nothing(name: str, knobs: dict) -> None:
    w_OK = normal(4, 128) * 0.02
    w_OK[:, ::5] = 0
    w_OK[0] = 0
    blocks = fit(w_OK, format=name, **knobs)
    codes_OK = encode(w_OK, blocks)
    once_OK = decode(codes_OK, blocks)
    assert (once_OK[w_OK == 0] == 0).all()
    assert torch.equal(decode(encode(once_OK, blocks), blocks), once_OK)


@pytest.mark.parametrize("name", MX_FORMATS)
def test_mx_scales_are_powers_of_two_that_bring_the_peak_into_the_top_binade(name: str) -> None:
    w_OK = normal(16, 256) * torch.logspace(-6, 6, 16)[:, None]
    blocks = fit(w_OK, format=name, block=32, scale="mx")
    assert blocks.scale.dtype == torch.float8_e8m0fnu
    scaled_OG = w_OK.abs().reshape(16, 8, 32).amax(2) / blocks.scale.float()[:, :, 0]
    top = 2.0 ** torch.tensor(FORMATS[name].largest).log2().floor().item()
    assert (scaled_OG >= top).all()
    assert (scaled_OG < 2 * top).all()


def test_mx_blocks_of_a_known_tensor() -> None:
    # the peak 5 has exponent 2, as e2m1's 6 has: the shared scale is 1, and 5 lies halfway between 4 and 6
    w_1K = torch.tensor([5.0, 0.2, 0.25, -0.75, 2.5, 0.0]).repeat(1, 16)[:, :32]
    blocks = fit(w_1K, format="e2m1", block=32, scale="mx")
    assert blocks.scale.float().flatten().tolist() == [1.0]
    assert decode(encode(w_1K, blocks), blocks)[0, :6].tolist() == [4.0, 0.0, 0.0, -1.0, 2.0, 0.0]


def test_mx_survives_the_smallest_and_largest_numbers() -> None:
    w_OK = torch.tensor([0.0, 1e-40, 3e38]).reshape(3, 1).repeat(1, 32)
    rounded_OK = nearest(w_OK, format="e2m1", block=32, scale="mx")
    assert rounded_OK.isfinite().all()
    assert rounded_OK[:, 0].tolist()[0] == 0.0
    # between the values 4, 6 of the format a rounding moves a number by a fifth at most, saturation by a quarter
    assert rounded_OK[2, 0].item() == pytest.approx(3e38, rel=0.25)


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_torchs_and_saturates(name: str) -> None:
    x = torch.cat([normal(1, 1000)[0], torch.tensor([0.0, 1e-7])])
    assert torch.equal(half(x, name), x.to(HALVES[name]))
    largest = torch.finfo(HALVES[name]).max
    beyond = torch.tensor([torch.inf, -torch.inf, 3.4e38])
    assert half(beyond, name).float().tolist() == [largest, -largest, largest]


def test_stored_bytes_count_the_scales() -> None:
    w_OK = normal(64, 512)
    assert fit(w_OK, format="e2m1", block=32, scale="mx").stored_bytes(w_OK.numel()) * 8 == 4.25 * w_OK.numel()
    assert fit(w_OK, format="nf4", block=64).stored_bytes(w_OK.numel()) * 8 == 4.5 * w_OK.numel()
    halves = with_scales(fit(w_OK, format="nf4", block=64), torch.float16)
    assert halves.stored_bytes(w_OK.numel()) * 8 == 4.25 * w_OK.numel()
    assert fit(w_OK, format="e2m3", block=32, scale="mx").stored_bytes(w_OK.numel()) * 8 == 6.25 * w_OK.numel()


def test_columns_that_do_not_split_into_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="48 columns do not split into groups of 32"):
        floats.fit(normal(2, 48), format="e2m1", block=32, scale="mx")
