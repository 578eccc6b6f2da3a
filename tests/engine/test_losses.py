"""Each loss has a value that can be computed by hand, on the batches its task gives."""

import math

import pytest
import torch
from torch import Tensor, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import TASKS
from lighten.engine.losses import cosine_order, cross_entropy, ctc, loss_for, mean_squared, next_token


class Says(nn.Module):
    """A network that always says the same, whatever it is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.output, torch.zeros(1))


def batch(*inputs: Tensor, target: Tensor | None = None) -> Batch:
    return Batch(inputs or (torch.zeros(2, 1),), target, (0, 1))


def test_every_task_has_a_loss():
    for task in TASKS:
        assert callable(loss_for(task, blank=0))
    with pytest.raises(InputError, match="Unknown task 'regresion'. Did you mean 'regression'?"):
        loss_for("regresion")
    with pytest.raises(InputError, match="blank token"):
        loss_for("speech-recognition")


def test_cross_entropy_of_logits_that_say_nothing_is_the_logarithm_of_the_classes():
    value = cross_entropy(Says(torch.zeros(2, 5)), batch(target=torch.tensor([0, 4])))
    assert value.item() == pytest.approx(math.log(5))


def test_smoothed_labels_give_their_share_to_every_class():
    # p = (3/4, 1/4) for label 0; with smoothing 0.2 the target is (0.9, 0.1)
    logits_BC = torch.tensor([[math.log(3), 0.0]])
    loss = loss_for("classification", label_smoothing=0.2)
    value = loss(Says(logits_BC), batch(target=torch.tensor([0])))
    assert value.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 1\). Got 1."):
        loss_for("classification", label_smoothing=1)


def test_mean_squared_is_over_examples_and_outputs_of_any_target_type():
    output_BK = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    target_BK = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert mean_squared(Says(output_BK), batch(target=target_BK)).item() == pytest.approx((4 + 9) / 4)
    # one output a row and a flat target are matched row by row, not broadcast
    assert mean_squared(Says(output_BK[:, :1]), batch(target=torch.tensor([0, 1]))).item() == pytest.approx((1 + 4) / 2)


def test_the_next_token_is_scored_where_it_and_the_one_before_are_real():
    ids_BT = torch.tensor([[5, 6, 7, 0], [1, 2, 0, 0]])
    mask_BT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    logits_BTV = torch.zeros(2, 4, 8)
    logits_BTV[0, 0, 6] = math.log(7)  # half the probability for the right token, 1/8 for the two other scored ones
    logits_BTV[0, 2:] = 100 * torch.randn(2, 8)  # what follows padding does not count
    logits_BTV[1, 1:] = 100 * torch.randn(3, 8)
    value = next_token(Says(logits_BTV), batch(ids_BT, mask_BT))
    assert value.item() == pytest.approx((math.log(2) + 2 * math.log(8)) / 3)


def test_without_a_mask_every_token_but_the_first_is_scored():
    value = next_token(Says(torch.zeros(2, 4, 8)), batch(torch.zeros(2, 4, dtype=torch.int32)))
    assert value.item() == pytest.approx(math.log(8))


def test_pairs_in_the_rated_order_cost_less_than_pairs_in_another():
    # cosines of the two pairs are 1 and 0; rows are first texts, then second texts
    output = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    right, wrong, tied = ([5.0, 1.0], [1.0, 5.0], [3.0, 3.0])
    values = [cosine_order(Says(output), batch(target=torch.tensor(rating))).item() for rating in (right, wrong, tied)]
    assert values == pytest.approx([math.log1p(math.exp(-20)), math.log1p(math.exp(20)), 0.0], abs=1e-7)


def test_the_scale_of_the_ratings_does_not_matter_and_ties_have_no_slope():
    torch.manual_seed(0)
    module, rating_B = Says(torch.randn(8, 3)), torch.tensor([0.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    first, second = (cosine_order(module, batch(target=rating)).item() for rating in (rating_B, rating_B / 5 - 1))
    assert first == second > 0
    cosine_order(module, batch(target=torch.ones(4))).backward()
    assert torch.equal(module.output.grad, torch.zeros(8, 3))


def test_ctc_sums_over_the_ways_to_say_the_transcript():
    # two frames, three equally likely tokens, transcript "1": 1-1, 1-blank and blank-1 are 3 of the 9 paths. "2 2" needs three
    # frames, so it adds nothing, and the mean is over two recordings
    target_BL = torch.tensor([[1, -1], [2, 2]])
    value = ctc(Says(torch.zeros(2, 2, 3)), batch(target=target_BL), blank=0)
    assert value.item() == pytest.approx(math.log(3) / 2)
    assert loss_for("speech-recognition", blank=0)(Says(torch.zeros(2, 2, 3)), batch(target=target_BL)).item() == value.item()


@pytest.mark.parametrize(
    ("loss", "shape", "target", "error"),
    [
        (cross_entropy, (2, 3, 4), [0, 1], UnfitError),
        (cross_entropy, (2, 1), [0, 0], UnfitError),
        (cross_entropy, (2, 3), [0, 3], InputError),
        (cross_entropy, (2, 3), None, InputError),
        (mean_squared, (2, 3), [0.0, 1.0], UnfitError),
        (next_token, (2, 3), None, UnfitError),
        (cosine_order, (3, 4), [0.0, 1.0], UnfitError),
        (ctc, (2, 3), [[1], [1]], UnfitError),
    ],
)
def test_outputs_and_targets_that_do_not_suit_the_task_are_refused(loss, shape, target, error):
    target = None if target is None else torch.tensor(target)
    with pytest.raises(error):
        loss(Says(torch.zeros(shape)), batch(target=target))


def test_a_loss_of_a_bf16_output_is_computed_in_float32():
    value = mean_squared(Says(torch.ones(2, 1, dtype=torch.bfloat16)), batch(target=torch.zeros(2)))
    assert (value.dtype, value.item()) == (torch.float32, 1.0)
