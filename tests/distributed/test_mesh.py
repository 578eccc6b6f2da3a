"""The grid of ranks: which axis a rank's neighbours lie on, and sizes that do not fit."""

import jobs_shard
import pytest
from processes import on_ranks

from lighten.core.distributed import Distributed

AXES = ("data", "tensor", "pipeline")


@pytest.fixture(scope="module")
def places():
    """What two ranks say about one grid for each axis, and about one for four ranks."""
    return on_ranks(jobs_shard.coordinates, 2, *(Distributed(**{axis: 2}) for axis in AXES), Distributed(data=2, tensor=2))


def test_two_ranks_of_an_axis_have_places_0_and_1_on_it_and_0_on_the_others(places):
    for axis, first, second in zip(AXES, *places, strict=False):
        assert first == {"pipeline": 0, "data": 0, "tensor": 0}
        assert second == {**first, axis: 1}


def test_sizes_that_do_not_multiply_to_the_number_of_ranks_are_an_error_on_all(places):
    for said in places:
        assert said[-1].startswith("distributed: data 2 x tensor 2 x pipeline 1 needs 4 processes, and 2 were started.")


@pytest.mark.slow
def test_ranks_of_the_tensor_axis_are_neighbours_and_those_of_the_pipeline_axis_are_far():
    found = on_ranks(jobs_shard.coordinates, 4, Distributed(data=2, tensor=2), Distributed(data=2, pipeline=2))
    assert [(place["data"], place["tensor"]) for place, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(place["pipeline"], place["data"]) for _, place in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
