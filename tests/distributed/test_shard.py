"""Ranks that hold a part of every parameter train as one process that holds all."""

import jobs_shard
import pytest
import torch
from networks_of_ranks import Language, built, perceptron
from processes import on_ranks
from torch import nn

from lighten.core.errors import InputError, UnfitError
from lighten.engine.shard import Options, _recompute, clip_gradients, repeated_blocks

# the mean over two halves is the same sum in another order; Adam divides by its own size, so the error is of the learning rate:
# three steps of 0.01, times float32's 6e-8, times the hundred terms of a sum, are below
TOLERANCE = 1e-6


def check(given, expected, tolerance=TOLERANCE):
    assert set(expected) <= set(given)
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(given[name]), value.float(), rtol=tolerance, atol=tolerance, msg=name)


CASES = {
    "blocks": Options(recompute=True),
    "masked": Options(),
    "graph": Options(offload=True),
    "half": Options(precision="bf16"),
}


@pytest.fixture(scope="module")
def found():
    """What two ranks give for each case."""
    networks = [("blocks" if name == "half" else name, options) for name, options in CASES.items()]
    return dict(zip(CASES, zip(*on_ranks(jobs_shard.sharded, 2, 2, *networks), strict=True), strict=True))


@pytest.mark.parametrize("network", ["blocks", "masked", "graph"])
def test_two_ranks_that_shard_give_the_weights_and_the_optimizer_of_one_process(network, found):
    module = jobs_shard.made(network)
    expected = jobs_shard.train(module, slice(None))
    first, second = found[network]
    check(first, expected)
    check(second, {name: torch.as_tensor(first[name]) for name in expected}, tolerance=0)
    assert first["names"] == [name for name, _ in module.named_parameters()]
    whole = sum(value.numel() for value in module.parameters())
    assert first["held"] + second["held"] <= whole + 1  # a scalar is held by both
    assert not expected["weights/0.weight"][:, ::2].any()


@pytest.mark.slow
def test_four_ranks_that_shard_give_the_weights_of_one_process():
    expected = jobs_shard.train(jobs_shard.made("blocks"), slice(None))
    for (given,) in on_ranks(jobs_shard.sharded, 4, 4, ("blocks", Options())):
        check(given, expected)


def test_in_bfloat16_weights_move_as_far_as_in_float32(found):
    expected, given = jobs_shard.train(jobs_shard.made("blocks"), slice(None)), found["half"][0]
    # Adam moves an entry by at most the learning rate a step, whatever the gradient's size: 3 x 0.01, to either side
    check(given, {"weights/0.weight": expected["weights/0.weight"]}, tolerance=0.06)
    # sums of 8-bit mantissas: a few 2^-8 of their size
    torch.testing.assert_close(torch.as_tensor(given["norms"])[0], expected["norms"][0], rtol=2**-6, atol=0)


def test_a_snapshot_is_whole_on_every_rank_and_goes_into_sharded_parameters():
    assert on_ranks(jobs_shard.snapshots, 2) == [True, True]


def test_blocks_are_found_by_their_shapes_and_not_by_their_names():
    assert list(repeated_blocks(built(Language))) == [f"blocks.{number}" for number in range(4)]
    assert list(repeated_blocks(perceptron())) == ["2", "3"]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.ReLU())) == {}


def test_the_norm_and_the_clipping_of_one_process_are_those_of_torch():
    ours, theirs = perceptron(), perceptron()
    for module in (ours, theirs):
        module(torch.ones(2, 6)).sum().backward()
    expected = float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
    assert clip_gradients(ours.parameters(), 0.5) == pytest.approx(expected, rel=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_what_cannot_be_done_is_an_error():
    with pytest.raises(InputError, match="precision must be one of float32, bf16. Got 'int4'"):
        Options(precision="int4")
    with pytest.raises(UnfitError, match="no repeated blocks"):
        _recompute(repeated_blocks(nn.Linear(1, 1)))
