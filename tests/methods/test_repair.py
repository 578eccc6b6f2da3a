"""Repair of a cut network: exact where what was cut is still there in what is left, never for the worse elsewhere."""

from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from lighten.analyze.coupling import Coupling, couple
from lighten.analyze.cut import cut, kept_positions
from lighten.analyze.flow import bound_arguments
from lighten.analyze.rows import view_of
from lighten.analyze.trace import traced
from lighten.core.model import Model, Origin
from lighten.methods.prune.repair import repair

WIDTH, KEPT = 8, 5


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graph_of(module: nn.Module, x: Tensor) -> tuple[fx.GraphModule, Coupling]:
    graph = traced(Model(module.eval(), (x[:2],), Origin("module", "test", dynamic=({0: "batch"},))))
    return graph, couple(graph)


def relative(after: Tensor, before: Tensor) -> float:
    return float((after - before).square().sum() / (before - before.mean(0)).square().sum())


@torch.no_grad()
def errors(module: nn.Module, group: str, x: Tensor, new: Tensor) -> tuple[float, float]:
    """On new examples, before and after the repair on x: the first channels of the group stay."""
    graph, coupling = graph_of(module, x)
    keep = {group: torch.arange(KEPT)}
    smaller = cut(graph, coupling, keep)
    before, bare = module(new), smaller(new)
    repair(graph, smaller, partial(kept_positions, coupling, keep), inputs=(x,), seed=0)
    return relative(bare, before), relative(smaller(new), before)


def settle(module: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Seeded weights, and normalizations with the statistics of x and scales of their own."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    module.train()(x)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.copy_(layer.running_mean * 10)  # one batch at momentum 0.1
    return module.eval()


@torch.no_grad()
def repeat_channels(layers: list[nn.Module]) -> None:
    """The channels that go are copies of the first ones: weights, biases and statistics."""
    for layer in layers:
        for value in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if value.dim() and len(value) == WIDTH:
                value[KEPT:] = value[: WIDTH - KEPT]


def behind(kind: str) -> nn.Module:
    norm, depthwise = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
    return {
        "conv": nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 6, 3)),
        "norm": nn.Sequential(nn.Conv2d(3, WIDTH, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(WIDTH, 6, 1)),
        "depthwise": nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.ReLU6(), depthwise, norm, nn.ReLU6(), nn.Conv2d(WIDTH, 6, 1)),
        "transposed": nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.ConvTranspose2d(WIDTH, 4, 3, 2, 1, 1)),
        "linear": nn.Sequential(
            nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTH, 6)
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["conv", "norm", "depthwise", "transposed", "linear"])
def test_copies_of_kept_channels_go_without_a_trace(kind: str) -> None:
    torch.manual_seed(0)
    x, new = seeded(64, 3, 8, 8), seeded(64, 3, 8, 8, seed=1)
    module = settle(behind(kind), x)
    repeat_channels(list(module))
    bare, repaired = errors(module, "0", x, new)
    assert bare > 0.01
    # the least ridge leaves 1e-6 of a copy, and squares; the rounding of float32 is about 1e-13
    assert repaired < 1e-9


def test_channels_that_are_sums_of_kept_ones_go_without_a_trace() -> None:
    torch.manual_seed(0)
    x, new = seeded(64, 3, 8, 8), seeded(64, 3, 8, 8, seed=1)
    module = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, 6, 3))
    with torch.no_grad():
        mix = seeded(WIDTH - KEPT, KEPT, seed=2)
        for value in module[0].parameters():
            value[KEPT:] = (
                (mix @ value[:KEPT].flatten(1)).reshape(value[KEPT:].shape) if value.dim() > 1 else mix @ value[:KEPT]
            )
    bare, repaired = errors(module, "0", x, new)
    assert bare > 0.1
    assert repaired < 1e-7


class Stream(nn.Module):
    """Two branches on a stream of which channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(WIDTH, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(16, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.head = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.back(self.first(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_the_error_on_new_examples_falls(seed: int) -> None:
    torch.manual_seed(seed)
    x, new = seeded(64, 3, 8, 8, seed=seed), seeded(256, 3, 8, 8, seed=seed + 50)
    bare, repaired = errors(settle(Stream(), x, seed), "stem", x, new)
    # a random network: 3 of 8 channels are news to the others
    assert repaired < 0.5 * bare


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_fitted(seed: int) -> None:
    """24 examples to fit 5 inputs that know nothing of the cut ones: what the other 8 do not confirm stays as it is."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(40, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    x, new = seeded(32, 40, seed=seed), seeded(500, 40, seed=seed + 9)
    bare, repaired = errors(module, "0", x, new)
    assert repaired < 1.1 * bare


@torch.no_grad()
def test_a_network_of_which_nothing_is_cut_stays_as_it_is_on_any_examples() -> None:
    x = seeded(16, 3, 8, 8)
    module = settle(Stream(), x)
    graph, coupling = graph_of(module, x)
    same = cut(graph, coupling, {})
    # of other mean and deviation than the statistics were taken from
    repair(graph, same, partial(kept_positions, coupling, {}), inputs=(5 * x + 3,), seed=0)
    for name, value in graph.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name


@torch.no_grad()
def test_a_weight_that_is_used_twice_stays_as_it_is() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 6)
            self.up, self.down = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6)
            self.out = nn.Linear(6, 20, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.down(torch.relu(self.up(self.words(ids)))))

    torch.manual_seed(0)
    ids = torch.randint(20, (64, 7), generator=torch.Generator().manual_seed(0))
    module = Tied()
    graph, coupling = graph_of(module, ids)
    keep = {"up": torch.arange(KEPT)}
    smaller = cut(graph, coupling, keep)
    down = dict(smaller.named_parameters())["down.weight"].clone()
    repair(graph, smaller, partial(kept_positions, coupling, keep), inputs=(ids,), seed=0)
    assert torch.equal(dict(smaller.named_parameters())["words.weight"], module.words.weight)
    assert not torch.equal(dict(smaller.named_parameters())["down.weight"], down)


# layers as maps on rows


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(5, 4), seeded(3, 7, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), seeded(2, 4, 9)),
        (nn.Conv2d(4, 4, (3, 2), dilation=2, groups=4, bias=False), seeded(2, 4, 9, 8)),
        (nn.ConvTranspose1d(4, 6, 3, stride=3, padding=1, output_padding=1, groups=2), seeded(2, 4, 5)),
        (nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), seeded(2, 3, 5, 6)),
        (nn.ConvTranspose3d(2, 3, 2, stride=2), seeded(1, 2, 3, 2, 4)),
        (nn.BatchNorm2d(5), seeded(3, 5, 4, 4)),
        (nn.GroupNorm(2, 4), seeded(3, 4, 5)),
        (nn.LayerNorm(6), seeded(2, 3, 6)),
    ],
)
@torch.no_grad()
def test_rows_through_the_map_are_the_rows_of_the_output(layer: nn.Module, x: Tensor) -> None:
    graph, _ = graph_of(nn.Sequential(layer, nn.Flatten()), torch.cat([x, x]))
    (view,) = [found for node in graph.graph.nodes if (found := view_of(node)) is not None]
    bias = getattr(layer, "bias", None)
    given = _Arguments(graph, view.node).run(x)
    y = layer(x)
    rows = view.sample(y.numel() // y.shape[view.dim], given, 0)
    affine = view.layer(layer.weight, bias, has_bias=bias is not None)
    expected = view.grouped(y.movedim(view.dim, -1).flatten(0, -2)[rows.chosen_N])
    torch.testing.assert_close(affine(rows.x_GNJ), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(view.weight_from(affine.w_GTJ, layer.weight), layer.weight)
    assert view.num_channels == y.shape[view.dim]


class _Arguments(fx.Interpreter):
    """The arguments of one node, by name."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        super().__init__(module)
        self._node, self._found = node, {}

    def run_node(self, n: fx.Node) -> object:
        if n is self._node:
            self._found = self.map_nodes_to_values(bound_arguments(n), n)
        return super().run_node(n)

    def run(self, *inputs: Tensor) -> dict[str, object]:
        super().run(*inputs)
        return self._found
