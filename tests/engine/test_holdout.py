"""What is held out of a training split: its size, that it is apart, and how it is scored."""

import pytest
import torch
from networks import Tensors, sentences
from torch import nn

from lighten.engine.holdout import FEWEST, MOST, held_out, loss_on
from lighten.engine.losses import cross_entropy
from lighten.engine.shuffle import Shuffled


def numbered(count: int) -> Tensors:
    """Example i holds i."""
    return Tensors((torch.arange(count, dtype=torch.float32)[:, None],), torch.arange(count))


def values(split) -> list[int]:
    return [int(value) for batch in split.batches(7) for value in batch.inputs[0]]


@pytest.mark.parametrize(
    ("count", "share", "held"), [(100, 0.1, 10), (94, 0.1, 0), (100, 0.5, 50), (100, 0.0, 0), (20_000, 0.1, MOST)]
)
def test_as_many_are_held_out_as_were_asked_for_within_the_bounds(count, share, held):
    trains, apart = held_out(numbered(count), share, seed=0)
    assert (0 if apart is None else len(apart)) == held
    assert len(trains) == count - held
    assert held == 0 or held >= FEWEST


def test_no_example_is_on_both_sides_and_none_is_lost():
    split = numbered(200)
    trains, apart = held_out(split, 0.25, seed=3)
    assert sorted(values(trains) + values(apart)) == list(range(200))
    assert values(apart) == sorted(values(apart)) != list(range(50))
    for part in (trains, apart):
        for batch in part.batches(16):
            assert batch.target.tolist() == list(batch.index) == [int(value) for value in batch.inputs[0]]
        assert all(len(batch.index) == 16 for batch in list(part.batches(16))[:-1])
    assert values(held_out(split, 0.25, seed=3)[1]) == values(apart)
    assert values(held_out(split, 0.25, seed=4)[1]) != values(apart)


def test_a_limit_gives_the_first_and_a_description_is_the_splits_own():
    _, apart = held_out(numbered(100), 0.3, seed=0)
    (batch,) = apart.batches(64, 5)
    assert [int(value) for value in batch.inputs[0]] == values(apart)[:5]
    assert apart.describe(batch.index[0]).title == f"row {batch.index[0]}"


def test_texts_keep_their_tokens_and_masks():
    split = sentences(count=40).test
    _, apart = held_out(split, 0.5, seed=0)
    for batch in apart.batches(8):
        assert torch.equal(batch.inputs[0], split.inputs[0][list(batch.index)])
        assert torch.equal(batch.inputs[1], split.inputs[1][list(batch.index)])


def test_an_epoch_of_what_trains_never_draws_what_is_held_out():
    trains, apart = held_out(numbered(100), 0.2, seed=0)
    drawn = {index for batch in Shuffled(trains, 16).epoch(0) for index in batch.index}
    assert drawn.isdisjoint(values(apart))
    assert len(drawn) == 80


def test_the_loss_on_a_part_is_the_mean_over_its_examples_whatever_the_batches():
    torch.manual_seed(0)
    module, split = nn.Linear(4, 3).requires_grad_(False), Tensors((torch.randn(50, 4),), torch.randint(3, (50,)))
    whole = float(nn.functional.cross_entropy(module(split.inputs[0]), split.target))
    for batch_size in (50, 16, 1):
        found = loss_on(split, cross_entropy, batch_size=batch_size)(module)
        assert found == pytest.approx(whole, rel=1e-6)  # float32 sums in another order
