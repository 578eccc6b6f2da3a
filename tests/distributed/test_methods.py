"""Every method that trains gives on two ranks what it gives in one process."""

import jobs_methods as jobs
import pytest
from processes import on_ranks
from test_training import FAR, distance


@pytest.fixture(scope="module")
def methods():
    return jobs.methods(), on_ranks(jobs.methods, 2)


@pytest.mark.parametrize("name", ["finetune", "distill", "sparsify", "prune", "qat"])
def test_a_method_trains_on_two_ranks_as_on_one(methods, name):
    one, (first, second) = methods
    assert first[name] == second[name]
    assert distance(one[name], first[name]) < FAR


def test_the_masks_of_two_ranks_are_those_of_one(methods):
    one, (first, _) = methods
    zeros = [{name: [value == 0 for value in values] for name, values in found["sparsify"].items()} for found in (one, first)]
    assert zeros[0] == zeros[1]
    assert sum(map(sum, zeros[0].values())) > 1000
