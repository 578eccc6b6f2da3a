"""A smaller network comes back as an instance of its own class, and transformers reads it again."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from networks import Residual, encoder, recurrent, residual
from torch import Tensor, fx, nn
from zoo import by_name

from lighten.analyze.coupling import couple
from lighten.analyze.cut import cut
from lighten.analyze.reclass import TOLERANCE, Reclassed, as_class
from lighten.analyze.trace import traced
from lighten.core.channels import ChannelGroup
from lighten.core.model import Model, Origin

_SPEC = importlib.util.spec_from_file_location("patterns", Path(__file__).with_name("patterns.py"))
patterns = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(patterns)


def pruned(model: Model, *, takes=lambda group: True, share=lambda group: 0.3) -> fx.GraphModule:
    """The graph without a share of the channels, drawn at random, of each group that `takes` names."""
    graph = traced(model)
    coupling = couple(graph)
    keep = {}
    for group in filter(takes, coupling.groups):
        count = max(1, group.size - round(share(group) * group.size))
        keep[group.name] = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))[:count].sort().values
    assert keep
    return cut(graph, coupling, keep)


def neurons(group: ChannelGroup) -> bool:
    """Of feed-forward blocks; not those between a pooler and a classifier, whose width no config names."""
    return group.kind == "neuron" and "pooler" not in group.name


def assert_same(module: nn.Module, graph: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    """Also on inputs that the search did not see."""
    for inputs in (example, tuple(value.flip(-1) for value in example)):
        with torch.no_grad():
            expected = graph(*inputs)
            torch.testing.assert_close(module(*inputs), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def reloaded(found: Reclassed, model: Model, folder: Path) -> nn.Module:
    """The original wrapper around what from_pretrained reads."""
    network = model.module.network
    found.network.save_pretrained(folder)
    again = type(network).from_pretrained(folder, attn_implementation=network.config._attn_implementation)
    return copy.deepcopy(model.module, {id(network): again}).eval()


@pytest.mark.parametrize("name", ["llama", "vit", "gpt2", "bert", "t5", "wav2vec2"])
def test_a_network_with_fewer_neurons_is_read_again_by_transformers(name: str, tmp_path: Path) -> None:
    model = by_name(name).build()
    smaller = pruned(model, takes=neurons)
    found = as_class(model.module, smaller, model.example)
    assert found.reason == ""
    assert type(found.network) is type(model.module.network)
    assert_same(found.module, smaller, model.example)
    assert_same(reloaded(found, model, tmp_path), smaller, model.example)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet-basic", {"embedding_size": 11, "hidden_sizes": [11, 22]}),
        # the size of a head is said by itself, the second only because it is set beside
        (
            "llama",
            {"hidden_size": 22, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 45},
        ),
        (
            "qwen2",
            {"hidden_size": 22, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 45},
        ),
    ],
)
def test_channels_and_heads_change_the_numbers_of_the_config(name: str, fields: dict, tmp_path: Path) -> None:
    model = by_name(name).build()
    smaller = pruned(model)
    found = as_class(model.module, smaller, model.example)
    assert found.reason == ""
    assert {field: found.network.config.to_dict()[field] for field in fields} == fields
    assert_same(reloaded(found, model, tmp_path), smaller, model.example)


def test_a_decoder_of_fewer_heads_still_generates() -> None:
    model = by_name("llama").build()
    found = as_class(model.module, pruned(model), model.example)
    ids = found.network.generate(model.example[0], max_new_tokens=3, do_sample=False)
    assert ids.shape == (2, model.example[0].shape[1] + 3)


def test_layers_of_different_widths_keep_their_class_and_say_why_no_config_fits() -> None:
    model = by_name("bert").build()
    smaller = pruned(model, takes=neurons, share=lambda group: 0.25 if "layer.0" in group.name else 0.5)
    found = as_class(model.module, smaller, model.example)
    assert found.network is None
    assert "config.intermediate_size sets" in found.reason
    assert "48 of 64 kept" in found.reason
    assert "32 of 64 kept" in found.reason
    assert type(found.module.network) is type(model.module.network)
    assert found.module.network.bert.encoder.layer[1].intermediate.dense.out_features == 32
    assert_same(found.module, smaller, model.example)


def test_heads_that_a_config_derives_from_the_width_keep_their_class() -> None:
    model = by_name("bert").build()
    smaller = pruned(model, takes=lambda group: group.kind == "head")
    found = as_class(model.module, smaller, model.example)
    assert found.network is None
    assert "config.hidden_size sets" in found.reason
    attention = found.module.network.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size) == (3, 8)
    assert_same(found.module, smaller, model.example)


class Same(nn.Module):
    """What stands in the place of a layer that was left out."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden


@pytest.mark.parametrize(("name", "path"), [("vit", "vit.layers"), ("llama", "model.layers"), ("gemma3", "model.layers")])
def test_a_layer_that_is_left_out_is_one_less_in_the_config(name: str, path: str, tmp_path: Path) -> None:
    model = by_name(name).build()
    without = copy.deepcopy(model.module)
    without.network.get_submodule(path)[0] = Same()
    smaller = traced(Model(without, model.example, model.origin, model.input_names))
    found = as_class(model.module, smaller, model.example)
    assert found.reason == ""
    assert found.network.config.num_hidden_layers == 1
    assert len(found.network.get_submodule(path)) == 1
    assert_same(reloaded(found, model, tmp_path), smaller, model.example)


@pytest.mark.parametrize("build", [residual, encoder, recurrent])
def test_attributes_of_torch_layers_follow_their_tensors(build) -> None:
    model = build()
    smaller = pruned(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = as_class(model.module, smaller, model.example)
    assert (found.network, found.reason) == (None, "")
    assert type(found.module) is type(model.module)
    assert_same(found.module, smaller, model.example)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    if isinstance(found.module, Residual):
        assert (found.module.stem.out_channels, found.module.norm.num_features, found.module.head.in_features) == (11, 11, 11)
        depthwise = found.module.depthwise
        assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (11, 11, 11)


def test_the_module_owns_its_tensors() -> None:
    model = residual()
    smaller = pruned(model)
    expected = smaller(*model.example)
    module = as_class(model.module, smaller, model.example).module
    with torch.no_grad():
        module.head.weight.zero_()
    assert torch.equal(smaller(*model.example), expected)


class Attention(nn.Module):
    """Hand-written, with the integers that people write."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, width // heads, width
        self.fused, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        length = x_BSD.shape[1]
        parts = self.fused(x_BSD).split(self.inner, dim=-1)
        query, key, value = (part.view(-1, length, self.heads, self.head_dim).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(-1, length, self.heads * self.head_dim))


class Net(nn.Module):
    """A residual stream of `width`, two attentions, and a sum that is reshaped by that number."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 24
        self.embed = nn.Linear(5, 24)
        self.layers = nn.ModuleList([Attention(24, 4) for _ in range(3)])
        self.num_layers = 3
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for index in range(self.num_layers):
            hidden = hidden + self.layers[index](hidden)
        return self.head(hidden.reshape(x.shape[0], -1, self.width).mean(1))


def net() -> Model:
    torch.manual_seed(0)
    return Model(Net().eval(), (torch.randn(2, 7, 5),), Origin("module", "net", dynamic=({0: "batch"},)))


def test_hand_written_integers_follow_where_the_output_proves_it() -> None:
    model = net()
    smaller = pruned(model)
    module = as_class(model.module, smaller, model.example).module
    assert module.width == 17
    assert [(layer.heads, layer.head_dim, layer.inner) for layer in module.layers] == [(3, 6, 18)] * 3
    assert_same(module, smaller, model.example)


def test_a_list_without_one_of_its_layers_is_shorter_and_so_is_its_count() -> None:
    model = net()
    without = copy.deepcopy(model.module)
    without.layers[1].forward = torch.zeros_like
    smaller = traced(Model(without, model.example, model.origin))
    module = as_class(model.module, smaller, model.example).module
    assert (len(module.layers), module.num_layers) == (2, 2)
    assert_same(module, smaller, model.example)


def test_a_part_that_the_class_always_computes_cannot_be_left_out() -> None:
    model = net()
    without = copy.deepcopy(model.module)
    without.embed.forward = lambda x: torch.zeros(2, 7, 24)
    found = as_class(model.module, traced(Model(without, model.example, model.origin)), model.example)
    assert found.module is None
    assert "embed.weight" in found.reason


class Written(nn.Module):
    """Its forward holds a size that no attribute does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(x)).view(-1, 4, 4).flatten(1))


def test_a_size_written_into_the_code_is_refused_with_what_torch_says() -> None:
    model = Model(Written().eval(), (torch.randn(2, 5),), Origin("module", "written", dynamic=({0: "batch"},)))
    smaller = pruned(model)
    found = as_class(model.module, smaller, model.example)
    assert found.module is None
    assert "Written cannot have these sizes" in found.reason


@pytest.mark.parametrize("name", [pattern.name for pattern in patterns.PATTERNS])
def test_every_pattern_of_coupling_gives_its_class_or_a_reason(name: str) -> None:
    torch.manual_seed(0)
    pattern = next(pattern for pattern in patterns.PATTERNS if pattern.name == name)
    example = pattern.example()
    model = Model(pattern.build().eval(), example, Origin("module", name, dynamic=tuple({0: "batch"} for _ in example)))
    smaller = pruned(model)
    found = as_class(model.module, smaller, example)
    if found.module is None:
        assert found.reason
    else:
        assert_same(found.module, smaller, example)
