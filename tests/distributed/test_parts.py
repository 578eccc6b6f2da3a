"""The one training loop on parameters in parts: two ranks train as one process, and hooks see a whole network."""

import jobs_methods
import jobs_parts
import pytest
from processes import on_ranks

from lighten.core.run import Run

# as in test_training: the same sums in another order, over some twenty steps
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def one():
    return {name: jobs_parts.one(Run(), *of) for name, of in jobs_parts.TRAININGS.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return on_ranks(jobs_parts.everything, 2, str(tmp_path_factory.mktemp("parts")))


@pytest.mark.parametrize("name", jobs_parts.TRAININGS)
def test_two_ranks_in_parts_train_like_one_process(one, two, name):
    for rank in two:
        assert rank[name]["is_own"]
        assert rank[name]["losses"] == pytest.approx(one[name]["losses"], abs=TOLERANCE)
        assert rank[name]["validations"] == pytest.approx(one[name]["validations"], abs=TOLERANCE)
        for tensor, values in one[name]["weights"].items():
            assert rank[name]["weights"][tensor] == pytest.approx(values, abs=TOLERANCE), tensor


@pytest.mark.parametrize("name", jobs_parts.TRAININGS)
def test_every_rank_ends_with_the_same_numbers(two, name):
    assert two[0][name] == two[1][name]


def test_zeros_stay_zero(two):
    weight = two[0]["sgd, zeros kept"]["weights"]["0.weight"]
    assert weight[::2] == [0.0] * 48
    assert all(weight[1::2])


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(two):
    for rank in two:
        assert rank["resumed"]["is_whole"]
        assert rank["resumed"]["weights"] == rank["resumed"]["plain"]
        assert rank["resumed"]["notes"] == 4


def test_a_penalty_is_that_of_the_whole_weights(two):
    expected = jobs_parts.one(Run(), jobs_parts.dense, jobs_parts.SGD, penalty=jobs_parts.decay)
    for rank in two:
        assert rank["penalty"]["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
        for tensor, values in expected["weights"].items():
            assert rank["penalty"]["weights"][tensor] == pytest.approx(values, abs=TOLERANCE), tensor


@pytest.mark.slow
def test_every_method_that_trains_gives_the_weights_of_one_process():
    one = jobs_methods.methods()
    two = on_ranks(jobs_parts.methods, 2)
    assert two[0] == two[1]
    for name, weights in one.items():
        assert set(two[0][name]) == set(weights), two[0][name]
        for tensor, values in weights.items():
            assert two[0][name][tensor] == pytest.approx(values, abs=1e-5), f"{name} {tensor}"
