"""Which layer learns from which, and what is compared of them."""

import pytest
import torch
from torch import Tensor, fx, nn

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.losses import first_output
from lighten.methods.distill.hints import hinted, with_hints
from lighten.methods.distill.layers import Watching, channel_dim, matched
from lighten.methods.training import own_graph
from lighten.ops.features import relations


class Tower(nn.Module):
    """Convolutions with residual sums, each block at another scale."""

    def __init__(self, depth: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x.mean((2, 3)))


class Attentive(nn.Module):
    """Tokens that look at each other, twice."""

    def __init__(self, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.table, self.heads = nn.Embedding(20, width), heads
        self.reads = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        for read in self.reads:
            q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in read(x).chunk(3, -1))
            found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
            x = x + found.transpose(1, 2).flatten(2)
        return (x * mask[..., None]).sum(1)


def tower(depth: int, seed: int = 0, width: int = 6) -> fx.GraphModule:
    torch.manual_seed(seed)
    example = (torch.randn(2, 3, 8, 8),)
    return own_graph(Model(Tower(depth, width).eval(), example, Origin("module", "tower", dynamic=({0: "batch"},))))


def attentive(width: int, heads: int, seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    example = (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    dynamic = ({0: "batch", 1: "tokens"}, {0: "batch", 1: "tokens"})
    return own_graph(Model(Attentive(width, heads).eval(), example, Origin("module", "attentive", dynamic=dynamic)))


X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def places(pairs) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in pairs]


def test_by_depth_the_last_learns_from_the_last_and_the_middle_from_the_middle():
    assert places(matched("depth", tower(2), tower(4), inputs=(X,))) == [("add", "add_1"), ("add_1", "add_3")]


def test_by_name_those_that_both_have_are_paired():
    assert places(matched("name", tower(2), tower(3), inputs=(X,))) == [("add", "add"), ("add_1", "add_1")]


def test_by_similarity_a_layer_finds_itself_in_a_deeper_network():
    teacher, student = tower(5), tower(2)
    with torch.no_grad():  # the student is the teacher's stem, first and fourth block; the second and third change much
        for name, value in student.named_parameters():
            value.copy_(teacher.get_parameter(name.replace("blocks.1", "blocks.3")))
        for name in ("blocks.1", "blocks.2"):
            teacher.get_parameter(f"{name}.weight").mul_(3)
    pairs = matched("similarity", student, teacher, inputs=(X,))
    assert pairs[0].teacher == "add"
    assert pairs[0].alike == pytest.approx(1.0, abs=1e-3)
    order = [int(pair.teacher.removeprefix("add").removeprefix("_") or 0) for pair in pairs]
    assert order == sorted(order)


def test_what_cannot_be_compared_is_not_paired_by_similarity():
    student, teacher = tower(2, seed=1), tower(3)
    fits = lambda one, two: two[0] == "add_2"  # noqa: E731
    assert places(matched("similarity", student, teacher, inputs=(X,), fits=fits)) == [("add", "add_2"), ("add_1", "add_2")]
    with pytest.raises(InputError, match="can be paired with one of the teacher by similarity"):
        matched("similarity", student, teacher, inputs=(X,), fits=lambda one, two: False)


def test_at_most_four_pairs_are_chosen_the_last_among_them():
    pairs = matched("depth", tower(9), tower(9), inputs=(X,))
    assert places(pairs) == [(name, name) for name in ("add_1", "add_3", "add_6", "add_8")]


def test_a_mapping_names_nodes_or_sites():
    pairs = matched({"blocks.0": "blocks.2", "add_1": "add_2"}, tower(2), tower(3), inputs=(X,))
    assert places(pairs) == [("conv2d_1", "conv2d_3"), ("add_1", "add_2")]
    with pytest.raises(InputError, match="Unknown layer of the student 'blocks.7'. Did you mean 'blocks.1'?"):
        matched({"blocks.7": "add"}, tower(2), tower(3), inputs=(X,))


def test_networks_of_other_names_are_matched_by_depth_not_by_name():
    other = tower(1)
    for node in other.graph.nodes:
        if node.name == "add":
            node.name = "sum_up"
    other.recompile()
    with pytest.raises(
        InputError, match="No layer of the student can be paired with one of the teacher by name. It has sum_up; "
    ):
        matched("name", other, tower(2), inputs=(X,))
    assert places(matched("depth", other, tower(2), inputs=(X,))) == [("sum_up", "add_1")]


def test_a_watched_network_gives_what_it_gives_and_keeps_what_is_asked():
    graph = tower(2)
    watching = Watching(graph, ["add"])
    assert torch.equal(first_output(watching, Batch((X,), None, tuple(range(32)))), graph(X))
    assert set(watching.found) == {"add"}
    assert watching.found["add"].shape == (32, 6, 8, 8)


def test_channels_are_behind_a_convolution_first_and_behind_a_linear_layer_last():
    assert channel_dim(tower(2), "add", torch.zeros(2, 6, 8, 8)) == 1
    graph = attentive(24, 2)
    sums = [node.name for node in graph.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert channel_dim(graph, sums[0], torch.zeros(2, 7, 24)) == 2


def test_a_projection_is_trained_with_the_student_and_gone_afterwards():
    student, teacher = tower(2, width=4), tower(2)
    before = len(list(student.parameters()))
    with hinted("fitnets", "name", (student, teacher), inputs=(X,), seed=0) as hints:
        loss = with_hints(lambda module, batch: first_output(module, batch).sum() * 0, hints, 1.0)
        optimizer = torch.optim.Adam([value for name, value in student.named_parameters() if "hint" in name], lr=0.05)
        batch, values = Batch((X,), None, tuple(range(32))), []
        assert len(list(student.parameters())) == before + 2
        for _ in range(60):
            with torch.no_grad():
                hints.teacher(X)
            optimizer.zero_grad()
            value = loss(student, batch)
            value.backward()
            optimizer.step()
            values.append(value.item())
        # what a linear map of the student's channels cannot give stays: least squares says how much that is
        floor = [_residual(hints.student.found[pair.student], hints.teacher.found[pair.teacher]) for pair in hints.pairs]
    assert values[-1] < 1.2 * sum(floor) / 2
    assert values[-1] < 0.5 * values[0]
    assert len(list(student.parameters())) == before


def _residual(student: Tensor, teacher: Tensor) -> float:
    x, y = (value.detach().movedim(1, -1).flatten(0, -2).double() for value in (student, teacher))
    return float((y - x @ torch.linalg.lstsq(x, y).solution).square().mean())


def test_minilm_compares_the_last_attentions_of_networks_of_other_widths_and_heads():
    student, teacher = attentive(24, 2), attentive(48, 4)
    ids = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4, [1] * 7])
    batch = Batch((ids, mask), None, (0, 1, 2, 3))
    with hinted("minilm", "depth", (student, teacher), inputs=batch.inputs, seed=0) as hints:
        assert len(hints.pairs) == 1
        value = _run(hints, batch)
        other = _run(hints, Batch((ids.where(mask.bool(), torch.tensor(3)), mask), None, (0, 1, 2, 3)))
    assert value > 0
    assert other == pytest.approx(value, rel=1e-5)  # what padding holds does not count
    with hinted("minilm", "depth", (teacher, teacher), inputs=batch.inputs, seed=0) as hints:
        assert _run(hints, batch) == pytest.approx(0, abs=1e-6)


def _run(hints, batch: Batch) -> float:
    with torch.no_grad():
        hints.student(*batch.inputs)
        hints.teacher(*batch.inputs)
        return float(hints(batch))


def test_relations_without_padding_are_those_of_the_tokens_alone():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    expected = relations(student[:, :, :3], teacher[:, :, :3])
    assert relations(student, teacher, mask).item() == pytest.approx(expected.item(), rel=1e-5)
