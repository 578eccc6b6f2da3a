"""Straight-through estimators against the papers' gradients. Dimension key: O output channels."""

import pytest
import torch

from lighten.ops.steps import clipped_step, first_step, learned_clip, learned_step, round_through, scale_gradient, to_codes

X = torch.tensor([-3.0, -1.13, -0.2, 0.0, 0.3, 0.8, 1.37, 9.0], dtype=torch.float64)


def test_rounding_passes_its_gradient_on() -> None:
    x = X.clone().requires_grad_()
    y = round_through(x)
    assert torch.equal(y, X.round())
    (slope,) = torch.autograd.grad((y * torch.arange(8)).sum(), x)
    assert torch.equal(slope, torch.arange(8).double())


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = X.clone().requires_grad_()
    y = scale_gradient(x, 0.25)
    torch.testing.assert_close(y, X, rtol=1e-15, atol=0)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.25] * 8


@pytest.mark.parametrize(("low", "high"), [(-4, 3), (0, 7), (-1, 1)])
def test_the_gradient_of_a_learned_step_is_equation_3(low: int, high: int) -> None:
    x, step = X.clone().requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = learned_step(x, step, low=low, high=high)
    torch.testing.assert_close(y, (X / 0.4).round().clamp(low, high) * 0.4)
    incoming = torch.linspace(-1, 2, 8, dtype=torch.float64)
    x_slope, step_slope = torch.autograd.grad((y * incoming).sum(), (x, step))
    ratio = X / 0.4
    inside = (ratio >= low) & (ratio <= high)
    expected = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
    torch.testing.assert_close(step_slope, (expected * incoming).sum() / (8 * high) ** 0.5)
    torch.testing.assert_close(x_slope, incoming * inside)


def test_channels_learn_their_own_steps() -> None:
    x_OK, step_O1 = torch.stack([X, 2 * X]), torch.tensor([[0.4], [0.8]], dtype=torch.float64, requires_grad=True)
    y_OK = learned_step(x_OK, step_O1, low=-4, high=3)
    (together,) = torch.autograd.grad(y_OK.sum(), step_O1)
    step = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (alone,) = torch.autograd.grad(learned_step(X, step, low=-4, high=3).sum(), step)
    torch.testing.assert_close(y_OK[1], 2 * y_OK[0])
    torch.testing.assert_close(together, alone.expand(2, 1))


def test_the_first_step_is_twice_the_mean_over_the_root_of_the_largest_code() -> None:
    x_OK = torch.stack([X, 3 * X])
    mean = X.abs().mean()
    torch.testing.assert_close(first_step(x_OK, 4), 2 * (2 * mean) / 2)
    torch.testing.assert_close(first_step(x_OK, 4, per_channel=True), torch.stack([mean, 3 * mean])[:, None])
    assert first_step(torch.zeros(3), 4) > 0


def test_a_step_that_fell_below_zero_still_gives_numbers() -> None:
    y = learned_step(X, torch.tensor(-0.1, dtype=torch.float64), low=-4, high=3)
    assert y.isfinite().all()


def test_training_a_step_on_the_squared_error_finds_a_far_better_one() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    step = torch.tensor(0.1, requires_grad=True)  # covers 0.4 deviations to 0.3: almost everything is clipped

    def error() -> torch.Tensor:
        return (learned_step(x, step, low=-4, high=3) - x).square().mean()

    before, optimizer = error().item(), torch.optim.Adam([step], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    # the least squared error of 8 uniform levels for a normal is 0.0374 at a step of 0.586 (Max 1960, table 2)
    assert before > 0.5
    assert error().item() < 0.045


def test_the_gradient_of_a_learned_clip_is_one_where_it_cuts() -> None:
    x, clip = X.clone().requires_grad_(), torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    y = learned_clip(x, clip, bits=2)
    torch.testing.assert_close(y, (X.clamp(0, 1.2) / 0.4).round() * 0.4)
    incoming = torch.linspace(-1, 2, 8, dtype=torch.float64)
    x_slope, clip_slope = torch.autograd.grad((y * incoming).sum(), (x, clip))
    torch.testing.assert_close(clip_slope, incoming[X > 1.2].sum())
    assert torch.equal(x_slope[X != 0], (incoming * ((X > 0) & (X < 1.2)))[X != 0])


def test_the_gradient_of_a_clipped_step_sees_only_what_is_cut_off() -> None:
    x, step = X.clone().requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = clipped_step(x, step, low=-2, high=3, is_paced=False)
    assert torch.equal(y, learned_step(X, step, low=-2, high=3))
    incoming = torch.linspace(-1, 2, 8, dtype=torch.float64)
    x_slope, step_slope = torch.autograd.grad((y * incoming).sum(), (x, step))
    below, above = X < -0.8, X > 1.2
    torch.testing.assert_close(step_slope, -2 * incoming[below].sum() + 3 * incoming[above].sum())
    torch.testing.assert_close(x_slope, incoming * ~(below | above))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_in_either_layout_are_rounded_as_the_quantize_operators_round(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=layout).requires_grad_()
    scale = 0.137
    step = torch.tensor(scale, requires_grad=True)
    y = learned_step(x, step, low=-3, high=4, is_paced=False)
    assert torch.equal(y, torch.fake_quantize_per_tensor_affine(x, scale, 0, -3, 4))
    incoming = torch.randn(4, 3, 8, 8, generator=generator)  # of another layout than x, as it may come
    (slope,) = torch.autograd.grad((y * incoming).sum(), step)
    ratio = x.detach() / scale
    inside = (ratio >= -3) & (ratio <= 4)
    expected = torch.where(inside, y.detach() / scale - ratio, ratio.clamp(-3, 4))
    torch.testing.assert_close(slope, (expected * incoming).sum(), rtol=1e-4, atol=1e-4)


def test_codes_are_what_a_learned_step_gives_in_whole_steps() -> None:
    step = torch.tensor(0.4, dtype=torch.float64)
    codes = to_codes(X, step, low=-4, high=3)
    assert torch.equal(codes * step, learned_step(X, step, low=-4, high=3))
    assert torch.equal(codes, codes.round())


def test_a_step_without_the_papers_pace_has_its_plain_gradient() -> None:
    slopes = []
    for is_paced in (True, False):
        step = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        slopes += torch.autograd.grad(learned_step(X, step, low=-4, high=3, is_paced=is_paced).sum(), step)
    torch.testing.assert_close(slopes[0] * (8 * 3) ** 0.5, slopes[1])
