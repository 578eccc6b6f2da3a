"""A recipe built in Python is held to what one from a file is."""

import pytest

from lighten.core.errors import InputError
from lighten.core.recipe import Recipe


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", True, None])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(InputError, match="seed must be an integer >= 0"):
        Recipe(seed=seed)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_seed_survives_yaml(seed):
    assert Recipe.from_yaml(Recipe(seed=seed).to_yaml()).seed == seed
