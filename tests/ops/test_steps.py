"""Straight-through estimators against the papers' gradients. Dimension key: O output channels."""

import pytest
import torch

from lighten.ops.steps import first_step, learned_clip, learned_step, round_through, scale_gradient

X = torch.tensor([-3.0, -1.13, -0.2, 0.0, 0.3, 0.8, 1.4, 9.0], dtype=torch.float64)


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
