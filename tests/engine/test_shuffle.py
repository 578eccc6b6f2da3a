"""Every example once an epoch, in another order, whole and with its own target."""

from dataclasses import dataclass

import pytest
import torch
from networks import Tensors
from torch.nn import functional

from lighten.core.data import Batch, Example
from lighten.core.errors import InputError, UnfitError
from lighten.engine.shuffle import Shuffled


@dataclass(frozen=True)
class Given:
    """A split of ready batches, which counts how often it is read."""

    given: list[Batch]
    reads: list[int]

    def __len__(self):
        return sum(len(batch.index) for batch in self.given)

    def batches(self, size, limit=None):
        self.reads.append(1)
        yield from self.given

    def describe(self, index):
        return Example(f"row {index}")


def numbered(count: int) -> Tensors:
    return Tensors((torch.arange(count).float()[:, None], 10.0 * torch.arange(count)[:, None]), torch.arange(count))


def indices(batches) -> list[int]:
    return [index for batch in batches for index in batch.index]


def test_an_epoch_has_every_example_once_with_its_inputs_and_target():
    batches = list(Shuffled(numbered(12), 4).epoch(0))
    assert sorted(indices(batches)) == list(range(12))
    for batch in batches:
        assert batch.target.tolist() == list(batch.index)
        assert batch.inputs[0].tolist() == [[float(index)] for index in batch.index]
        assert batch.inputs[1].tolist() == [[10.0 * index] for index in batch.index]


def test_the_order_is_of_the_seed_alone():
    shuffled = Shuffled(numbered(64), 8)
    first, again, other = (indices(shuffled.epoch(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first != sorted(first)


def test_the_examples_that_fill_no_batch_are_left_out_others_each_time():
    shuffled = Shuffled(numbered(10), 4)
    assert shuffled.num_batches == 2
    left_out = {frozenset(range(10)) - frozenset(indices(shuffled.epoch(seed))) for seed in range(6)}
    assert {len(missing) for missing in left_out} == {2}
    assert len(left_out) > 1


def test_fewer_examples_than_a_batch_make_one_batch():
    shuffled = Shuffled(numbered(3), 8)
    assert (shuffled.num_batches, sorted(indices(shuffled.epoch(0)))) == (1, [0, 1, 2])


def test_the_split_is_read_once_when_it_fits_and_each_epoch_when_it_does_not():
    for most_bytes, reads in ((96, 1), (95, 3)):  # 12 examples of two float32 each
        split = Given(list(numbered(12).batches(4)), [])
        shuffled = Shuffled(split, 4, most_bytes=most_bytes)
        for epoch in range(2):
            assert sorted(indices(shuffled.epoch(epoch))) == list(range(12))
        assert len(split.reads) == reads


def test_beyond_the_limit_examples_are_mixed_inside_a_window():
    split = Given(list(numbered(16).batches(4)), [])
    order = indices(Shuffled(split, 4, most_bytes=64).epoch(3))
    assert sorted(order[:8]) == list(range(8))
    assert order[:8] != list(range(8))
    assert {index // 4 for index in order[:4]} == {0, 1}


def test_both_rows_of_a_sentence_pair_stay_together():
    ids = torch.arange(6)[:, None] * torch.ones(1, 3, dtype=torch.int64)
    pairs = [Batch((torch.cat([ids[a:b], 100 + ids[a:b]]),), ids[a:b, 0], tuple(range(a, b))) for a, b in ((0, 4), (4, 6))]
    for batch in Shuffled(Given(pairs, []), 3).epoch(0):
        first, second = batch.inputs[0].chunk(2)
        assert first[:, 0].tolist() == list(batch.index) == batch.target.tolist()
        assert second[:, 0].tolist() == [100 + index for index in batch.index]


def test_texts_of_different_lengths_share_a_batch_as_long_as_its_longest():
    lengths = [2, 3, 7, 1, 4, 5]
    given = []
    for start, widest in ((0, 7), (3, 5)):
        ids = torch.stack(
            [functional.pad(torch.ones(n, dtype=torch.int64), (0, widest - n)) for n in lengths[start : start + 3]]
        )
        given.append(Batch((ids, ids.clone()), None, tuple(range(start, start + 3))))
    seen = []
    for seed in range(5):
        for batch in Shuffled(Given(given, []), 2).epoch(seed):
            ids, mask = batch.inputs
            assert torch.equal(mask, ids)
            assert mask.sum(1).tolist() == [lengths[index] for index in batch.index]
            came_in = {index // 3 for index in batch.index}
            assert mask.shape[1] == (max(2, *mask.sum(1).tolist()) if len(came_in) == 2 else (7, 5)[min(came_in)])
            seen.append(came_in)
    assert {0, 1} in seen  # a batch mixes what came in two


def test_examples_of_other_shapes_without_a_mask_do_not_share_a_batch():
    given = [
        Batch((torch.randn(4, 8),), None, (0, 1, 2, 3)),
        Batch((torch.randn(1, 9),), None, (4,)),
        Batch((torch.randn(3, 8),), None, (5, 6, 7)),
    ]
    shuffled = Shuffled(Given(given, []), 3)
    assert shuffled.num_batches == 3  # two of seven, and the only one of its shape
    shapes = sorted(tuple(batch.inputs[0].shape) for batch in shuffled.epoch(0))
    assert shapes == [(1, 9), (3, 8), (3, 8)]


def test_rows_that_no_example_owns_are_refused_and_so_is_an_empty_split():
    with pytest.raises(UnfitError, match="2 examples has inputs of 3 rows"):
        Shuffled(Given([Batch((torch.zeros(3, 1),), None, (0, 1))], []), 2)
    with pytest.raises(InputError, match="no examples"):
        Shuffled(numbered(0), 2)
