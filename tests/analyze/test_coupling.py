"""Channel groups and cutting, on one small network for each way in which channels are coupled (patterns.py), and for styles
in use (styles.py).
"""

import copy
import dataclasses
import importlib.util
import itertools
import time
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, fx, nn

from lighten.analyze.axes import Misfit, atom, atoms, fix, is_fixed, normal, product, reshape, take, total, unify
from lighten.analyze.coupling import Coupling, couple
from lighten.analyze.cut import cut, cut_tensors
from lighten.analyze.flow import Literal
from lighten.analyze.trace import export_program
from lighten.core.channels import ChannelGroup, Slice
from lighten.core.errors import InputError, UnfitError


def beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


patterns, styles = beside("patterns"), beside("styles")
PATTERNS = patterns.PATTERNS + [
    patterns.Pattern(name, build, lambda shape=shape: (torch.randn(*shape),), groups)
    for name, build, shape, groups in styles.STYLES
]
every_pattern = pytest.mark.parametrize("name", [pattern.name for pattern in PATTERNS])


def graph_of(module: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    return export_program(module.eval(), example, tuple({0: "batch"} for _ in example)).module()


@cache
def coupled(name: str) -> tuple[fx.GraphModule, tuple[Tensor, ...], Coupling]:
    torch.manual_seed(0)
    pattern = next(pattern for pattern in PATTERNS if pattern.name == name)
    example = pattern.example()
    module = graph_of(pattern.build(), example)
    return module, example, couple(module)


def kept_of(group: ChannelGroup, seed: int = 0) -> Tensor:
    """70 % of the channels, at least as many as must stay, drawn at random."""
    count = max(group.least, round(0.7 * group.size))
    return torch.randperm(group.size, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def zeroed(module: fx.GraphModule, group: ChannelGroup, kept: Tensor) -> fx.GraphModule:
    result = copy.deepcopy(module)
    gone = torch.ones(group.size, dtype=torch.bool)
    gone[kept] = False
    parameters = dict(result.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for found in group.slices:
            if found.role != "in" and found.tensor in parameters:
                parameters[found.tensor].index_fill_(found.dim, found.positions(group.size)[gone].flatten(), 0)
    return result


@every_pattern
def test_a_pattern_has_the_expected_groups(name: str) -> None:
    expected = next(pattern.groups for pattern in PATTERNS if pattern.name == name)
    found = {group.name: (group.size, len(group.slices), group.kind, group.exact) for group in coupled(name)[2].groups}
    assert found == expected


@every_pattern
def test_zeroing_exact_channels_equals_cutting_them(name: str) -> None:
    module, example, coupling = coupled(name)
    for group in (group for group in coupling.groups if group.exact):
        kept = kept_of(group)
        # sums over fewer terms are rounded in another order: a few units in the last place of float32
        torch.testing.assert_close(
            cut(module, coupling, {group.name: kept})(*example), zeroed(module, group, kept)(*example), rtol=0, atol=1e-5
        )


@every_pattern
def test_reordering_the_channels_of_a_group_changes_nothing(name: str) -> None:
    """Holds for inexact groups too: only a slice that is missing or misplaced can tell one channel from another."""
    module, example, coupling = coupled(name)
    for group in coupling.groups:
        shuffled = copy.deepcopy(module)
        tensors = dict(shuffled.named_parameters(remove_duplicate=False)) | dict(shuffled.named_buffers())
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(1))
        for tensor, slices in itertools.groupby(group.slices, key=lambda found: found.tensor):
            if any(tensors[tensor] is tensors[earlier] for earlier in _names_before(group, tensor)):
                continue
            for found in slices:
                places = found.positions(group.size)
                values = tensors[tensor].data.index_select(found.dim, places[order].flatten())
                tensors[tensor].data.index_copy_(found.dim, places.flatten(), values)
        torch.testing.assert_close(shuffled(*example), module(*example), rtol=0, atol=1e-5)


def _names_before(group: ChannelGroup, tensor: str) -> list[str]:
    names = list(dict.fromkeys(found.tensor for found in group.slices))
    return names[: names.index(tensor)]


@every_pattern
def test_a_network_cut_by_a_third_runs_trains_and_exports_again(name: str) -> None:
    module, example, coupling = coupled(name)
    smaller = cut(module, coupling, {group.name: kept_of(group) for group in coupling.groups})
    result = smaller(*example)
    assert result.shape == module(*example).shape
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters() if parameter.requires_grad)
    before = {key: value.dtype for key, value in module.state_dict().items()}
    assert {key: value.dtype for key, value in smaller.state_dict().items()} == before
    assert sum(value.numel() for value in smaller.parameters()) < sum(value.numel() for value in module.parameters())
    torch.testing.assert_close(graph_of(smaller, example)(*example), result)


@every_pattern
def test_cutting_nothing_changes_nothing_and_leaves_the_original_alone(name: str) -> None:
    module, example, coupling = coupled(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    whole = cut(module, coupling, {group.name: torch.arange(group.size) for group in coupling.groups})
    assert torch.equal(whole(*example), module(*example))
    cut(module, coupling, {group.name: torch.arange(group.least) for group in coupling.groups})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_cut_graph_takes_another_batch_size() -> None:
    module, _, coupling = coupled("fused attention by hand")
    smaller = cut(module, coupling, {"qkv": torch.tensor([0, 3])})
    assert smaller(torch.randn(5, 7, 12)).shape == (5, 7, 3)


def test_a_cut_network_couples_into_the_same_groups_with_the_new_sizes() -> None:
    module, _, coupling = coupled("dense block")
    again = couple(cut(module, coupling, {"stem": torch.tensor([0, 2, 5]), "second": torch.tensor([1, 2])}))
    assert {group.name: group.size for group in again.groups} == {"stem": 3, "first": 4, "second": 2}


def test_cutting_a_residual_stage_changes_every_branch() -> None:
    _, _, coupling = coupled("residual")
    stem = coupling.groups[0]
    made = {found.tensor for found in stem.slices if found.role == "out"}
    read = {found.tensor for found in stem.slices if found.role == "in"}
    assert made == {"stem.weight", "back.weight"}
    assert read == {"inner.weight", "head.weight"}


def test_a_flattened_channel_owns_a_column_for_each_pixel() -> None:
    (group,) = coupled("flatten")[2].groups
    assert group.slices[-1] == Slice("3.weight", 1, "in", repeat=36)


def test_a_fused_query_key_value_weight_is_one_slice_with_three_repetitions() -> None:
    (group,) = coupled("fused attention")[2].groups
    assert group.slices[0] == Slice("qkv.weight", 0, "out", start=0, repeat=5, outer=3, period=20)


def test_grouped_queries_give_two_query_heads_to_a_key_head() -> None:
    (group,) = coupled("grouped queries")[2].groups
    assert {found.tensor: found.repeat for found in group.slices if found.dim == 0} == {
        "query.weight": 10, "query.bias": 10, "key.weight": 5, "key.bias": 5, "value.weight": 5, "value.bias": 5,
    }  # fmt: skip


def test_the_gates_of_a_recurrence_repeat_its_hidden_units() -> None:
    group = coupled("gru")[2].groups[1]
    assert group.slices[0] == Slice("cell.weight_ih_l0", 0, "out", outer=3, period=6)


def test_tied_weights_stay_tied() -> None:
    module, _, coupling = coupled("tied")
    smaller = cut(module, coupling, {"table": torch.tensor([0, 5])})
    assert smaller.table.weight.shape == (11, 2)
    assert smaller.table.weight is smaller.head.weight


def test_inputs_and_outputs_are_fixed_with_the_reason() -> None:
    fixed = {(found.tensor, found.dim): found.reason for found in coupled("chain")[2].fixed}
    assert fixed == {("0.weight", 1): "is an input of the network", ("4.weight", 0): "is an output of the network"}


def test_an_operator_without_a_rule_fixes_what_it_touches_and_is_named() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 9), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).median(dim=-1, keepdim=True).values)

    coupling = couple(graph_of(Middle(), patterns.rows()))
    assert coupling.groups == ()
    assert "median" in {found.tensor: found.reason for found in coupling.fixed}["up.weight"]


def test_a_view_that_mixes_channels_and_pixels_fixes_both() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).reshape(x.shape[0], 4, 24).transpose(1, 2))

    coupling = couple(graph_of(Mixed(), patterns.image(size=4)))
    assert coupling.groups == ()


def test_a_view_that_mixes_some_dimensions_leaves_those_around_them_free() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x.reshape(x.shape[0], 6, 9, 4).permute(0, 1, 3, 2))

    coupling = couple(graph_of(Shifted(), (torch.randn(2, 3, 4, 9),)))
    assert {group.name: group.size for group in coupling.groups} == {"stem": 6}


def test_a_mask_fixes_the_dimensions_it_chooses_from_and_no_other() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.down(self.up(x)[mask]).sum(0, keepdim=True)

    module = export_program(Masked(), (torch.randn(2, 7, 12), torch.rand(2, 7) > 0.5), ()).module()
    assert [(group.name, group.size) for group in couple(module).groups] == [("up", 9)]


def test_an_unknown_group_is_refused_with_the_nearest_name() -> None:
    module, _, coupling = coupled("residual")
    with pytest.raises(InputError, match="Did you mean 'stem'"):
        cut(module, coupling, {"sten": torch.tensor([0])})


@pytest.mark.parametrize("kept", [[], [2, 1], [1, 1], [8], [-1]])
def test_indices_that_are_no_channels_are_refused(kept: list[int]) -> None:
    module, _, coupling = coupled("residual")
    with pytest.raises(InputError, match=r"sorted indices in the range \[0, 8\)"):
        cut(module, coupling, {"stem": torch.tensor(kept, dtype=torch.int64)})


def test_fewer_experts_than_a_token_picks_are_refused() -> None:
    module, _, coupling = coupled("experts picked by number")
    assert {group.name: group.least for group in coupling.groups} == {"up": 1, "router": 2, "up_EID": 1}
    with pytest.raises(InputError, match=r"router: .* at least 2. Got \[3\]"):
        cut(module, coupling, {"router": torch.tensor([3])})


@torch.no_grad()
def test_cutting_experts_that_no_token_picks_changes_nothing() -> None:
    module, example, coupling = coupled("experts whose shares are scattered")
    biased = copy.deepcopy(module)
    # a score so low that experts 1 and 4 are never among the two best
    biased.router.bias[[1, 4]] -= 1e4
    smaller = cut(biased, coupling, {"router": torch.tensor([0, 2, 3, 5])})
    # sums over fewer terms are rounded in another order
    torch.testing.assert_close(smaller(*example), biased(*example), rtol=0, atol=1e-5)


def test_a_literal_that_cannot_follow_is_refused_with_the_node() -> None:
    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x)[..., :9].view(x.shape[0], 7, 9))

    module = graph_of(Front(), patterns.rows())
    coupling = couple(module)
    (node,) = (node for node in module.graph.nodes if "view" in node.name)
    # a length that only the running network would know
    node.args = (node.args[0], [node.args[1][0], 7, node.args[1][0]])
    literal = Literal("size", (coupling.axes["linear"][0][2],) * 3, "bound")
    unknown = dataclasses.replace(coupling, literals={node.name: (literal,)})
    with pytest.raises(UnfitError, match=node.name):
        cut(module, unknown, {"up": torch.tensor([0])})


def test_tensors_alone_are_cut_by_name() -> None:
    state = {"w": torch.arange(12.0).reshape(6, 2), "untouched": torch.ones(3)}
    group = ChannelGroup("w", 3, "channel", (Slice("w", 0, "out", repeat=2), Slice("absent", 0, "in")))
    result = cut_tensors(state, [group], {"w": torch.tensor([0, 2])})
    assert result["w"].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert result["untouched"] is state["untouched"]


def test_three_hundred_layers_couple_within_five_seconds() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(300)])
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
                x = x + second(torch.relu(first(x)))
            return self.head(x)

    module = graph_of(nn.Sequential(nn.Linear(12, 12), Deep()), patterns.rows())
    start = time.perf_counter()
    coupling = couple(module)
    assert time.perf_counter() - start < 5
    assert len(coupling.groups) == 151


def test_a_view_refines_an_atom_into_heads_and_width() -> None:
    whole = atom(12)
    heads, width = reshape([whole], [3, 4])
    assert [part.size for part in atoms(whole)] == [3, 4]
    assert normal(whole).parts == (heads, width)


def test_unifying_a_chunk_with_a_whole_splits_the_whole() -> None:
    whole, left, right = atom(7), atom(3), atom(4)
    unify(whole, total([left, right]), "no")
    assert [normal(part) for part in (take(whole, 0, 3), take(whole, 3, 7))] == [normal(left), normal(right)]


def test_layouts_without_a_common_refinement_are_fixed() -> None:
    left, right = product([atom(6), atom(4)]), product([atom(4), atom(6)])
    unify(left, right, "does not fit")
    assert is_fixed(left)
    assert {part.reason for part in atoms(right)} == {"does not fit"}


def test_a_slice_through_the_inside_of_a_product_is_a_misfit() -> None:
    with pytest.raises(Misfit):
        take(product([atom(3), atom(4)]), 0, 6)


def test_what_is_fixed_stays_fixed_when_it_turns_out_to_be_more() -> None:
    whole, part = atom(12), atom(3)
    fix(whole, "first")
    unify(whole, product([part, atom(4)]), "no")
    assert part.reason == "first"
