"""Ranks that share layers compute what one process does; which layers they share is found in the graph."""

import jobs_tensor
import pytest
import torch
from networks_of_ranks import Block, Inverted, built, drawn, model_of
from processes import on_ranks
from torch import nn

from lighten.analyze.tensor_plan import tensor_plan
from lighten.core.distributed import Distributed
from lighten.core.errors import UnfitError
from lighten.core.parallel import TensorPlan

# the same sums in another order: float32 rounds each by 6e-8 of its size, over some hundred terms and three steps
TOLERANCE = 1e-5


def plan_of(module: nn.Module, *shape: int, size: int = 2) -> TensorPlan:
    return tensor_plan(model_of(module, drawn(*shape)), size)


def test_an_mlp_is_columns_then_rows_and_attention_has_whole_heads():
    plan = plan_of(nn.Sequential(built(Block), built(Block)), 2, 5, 16)
    assert set(plan.columns) == {f"{block}.{name}" for block in (0, 1) for name in ("query", "key", "value", "up")}
    assert set(plan.rows) == {f"{block}.{name}" for block in (0, 1) for name in ("out", "down")}
    assert plan.integers == {("0", "heads"): 2, ("1", "heads"): 2}


def test_names_and_order_of_layers_do_not_matter():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.query, self.up = nn.Linear(8, 3), nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.down(torch.relu(self.up(torch.relu(self.query(x)))))

    plan = plan_of(Named(), 2, 6)
    assert (plan.columns, plan.rows) == (("query",), ("up",))
    assert plan.refused == {"up": "up is shared by its other side"}


def test_a_convolution_pair_takes_the_norms_and_the_depthwise_convolution_between_along():
    plan = plan_of(built(Inverted), 2, 3, 8, 8)
    assert (plan.columns, plan.rows) == (("expand",), ("project",))
    assert set(plan.along) == {"norm", "depthwise", "second_norm"}


def test_three_heads_do_not_divide_by_two_and_the_reason_is_given():
    plan = plan_of(built(Block, width=12, heads=3), 2, 5, 12)
    assert set(plan.columns) == {"up"}
    assert plan.refused["query"] == "3 channels do not divide by 2"


def test_a_norm_over_the_hidden_channels_refuses_them():
    plan = plan_of(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), 2, 6)
    assert plan.columns == ()
    assert plan.refused["0"] == "a norm, a softmax or a mean runs over these channels"


def close(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("case", jobs_tensor.CASES)
def test_two_ranks_that_share_layers_train_as_one_process_does(case):
    expected = jobs_tensor.trained(case)
    for found in on_ranks(jobs_tensor.shared, 2, case, Distributed(tensor=2)):
        close(found, expected)


@pytest.mark.slow
def test_four_ranks_that_share_layers_and_shard_parameters_train_as_one_process_does():
    expected = jobs_tensor.trained("attention")
    expected.pop("losses")  # each rank's are of its own examples
    for found in on_ranks(jobs_tensor.shared, 4, "attention", Distributed(tensor=2, data=2, shard="full")):
        close(found, expected)


def test_nothing_to_share_is_an_error():
    from lighten.engine.tensor_parallel import parallelize

    class Mesh:
        def size(self) -> int:
            return 2

    with pytest.raises(UnfitError, match="No layer can be shared by 2 ranks. 0: 3 channels"):
        parallelize(nn.Linear(1, 1), Mesh(), TensorPlan(2, refused={"0": "3 channels do not divide by 2"}))
    with pytest.raises(UnfitError, match="for 4 ranks"):
        parallelize(nn.Linear(1, 1), Mesh(), TensorPlan(4))
