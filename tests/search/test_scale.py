"""Forecasts against sums done by hand, against limits that are known, and against what a rank really holds."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lighten.core.distributed import Distributed
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin
from lighten.search.scale import STATE_BYTES, Fleet, Link, Network, Step, best, forecast, network_of, transformer

LINK = Link(1e-5, 1e9)
NETWORK = Network(block_params=8_000_000, other_params=0, macs=10**9, blocks=8, edge_bytes=1000, inner_bytes=34_000)


def fleet(ranks: int, **changes) -> Fleet:
    return replace(Fleet(ranks, 10**9, 1e12, LINK, LINK), **changes)


def test_one_rank_does_four_passes_with_recomputing_and_three_without_and_sends_nothing():
    found = forecast(NETWORK, fleet(1), Distributed(), step=Step(batch=16))
    assert found.work_s == pytest.approx(4 * 16 * 1e9 / 1e12)
    assert found.longest_s == found.work_s == found.shortest_s
    assert forecast(NETWORK, fleet(1), Distributed(), step=Step(16, recompute=False)).work_s == pytest.approx(
        3 * 16 * 1e9 / 1e12
    )


def test_sharding_divides_the_state_by_the_ranks_and_replicas_do_not():
    whole = forecast(NETWORK, fleet(4), Distributed(data=4), step=Step(16))
    parts = forecast(NETWORK, fleet(4), Distributed(data=4, shard="full"), step=Step(16))
    assert whole.state_bytes == 16 * 8_000_000
    assert parts.state_bytes == whole.state_bytes / 4
    assert parts.gathered_bytes == 2 * 2 * 1_000_000  # two blocks in bfloat16


def test_an_all_reduce_sends_twice_the_gradients_less_a_share_in_twice_the_ranks_less_one_messages():
    found = forecast(NETWORK, fleet(4), Distributed(data=4), step=Step(16))
    assert found.data_s == pytest.approx(2 * 3 * 1e-5 + 2 * 3 / 4 * 4 * 8e6 / 1e9)


def test_sharding_sends_one_and_a_half_times_as_much_in_float32():
    """Rajbhandari et al. 2020, section 7.2.2: two gathers and a scatter against an all-reduce."""
    quick = fleet(4, link=Link(0, 1e9), near=Link(0, 1e9))
    whole = forecast(NETWORK, quick, Distributed(data=4), step=Step(16, micro=4, half=False))
    parts = forecast(NETWORK, quick, Distributed(data=4, shard="full"), step=Step(16, micro=4, half=False))
    assert parts.data_s == pytest.approx(1.5 * whole.data_s)


def test_a_pipeline_waits_for_its_stages_less_one_of_its_microbatches():
    found = forecast(NETWORK, fleet(4), Distributed(pipeline=4), step=Step(batch=16))
    assert found.waiting_s == pytest.approx(found.work_s * 3 / 16)
    assert found.work_s == pytest.approx(4 * 16 * 1e9 / 1e12 / 4)
    uneven = forecast(replace(NETWORK, blocks=9), fleet(4), Distributed(pipeline=4), step=Step(batch=16))
    assert uneven.work_s == pytest.approx(4 * 16 * 1e9 / 1e12 * 3 / 9)  # the longest stage has three of nine blocks


def test_tensor_parallelism_divides_the_blocks_and_not_the_embedding():
    network = replace(NETWORK, other_params=1_000_000, inner_shared_bytes=24_000)
    found = forecast(network, fleet(4), Distributed(tensor=4), step=Step(batch=1))
    assert found.state_bytes == 16 * (8_000_000 / 4 + 1_000_000)
    assert found.activation_bytes == 8 * 1000 + 34_000 - 18_000


@pytest.mark.parametrize(("params", "depth", "width"), [(7e9, 32, 4096), (70e9, 80, 8192), (405e9, 126, 16384)])
def test_a_decoder_of_a_size_is_about_as_deep_and_wide_as_a_known_one(params, depth, width):
    found = transformer(int(params), sequence=1)
    assert found.params == pytest.approx(params, rel=0.05)
    assert found.blocks == pytest.approx(depth, rel=0.15)
    assert found.edge_bytes / 2 == pytest.approx(width, rel=0.15)


def test_multiply_accumulates_of_a_short_sequence_are_its_weights_a_token():
    found = transformer(7 * 10**9, sequence=1)
    used = found.block_params + found.other_params // 2  # the embedding is looked up
    assert found.macs == pytest.approx(used, rel=1e-4)


def test_the_best_grid_fits_and_no_grid_that_fits_is_faster():
    network = transformer(7 * 10**9)
    gpus = Fleet(8, 80 * 10**9, 200e12, Link(1e-5, 50e9), Link(1e-5, 300e9))
    found = best(network, gpus, 64)
    assert found.memory_bytes <= gpus.memory_bytes
    assert found.distributed.world == 8
    other = forecast(network, gpus, Distributed(data=8, shard="full"), step=Step(64))
    assert other.memory_bytes > gpus.memory_bytes or other.longest_s >= found.longest_s


def test_what_does_not_fit_says_how_much_is_missing():
    with pytest.raises(UnfitError, match=r"70.7B parameters do not fit: each of 8 ranks needs \d+.\d GB and has 80.0 GB"):
        best(transformer(70 * 10**9), Fleet(8, 80 * 10**9, 200e12, LINK, LINK), 64)


def test_bad_sizes_are_errors():
    with pytest.raises(InputError, match="needs 2 processes, and 4 were started"):
        forecast(NETWORK, fleet(4), Distributed(data=2), step=Step(16))
    with pytest.raises(InputError, match="is not cut into 4 shares of microbatches of 3"):
        forecast(NETWORK, fleet(4), Distributed(data=4), step=Step(16, micro=3))
    with pytest.raises(InputError, match="smaller than one block"):
        transformer(1000)
    with pytest.raises(InputError, match="at least 1 rank"):
        fleet(0)


def test_a_network_s_state_is_that_of_its_parameters_gradients_and_adam():
    module = nn.Sequential(nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    tensors = [*module.parameters(), *(value.grad for value in module.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    held = sum(value.untyped_storage().nbytes() for value in tensors)
    network = network_of(Model(module.eval(), (torch.ones(2, 4),), Origin("module", "test")))
    assert (network.blocks, network.block_params) == (3, 3 * 72)
    assert network.macs == 4 * 8 + 3 * 64 + 16
    assert forecast(network, fleet(1), Distributed(), step=Step(1)).state_bytes == held == STATE_BYTES * network.params
