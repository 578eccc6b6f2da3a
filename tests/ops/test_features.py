"""Losses on features: zero at agreement, blind to what they must not see, and gradients that reach the student alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lighten.ops import features

GENERATOR = torch.Generator().manual_seed(0)
SHAPES: dict[Callable[..., Tensor], tuple[int, ...]] = {
    features.hidden_states: (6, 4),
    features.attention_maps: (6, 3, 4, 4),
    features.distances: (6, 4),
    features.angles: (6, 4),
    features.contrast: (6, 4),
    features.relations: (2, 3, 5, 4),
    features.attention: (2, 3, 5, 5),
}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("loss", SHAPES, ids=lambda loss: loss.__name__)
def test_agreement_costs_nothing_and_gradients_reach_the_student_alone(loss: Callable[..., Tensor]) -> None:
    student, teacher = (random(*SHAPES[loss]).requires_grad_() for _ in range(2))
    assert abs(loss(teacher, teacher).item()) < 1e-12
    before = loss(student, teacher)
    before.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    assert loss(student.detach() - 1e-3 / student.grad.norm() * student.grad, teacher) < before


@pytest.mark.parametrize("loss", [features.distances, features.angles], ids=["distances", "angles"])
def test_relations_of_examples_do_not_see_rotation_scale_and_offset(loss: Callable[..., Tensor]) -> None:
    teacher = random(6, 4)
    rotation, _ = torch.linalg.qr(random(4, 4))
    assert float(loss(3 * teacher @ rotation + 1, teacher)) < 1e-12


def test_relations_compare_heads_of_different_widths() -> None:
    assert float(features.relations(random(2, 3, 5, 2), random(2, 3, 5, 8))) > 0
    rotation, _ = torch.linalg.qr(random(4, 4))
    values = random(2, 3, 5, 4)
    assert float(features.relations(values @ rotation, values)) < 1e-12


def test_attention_maps_compare_different_channels_and_sizes() -> None:
    """A teacher of constant blocks of 2 x 2 has the student's map, twice as large and with its channels doubled."""
    student = random(6, 3, 4, 4)
    teacher = torch.cat([student, student], 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(features.attention_maps(student, teacher)) < 1e-12


def test_similarity_is_one_up_to_rotation_and_scale_and_small_for_strangers() -> None:
    one = random(50, 4)
    rotation, _ = torch.linalg.qr(random(4, 4))
    torch.testing.assert_close(features.similarity(2 * one @ rotation, one), torch.tensor(1.0))
    # independent features: about (F1 F2)^(1/2) / B
    assert float(features.similarity(random(50, 4), one)) < 0.3
