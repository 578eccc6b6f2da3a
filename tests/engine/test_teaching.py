"""A teacher beside a loss: what is added, on which rows, for which task, and that the student runs once."""

import contextlib
import math

import pytest
import torch
from networks import Tensors
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.model import TASKS
from lighten.core.run import Run
from lighten.engine.losses import loss_for
from lighten.engine.schedule import Training
from lighten.engine.teaching import KINDS, soft_loss, taught
from lighten.engine.train import train
from lighten.ops import distill, features


class Says(nn.Module):
    """Always the same output, counting how often it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.num_calls = nn.Parameter(output), 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.num_calls += 1
        return self.output


def batch(*inputs: Tensor, target: Tensor | None = None) -> Batch:
    return Batch(inputs or (torch.zeros(4, 1),), target, (0, 1, 2, 3))


def outputs(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape), torch.randn(*shape)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_the_teacher_against_the_labels_and_the_student_runs_once(alpha):
    student_BC, teacher_BC = outputs(4, 3)
    target_B = torch.tensor([0, 1, 2, 0])
    module, labelled = Says(student_BC), batch(target=target_B)
    loss = taught(loss_for("classification"), lambda batch: teacher_BC, "classification", temperature=2.0, alpha=alpha)
    value = loss(module, labelled)
    own, soft = nn.functional.cross_entropy(student_BC, target_B), distill.soft_labels(student_BC, teacher_BC, temperature=2.0)
    assert value.item() == pytest.approx(float((1 - alpha) * own + alpha * soft), rel=1e-5)
    assert module.num_calls == 1


def test_the_second_batch_runs_the_student_again():
    student_BC, teacher_BC = outputs(4, 3)
    module, loss = Says(student_BC), taught(None, lambda batch: teacher_BC, "classification")
    loss(module, batch())
    loss(module, batch())
    assert module.num_calls == 2


def test_no_labels_are_needed_where_there_is_no_loss_of_the_task():
    student_BC, teacher_BC = outputs(4, 3)
    value = taught(None, lambda batch: teacher_BC, "classification", kind="mse")(Says(student_BC), batch())
    assert value.item() == pytest.approx(float((student_BC - teacher_BC).square().mean()))


@pytest.mark.parametrize("kind", ["kd", "mse", "dkd", "dist", "reverse_kl", "skew_kl", "jensen_shannon"])
@pytest.mark.parametrize("task", ["image-classification", "language-model"])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn_and_another_has(task, kind):
    shape = (4, 3) if task == "image-classification" else (4, 6, 3)
    student, teacher = outputs(*shape)
    ids = torch.randint(3, (4, 6))
    loss = taught(None, lambda batch: teacher, task, kind=kind)
    assert loss(Says(teacher), batch(ids)).item() == pytest.approx(0, abs=1e-5)
    assert loss(Says(student), batch(ids)).item() > 1e-3


def test_tokens_that_the_mask_leaves_out_do_not_count():
    student_BTV, teacher_BTV = outputs(4, 5, 3)
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    tokens = batch(torch.randint(3, (4, 5)), mask_BT)
    for kind in ("kd", "dkd"):
        loss = taught(None, lambda batch: teacher_BTV, "language-model", kind=kind)
        values = []
        for noise in (0.0, 100.0):
            module = Says(student_BTV + noise * (1 - mask_BT)[..., None] * torch.randn(4, 5, 3))
            values.append(loss(module, tokens).item())
        assert values[0] == values[1] > 0
    expected = distill.soft_labels(student_BTV[mask_BT.bool()], teacher_BTV[mask_BT.bool()])
    assert taught(None, lambda batch: teacher_BTV, "language-model")(Says(student_BTV), tokens).item() == expected.item()


def test_the_right_class_of_a_token_is_the_one_that_follows():
    student_BTV, teacher_BTV = outputs(2, 4, 5)
    ids_BT = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    soft = soft_loss("language-model", "dkd", temperature=4.0)
    found = soft(student_BTV, teacher_BTV, Batch((ids_BT, mask_BT), None, (0, 1)))
    places = ([0, 0, 0, 1, 1], [0, 1, 2, 0, 1])
    expected = distill.decoupled(student_BTV[places], teacher_BTV[places], torch.tensor([2, 3, 4, 3, 2]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_dkd_takes_the_label_for_the_right_class_or_the_teachers_choice_where_there_is_none():
    student_BC, teacher_BC = outputs(4, 3)
    target_B = (teacher_BC.argmax(1) + 1) % 3
    with_labels = taught(loss_for("classification"), lambda batch: teacher_BC, "classification", kind="dkd", alpha=1.0)
    without = taught(None, lambda batch: teacher_BC, "classification", kind="dkd", alpha=1.0)
    labelled = batch(target=target_B)
    for loss, right_B in ((with_labels, target_B), (without, teacher_BC.argmax(1))):
        expected = distill.decoupled(student_BC, teacher_BC, right_B)
        assert loss(Says(student_BC), labelled).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("task", "shape", "expected"),
    [
        ("regression", (4, 2), distill.logits),
        ("regression", (4,), distill.logits),
        ("sentence-similarity", (4, 8), lambda s, t: distill.embeddings(s, t) + features.distances(s, t)),
        ("speech-recognition", (4, 7, 3), distill.soft_labels),
    ],
)
def test_kd_is_what_suits_the_task(task, shape, expected):
    student, teacher = outputs(*shape)
    value = taught(None, lambda batch: teacher, task)(Says(student), batch())
    assert value.item() == pytest.approx(expected(student, teacher).item(), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_kd_and_refuses_what_does_not_suit_it(task):
    student, teacher = outputs(4, 6, 3) if task in ("language-model", "speech-recognition") else outputs(4, 3)
    fitting = []
    for kind in KINDS:
        with contextlib.suppress(InputError):
            loss = taught(None, lambda batch: teacher, task, kind=kind)
            fitting.append(kind)
            assert math.isfinite(loss(Says(student), batch(torch.zeros(4, 6, dtype=torch.int64))).item())
    assert fitting[0] == "kd"
    assert len(fitting) >= 2


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": 0}, "temperature must be > 0. Got 0."),
        ({"temperature": math.inf}, "temperature must be > 0. Got inf."),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\]. Got 1.1."),
        ({"alpha": True}, r"alpha must be in \[0, 1\]. Got True."),
        ({"kind": "dks"}, "Unknown distillation loss 'dks'. Did you mean 'dkd'?"),
        ({"kind": "cosine"}, "'cosine' does not suit classification. Try kd, mse, dkd, "),
    ],
)
def test_a_value_out_of_range_is_refused(knobs, message):
    with pytest.raises(InputError, match=message):
        taught(None, lambda batch: torch.zeros(1), "classification", **knobs)


def test_outputs_of_other_shapes_are_refused_unless_only_relations_are_compared():
    student, teacher = torch.randn(4, 8), torch.randn(4, 6)
    with pytest.raises(InputError, match=r"The student's output has shape \(4, 8\), the teacher's \(4, 6\)."):
        taught(None, lambda batch: teacher, "sentence-similarity")(Says(student), batch())
    loss = taught(None, lambda batch: teacher, "sentence-similarity", kind="relations")
    assert loss(Says(student), batch()).item() > 0


def test_no_gradient_reaches_the_teacher():
    student_BC, teacher_BC = outputs(4, 3)
    teacher, module = Says(teacher_BC), Says(student_BC)
    taught(None, lambda batch: teacher(*batch.inputs), "classification")(module, batch()).backward()
    assert teacher.output.grad is None
    assert module.output.grad.abs().sum() > 0


def test_a_linear_student_taught_without_labels_becomes_its_linear_teacher():
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    split = Tensors((torch.randn(512, 5),))
    loss = taught(None, lambda batch: teacher(*batch.inputs), "classification", temperature=1.0)
    train(student, split, loss=loss, training=Training(epochs=20, lr=0.3, weight_decay=0.0), run=Run())
    with torch.no_grad():
        wanted_BC, found_BC = (module(split.inputs[0]).softmax(1) for module in (teacher, student))
    assert float((wanted_BC - found_BC).abs().max()) < 0.01
