"""Losses on outputs: known answers, limits, and gradients that reach the student alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lighten.ops import distill

TARGET_N = torch.arange(12) % 5


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*(shape or (12, 5)), generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def call(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    loss = distill.LOSSES[name]
    return loss(student, teacher, TARGET_N) if name == "dkd" else loss(student, teacher)


@pytest.mark.parametrize("name", distill.LOSSES)
def test_a_student_that_agrees_loses_nothing_and_another_one_something(name: str) -> None:
    student, teacher = pair()
    assert abs(float(call(name, teacher, teacher))) < 1e-12
    assert float(call(name, student, teacher)) > 0.01


@pytest.mark.parametrize("name", distill.LOSSES)
def test_gradients_reach_the_student_alone_and_descend(name: str) -> None:
    student, teacher = (value.requires_grad_() for value in pair())
    before = call(name, student, teacher)
    before.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    step = 1e-3 / student.grad.norm()
    assert call(name, student.detach() - step * student.grad, teacher) < before


@pytest.mark.parametrize("name", [name for name in distill.LOSSES if name != "dkd"])
def test_frames_and_tokens_count_as_examples(name: str) -> None:
    student, teacher = pair(3, 4, 5)
    torch.testing.assert_close(call(name, student, teacher), call(name, student.reshape(12, 5), teacher.reshape(12, 5)))


def test_soft_labels_are_the_divergence_that_torch_computes() -> None:
    student, teacher = pair()
    wanted = functional.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean") * 9
    torch.testing.assert_close(distill.soft_labels(student, teacher, temperature=3), wanted)


def test_at_high_temperature_soft_labels_become_the_centred_logits_distance() -> None:
    """T^2 KL -> sum over classes of (difference of centred logits)^2 / 2C (arXiv:1503.02531, eq. 4), with an error of 1 / T."""
    student, teacher = pair()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    wanted = gap.square().sum(1).mean() / (2 * 5)
    torch.testing.assert_close(distill.soft_labels(student, teacher, temperature=1e4), wanted, rtol=1e-3, atol=0)


def test_decoupled_weights_of_one_and_of_the_rest_give_soft_labels_back() -> None:
    """KL = KL(b_t || b_s) + (1 - p_t) KL(q_t || q_s), arXiv:2203.08679, eq. 6; here with one p_t for all examples."""
    student, _ = pair()
    teacher = functional.one_hot(TARGET_N, 5).double() * 2
    rest = 1 - float((teacher / 4).softmax(1)[0, 0])
    found = distill.decoupled(student, teacher, TARGET_N, target=1.0, others=rest)
    torch.testing.assert_close(found, distill.soft_labels(student, teacher, temperature=4))


def test_correlation_does_not_see_a_change_of_scale_and_offset_of_the_probabilities() -> None:
    _, teacher = pair()
    flatter = (0.5 * teacher.softmax(1) + 0.5 / 5).log()
    assert abs(float(distill.correlation(flatter, teacher, within=0))) < 1e-12
    assert float(distill.soft_labels(flatter, teacher, temperature=1)) > 0.01


def test_skew_zero_is_the_forward_divergence_and_more_skew_is_less() -> None:
    student, teacher = pair()
    torch.testing.assert_close(distill.skewed(student, teacher, skew=0.0), distill.soft_labels(student, teacher, temperature=1))
    assert distill.skewed(student, teacher, skew=0.5) < distill.skewed(student, teacher, skew=0.1)


def test_skewed_and_jensen_shannon_stay_finite_where_the_student_excludes_what_the_teacher_does() -> None:
    student = torch.tensor([[0.0, -400.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    assert float(distill.soft_labels(student, teacher, temperature=1)) > 190
    # at most log(1 / skew), and log 2
    assert float(distill.skewed(student, teacher, skew=0.1)) < 2.303
    assert float(distill.jensen_shannon(student, teacher)) < 0.694
