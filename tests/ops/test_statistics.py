"""Dimension key: B examples, C channels, S positions."""

import pytest
import torch
from torch import Tensor

from lighten.ops.statistics import TINY, Moments, mismatch, moments, pooled, roughness


def values(count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 5, 4, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1])[:, None, None]


def test_moments_are_those_of_each_channel() -> None:
    found = moments(values())
    flat_CN = values().transpose(0, 1).flatten(1)
    assert found.num_values == 40 * 20
    torch.testing.assert_close(found.mean_C, flat_CN.mean(1))
    torch.testing.assert_close(found.var_C, flat_CN.var(1, correction=0))
    assert moments(values()[:, :, 0, 0]).num_values == 40


def test_pooled_parts_are_the_whole_whatever_their_sizes() -> None:
    x = values() + torch.arange(40.0).reshape(40, 1, 1, 1)
    whole, parts = moments(x), [moments(part) for part in x.split([3, 30, 7])]
    together = pooled(pooled(parts[0], parts[1]), parts[2])
    assert together.num_values == whole.num_values
    torch.testing.assert_close(together.mean_C, whole.mean_C)
    torch.testing.assert_close(together.var_C, whole.var_C)


def test_the_mismatch_counts_deviations() -> None:
    var_C = torch.tensor([4.0, 0.25]).double()
    wanted = (torch.tensor([1.0, -1.0]).double(), var_C)
    assert float(mismatch(Moments(9, wanted[0], var_C), *wanted)) == 0.0
    one_deviation_off = Moments(9, wanted[0] + var_C.sqrt(), var_C)
    assert float(mismatch(one_deviation_off, *wanted)) == pytest.approx(1.0, rel=TINY / 0.25)
    twice_as_wide = Moments(9, wanted[0], 4 * var_C)
    assert float(mismatch(twice_as_wide, *wanted)) == pytest.approx(1.0, rel=2 * TINY / 0.25)


def test_roughness_has_no_unit_is_two_a_dimension_for_noise_and_zero_for_a_constant() -> None:
    ramp = torch.arange(5.0).reshape(1, 1, 5, 1).expand(2, 3, 5, 4)
    assert float(roughness(ramp)) == pytest.approx(float(1 / ramp.var()))
    assert float(roughness(300 * ramp)) == pytest.approx(float(roughness(ramp)))
    noise = torch.randn(50, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert float(roughness(noise)) == pytest.approx(4.0, abs=5 * 4 / noise.numel() ** 0.5 * 2)
    assert float(roughness(torch.ones(2, 3, 5, 4))) == 0.0
    assert float(roughness(torch.randn(2, 3))) == 0.0
