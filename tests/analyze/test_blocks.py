"""Residual blocks and layers are found in the graph, and what is left without them is what zeroing them leaves."""

from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from zoo import by_name

from lighten.analyze.blocks import Block, blocks, drop
from lighten.analyze.cost import total
from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.trace import tensor_of, traced
from lighten.core.cost import Target
from lighten.core.model import Model, Origin
from lighten.export.onnx import OnnxExporter

ZOO = {
    # name: blocks, layers
    "bert": (4, 2),
    "gpt2": (4, 2),
    "llama": (4, 2),
    "vit": (4, 2),
    "resnet-basic": (3, 3),  # of four, one has a projection
    "wav2vec2": (5, 2),  # the position convolution is added to what it reads
    "t5": (10, 4),  # 2 x (attention, feed-forward), 2 x (attention, cross-attention, feed-forward)
    "swin": (8, 4),
    "convnext": (4, 4),
    "convnext-v2": (4, 4),  # the response normalization x + f(x) inside a block is none of its own
    "gpt-neox": (2, 2),  # attention and feed-forward are added at once
    "falcon": (2, 2),
    "deepseek-v3": (4, 2),  # one layer is dense, the other has experts
    "albert": (4, 0),  # one layer, used twice
}
PRE_NORM = ("gpt2", "llama", "vit", "t5", "swin", "convnext")


@cache
def found_in(name: str) -> tuple[Model, fx.GraphModule, tuple[Block, ...]]:
    model = by_name(name).build()
    graph = traced(model)
    return model, graph, blocks(graph, model.example)


def of_kind(found: tuple[Block, ...], kind: str) -> list[Block]:
    return [block for block in found if block.kind == kind]


def run(module: nn.Module, example: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output = module(*example)
    return output if isinstance(output, Tensor) else output[0]


class Zeroing(fx.Interpreter):
    """Runs the intact graph; each of the sums gives what entered its branch, as if the branch gave zeros."""

    def __init__(self, module: fx.GraphModule, gone: list[Block]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.starts = {block.end: block.start for block in gone}
        self.values: dict[str, object] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        self.values[n.name] = self.values[self.starts[n.name]] if n.name in self.starts else value
        return self.values[n.name]


def zeroed(graph: fx.GraphModule, gone: list[Block], example: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output = Zeroing(graph, gone).run(*example)
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("name", ZOO)
def test_a_network_has_the_blocks_and_layers_that_it_is_made_of(name: str) -> None:
    found = found_in(name)[2]
    assert (len(of_kind(found, "block")), len(of_kind(found, "layer"))) == ZOO[name]
    for kind in ("block", "layer"):
        names = [block.name for block in of_kind(found, kind)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["bert", "llama", "resnet-basic", "t5", "deepseek-v3"])
def test_removing_a_block_equals_a_branch_of_zeros_and_saves_what_it_says(name: str) -> None:
    model, graph, found = found_in(name)
    whole = total(graph, model.example)
    for block in of_kind(found, "block"):
        smaller = drop(graph, [block])
        # the same operators on the same numbers
        assert torch.equal(run(smaller, model.example), zeroed(graph, [block], model.example)), block.name
        cost = total(smaller, model.example)
        assert (whole.macs - cost.macs, whole.params - cost.params) == (block.macs, block.params), block.name
        assert not {block.end, *block.nodes} & {node.name for node in smaller.graph.nodes}
        assert not set(block.tensors) & set(smaller.state_dict())


@pytest.mark.parametrize("name", PRE_NORM)
def test_removing_a_layer_equals_branches_of_zeros_where_the_stream_is_only_added_to(name: str) -> None:
    model, graph, found = found_in(name)
    for layer in of_kind(found, "layer"):
        inside = [block for block in of_kind(found, "block") if block.end in layer.nodes]
        assert layer.macs == sum(block.macs for block in inside)
        assert torch.equal(run(drop(graph, [layer]), model.example), zeroed(graph, inside, model.example)), layer.name


def test_all_blocks_go_at_once_where_one_ends_and_another_starts() -> None:
    model, graph, found = found_in("gpt2")
    gone = of_kind(found, "block")
    assert torch.equal(run(drop(graph, gone), model.example), zeroed(graph, gone, model.example))
    assert torch.equal(run(drop(graph, gone[::-1]), model.example), zeroed(graph, gone, model.example))


def test_the_graph_that_was_given_is_not_changed_and_tensors_are_not_shared() -> None:
    model, graph, found = found_in("bert")
    names, before = [node.name for node in graph.graph.nodes], run(graph, model.example)
    smaller = drop(graph, [found[0]])
    with torch.no_grad():
        for value in smaller.parameters():
            value.zero_()
    assert [node.name for node in graph.graph.nodes] == names
    assert torch.equal(run(graph, model.example), before)


@pytest.mark.parametrize("name", ["bert", "resnet-basic"])
def test_what_is_left_is_cut_in_width_and_exported(name: str, tmp_path) -> None:
    model, graph, found = found_in(name)
    shallow = drop(graph, [of_kind(found, "layer")[-1]])
    coupling = couple(shallow)
    assert {group.name for group in coupling.groups} < {group.name for group in couple(graph).groups}
    group = next(group for group in coupling.groups if group.size >= 16)
    narrow = cut(shallow, coupling, {group.name: torch.arange(group.size // 2)})
    OnnxExporter().write_float(Model(narrow, model.example, model.origin, model.input_names), tmp_path / "small.onnx")
    output = OnnxExporter().open(tmp_path / "small.onnx", Target())(*model.example)
    # another order of float32 sums, and outputs of size 10
    torch.testing.assert_close(output, run(narrow, model.example), rtol=0, atol=1e-4)


class Sums(nn.Module):
    """One of each way in which a sum is or is not a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.plain, self.beside, self.read, self.inplace = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.row = nn.Conv2d(8, 8, (16, 1))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + 0.1 * x.pow(3)  # reads no weight
        x = x + self.scale * self.plain(x)  # a block with layer scale
        x = self.project(x) + self.beside(x)  # beside a projection
        inner = self.read(x)
        x = x + inner  # read elsewhere
        x = x + self.inplace(nn.functional.relu_(x.view(-1, 8, 16, 16)))  # changes the shortcut
        x = x + self.row(x)  # the sum is larger than the branch: x still takes its place
        x = x + self.first(x) + self.second(x)  # two branches of one value
        return x, inner


def sums() -> Model:
    torch.manual_seed(0)
    return Model(Sums().eval(), (torch.randn(2, 3, 16, 16),), Origin("module", "sums", dynamic=({0: "batch"},)))


def test_only_a_branch_whose_input_can_stand_in_place_of_the_sum_is_a_block() -> None:
    model = sums()
    graph = traced(model)
    found = blocks(graph, model.example)
    assert [(block.name, block.kind, block.dim) for block in found] == [
        (name, "block", 1) for name in ("plain", "row", "first", "second")
    ]
    for block in found:
        assert torch.equal(run(drop(graph, [block]), model.example), zeroed(graph, [block], model.example)), block.name


class InPlace(nn.Module):
    """As in torchvision: sums and activations write over what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        taken = []
        for layer in self.layers:
            inner = layer(x)
            inner += x
            x = nn.functional.hardswish(inner, inplace=True)
            taken.append(x)
        return torch.cat(taken, 1)


def test_a_value_that_is_read_elsewhere_is_not_written_over_when_a_sum_in_place_goes() -> None:
    torch.manual_seed(0)
    model = Model(InPlace().eval(), (torch.randn(2, 4, 8, 8),), Origin("module", "in place", dynamic=({0: "batch"},)))
    graph = traced(model)
    found = of_kind(blocks(graph, model.example), "block")
    assert [block.name for block in found] == ["layers.0", "layers.1", "layers.2"]
    x = model.example[0].clone()
    smaller = drop(graph, [found[1]])
    first = nn.functional.hardswish(x + model.module.layers[0](x))
    second = nn.functional.hardswish(first)
    third = nn.functional.hardswish(second + model.module.layers[2](second))
    # the same operators, out of place
    torch.testing.assert_close(run(smaller, model.example), torch.cat([first, second, third], 1), rtol=1e-6, atol=1e-6)


def test_a_tied_weight_is_saved_only_with_its_last_name() -> None:
    _, graph, found = found_in("albert")
    assert [block.params for block in found] == [0, 0, 0, 0]
    assert all(block.macs > 0 for block in found)
    assert tensor_of(graph, "network.classifier.weight").numel() > 0
