"""Ranks with a stage each compute what one process does; the stages are the best balanced ones."""

from itertools import combinations, pairwise

import jobs_pipeline
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks_of_ranks import Language, built, model_of
from processes import on_ranks
from torch import nn

from lighten.analyze.stages import stages
from lighten.core.distributed import Distributed
from lighten.core.errors import UnfitError
from lighten.ops.partition import linear_partition

# float32 rounds each sum by 6e-8 of its size; means over microbatches are the same sums in another order, over two steps
TOLERANCE = 1e-5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_the_partition_is_the_best_of_all(costs, data):
    count = data.draw(st.integers(1, len(costs)))
    ends = linear_partition(costs, count)
    every = [(*inside, len(costs)) for inside in combinations(range(1, len(costs)), count - 1)]
    assert ends in every
    assert worst(costs, ends) == min(worst(costs, each) for each in every)


def worst(costs, ends):
    return max(sum(costs[start:end]) for start, end in pairwise((0, *ends)))


def test_more_runs_than_items_are_refused():
    with pytest.raises(ValueError, match="2 items cannot be cut into 3 runs"):
        linear_partition([1, 2], 3)


def test_four_equal_blocks_are_two_for_each_stage():
    model = model_of(built(Language), torch.zeros(2, 6, dtype=torch.int64))
    first, second = stages(model, 2)
    assert {name.split(".")[1] for name, _ in first.module.named_parameters() if name.startswith("blocks")} == {"0", "1"}
    assert second.macs - first.macs == 6 * 16 * 24  # the head's


def test_stages_one_behind_the_other_are_the_network():
    module = built(Language)
    ids = torch.arange(12).reshape(2, 6)
    first, second = stages(model_of(module, ids), 2)
    assert (first.inputs, second.inputs) == (("ids_bt",), ("ids_bt",))  # the second reads only how many there are
    torch.testing.assert_close(second.module(first.module(ids), ids), module(ids), rtol=0, atol=0)


def test_a_network_with_fewer_operators_than_stages_is_refused():
    with pytest.raises(UnfitError, match="cannot be cut into 4 stages"):
        stages(model_of(nn.Linear(2, 2), torch.zeros(2, 2)), 4)


def check(found, expected):
    for name, value in expected.items():
        if name in found and name != "norms":
            torch.testing.assert_close(torch.as_tensor(found[name]), value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    assert len(set(found) & set(expected)) >= len(expected) - 2  # all but the norms, and one of two tied names


@pytest.mark.parametrize(("case", "microbatches"), [("text", 4), ("images", 2)])
def test_two_stages_give_the_loss_and_the_weights_of_one_process(case, microbatches):
    expected = jobs_pipeline.alone(case)
    for found in on_ranks(jobs_pipeline.behind, 2, case, microbatches, Distributed(pipeline=2)):
        check(found, expected)
        assert found["held"] < 0.9 * sum(value.numel() for name, value in expected.items() if "." in name)


@pytest.mark.slow
def test_two_stages_of_two_sharded_replicas_give_the_weights_of_one_process():
    expected = jobs_pipeline.alone("text")
    expected.pop("losses")  # each replica's are of its own examples
    for found in on_ranks(jobs_pipeline.behind, 4, "text", 2, Distributed(pipeline=2, data=2, shard="full")):
        check(found, expected)
