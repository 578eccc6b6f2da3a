"""How a run is spread: what a recipe may say, and sizes that must multiply to the number of processes."""

import pytest

from lighten.core.distributed import Distributed
from lighten.core.errors import InputError
from lighten.core.recipe import Recipe


def test_a_recipe_keeps_its_line():
    text = "steps: [{quantize: {bits: 8}}]\ndistributed: {data: 2, average_every: 16, outer_lr: 0.7, outer_momentum: 0.9}\n"
    recipe = Recipe.from_yaml(text)
    assert recipe.distributed == Distributed(data=2, average_every=16, outer_lr=0.7, outer_momentum=0.9)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(Recipe().to_yaml()).distributed is None


def test_sizes_multiply_to_the_world():
    Distributed(data=2, tensor=2, pipeline=3).check_world(12)
    with pytest.raises(InputError, match=r"data 2 x tensor 1 x pipeline 2 needs 4 processes, and 2 were started\..*--nproc 4"):
        Distributed(data=2, pipeline=2).check_world(2)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"data": 0}, r"data must be an integer >= 1\. Got 0"),
        ({"data": True}, r"data must be an integer >= 1\. Got True"),
        ({"average_every": 0}, r"average_every must be an integer >= 1\. Got 0"),
        ({"shard": "half"}, r"shard must be one of none, full\. Got 'half'"),
        ({"sync_norm": 1}, r"sync_norm must be true or false\. Got 1"),
        ({"average_every": 2, "outer_momentum": 1.0}, r"outer_momentum must be in \[0, 1\)\. Got 1\.0"),
        ({"timeout": float("inf")}, r"timeout must be > 0\. Got inf"),
        ({"outer_lr": 0.7}, r"Give average_every too"),
        ({"average_every": 2, "shard": "full"}, r"needs the whole network on each rank"),
        ({"dta": 2}, r"Unknown key of distributed 'dta'\. Known: data, tensor"),
    ],
)
def test_what_is_no_such_line_is_refused(given, text):
    with pytest.raises(InputError, match=text):
        Distributed.from_dict(given)


def test_a_line_that_is_no_mapping_is_refused():
    with pytest.raises(InputError, match="distributed must be a mapping"):
        Recipe.from_yaml("distributed: 2\n")
