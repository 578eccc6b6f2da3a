"""Ranks train as one process does: the same batches, the same steps, the same weights to the last bits of float32.

How far two runs may differ: each step adds the gradients of the ranks in another order, an error of about 2^-24 of the weights,
which a few dozen steps of a network that learns do not blow up by more than a hundred.
"""

import math

import jobs_training as jobs
import pytest
from processes import on_ranks

FAR = 100 * 2**-24
EXACT = [name for name, (_, _, how) in jobs.TRAININGS.items() if how.average_every in (None, 1) and how.sync_norm]


@pytest.fixture(scope="module")
def one():
    return jobs.trainings()


@pytest.fixture(scope="module")
def both():
    """What each of two ranks found."""
    return on_ranks(jobs.everything, 2)


@pytest.fixture(scope="module")
def two(both):
    return [rank["trainings"] for rank in both]


def distance(first: dict[str, list[float]], second: dict[str, list[float]]) -> float:
    """The largest difference of two weights."""
    assert first.keys() == second.keys()
    return max(abs(a - b) for name in first for a, b in zip(first[name], second[name], strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_train_like_one_process(one, two, name):
    assert distance(one[name]["weights"], two[0][name]["weights"]) < FAR
    assert two[0][name]["losses"] == pytest.approx(one[name]["losses"], rel=1e-5)
    assert two[0][name]["validations"] == pytest.approx(one[name]["validations"], rel=1e-5)


@pytest.mark.slow
def test_four_ranks_train_like_one_process(one):
    four = on_ranks(jobs.of_four, 4)
    for name in EXACT:
        assert distance(one[name]["weights"], four[0][name]["weights"]) < FAR
        assert all(rank[name]["weights"] == four[0][name]["weights"] for rank in four)


@pytest.mark.parametrize("name", jobs.TRAININGS)
def test_every_rank_ends_with_the_same_bytes(two, name):
    first, second = (rank[name] for rank in two)
    assert first["weights"] == second["weights"]
    assert (first["losses"], first["validations"]) == (second["losses"], second["validations"])


def test_norms_of_their_own_are_not_those_of_the_whole_batch(one, two):
    assert distance(one["norms of their own"]["weights"], two[0]["norms of their own"]["weights"]) > 100 * FAR


@pytest.mark.parametrize("name", ["averaged now and then", "diloco"])
def test_ranks_that_train_apart_learn_too(two, name):
    first, *_, last = two[0][name]["validations"]
    assert last < first


def test_averaging_every_fourth_step_sends_fewer_bytes(two):
    # 6 steps in 3 epochs of 2: parameters 6 times against 3, where each epoch ends with an average of its own
    often, seldom = (two[0][name]["sent_bytes"] for name in ("averaged in every step", "averaged now and then"))
    assert seldom < often


def test_a_rank_with_fewer_examples_of_its_own_makes_as_many_steps(both):
    first, second = (rank["own data"] for rank in both)
    assert first["weights"] == second["weights"]
    # 93 examples in batches of 16 are 5 steps an epoch; the rank with 33 goes through them again
    assert (first["num_steps"], second["num_steps"]) == (15, 15)


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize(("how", "text"), [("nan", "loss on rank 1 is nan"), ("raises", "Rank 1: ValueError: no such image")])
def test_a_fault_of_one_rank_stops_all_with_one_message_that_names_it(both, how, text, every):
    first, second = (rank["failing"][f"{how} {every}"] for rank in both)
    assert first == second
    assert first["kind"] == "UnfitError"
    assert text in first["text"]
    assert all(math.isfinite(value) for values in first["weights"].values() for value in values)


def test_networks_that_differ_are_refused_with_the_ranks_number(both):
    text = "RankError: The networks that training begins with differ: rank 1 has other weights than rank 0."
    assert [rank["differing"] for rank in both] == [text, text]


def test_a_rank_that_hangs_is_found_and_named(both):
    assert both[0]["hanging"].startswith("1 True Rank 1 of 2 does not answer: it made ")


def test_ranks_exchange_numbers_tensors_and_words(both):
    first, second = (rank["exchanges"] for rank in both)
    assert first == second
    assert first["added"] == [[3.0, 3.0, 3.0], [[10, 10], [10, 10]], [], 1.0]
    assert first["shared"] == {"a": [0, 1, 2], "b": True, "c": []}
    assert first["told"] == ({"from": 0}, [["é", 0, None], ["é", 1, None]])
    # each of two ranks sends half of 4,000 bytes to be added, and the sum of the other half
    assert first["bytes"] == 4000
