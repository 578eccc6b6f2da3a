"""Pruning of depth as a step: which blocks go, what that costs, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from networks import Tensors, images
from torch import Tensor, nn

from lighten.analyze.cost import total
from lighten.analyze.trace import traced
from lighten.core.data import Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.methods.prune.prune import Prune
from lighten.ops.depth import block_influence, divergence, relative_error

NUM_LAYERS = 4


class Layer(nn.Module):
    """Two branches of unlike cost, as attention and feed-forward."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(*(Layer() for _ in range(NUM_LAYERS)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(self.stem(x))).mean((2, 3)))


def deep(planted: int = 2) -> Model:
    """The planted layer adds next to nothing."""
    torch.manual_seed(0)
    module = Deep().eval()
    with torch.no_grad():
        for layer in (module.layers[planted].mix, module.layers[planted].down):
            layer.weight.mul_(1e-3)
            layer.bias.zero_()
        module.head.weight.mul_(100)  # sure of its classes
    return Model(module, (torch.zeros(2, 3, 16, 16),), Origin("module", "deep", dynamic=({0: "batch"},)))


def labelled(model: Model) -> Data:
    """With the classes that the network says."""
    inputs = images().test.inputs
    with torch.no_grad():
        split = Tensors(inputs, model.module(*inputs).argmax(1))
    return replace(images(), test=split, train=split)


def unlabelled(model: Model | None = None) -> Data:
    data = images()
    split = Tensors(data.test.inputs)
    return replace(data, test=split, train=split)


def widths_of(run: Run) -> dict[str, list[int]]:
    return run.ledger.entries[-1]["widths"]


def gone_from(run: Run) -> list[str]:
    return [name for name, (before, after) in widths_of(run).items() if before > after]


@pytest.mark.parametrize("score", ["removal", "similarity"])
@pytest.mark.parametrize("data_of", [labelled, unlabelled])
def test_a_layer_that_does_nothing_goes_first_and_without_a_trace(score: str, data_of) -> None:
    model, run = deep(planted=2), Run()
    smaller = Prune(ratio=0.25, unit="layer", score=score, repair=False).rewrite(model, data=data_of(model), run=run)
    assert gone_from(run) == ["layers.2"]
    assert len(widths_of(run)) == NUM_LAYERS
    x = images().test.inputs[0]
    with torch.no_grad():
        before, after = model.module(x), smaller.module(x)
    # two branches, each a thousandth of the others, which are of the size of the stream
    assert relative_error(before, after) < 1e-4


@pytest.mark.parametrize("score", ["removal", "similarity"])
def test_both_branches_of_a_layer_that_does_nothing_go_before_any_other(score: str) -> None:
    model, run = deep(planted=1), Run()
    Prune(ratio=0.25, unit="block", score=score).rewrite(model, data=labelled(model), run=run)
    assert sorted(gone_from(run)) == ["layers.1.mix", "layers.1.up+down"]


def test_depth_is_scored_by_removal_unless_told_otherwise_and_channels_by_magnitude() -> None:
    assert (Prune(macs=0.5, unit="layer").score, Prune(macs=0.5).score) == ("removal", "magnitude")


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
@pytest.mark.parametrize("unit", ["block", "layer"])
def test_the_budget_is_reached_and_nothing_goes_that_could_stay(measure: str, unit: str) -> None:
    model, run = deep(), Run()
    smaller = Prune(**{measure: 0.6}, unit=unit).rewrite(model, data=images(), run=run)
    cost, whole = (total(traced(one), model.example) for one in (smaller, model))
    share = cost.macs / whole.macs if measure == "macs" else cost.params / whole.params
    # bytes count the statistics of the norm too, of which nothing goes: 17 of 5,000 values
    assert share <= 0.6 + 17 / whole.params
    # the least that a removal saves of 64 positions: 2 x 8 x 32 products, or 2 x 8 x 32 weights and 40 biases
    least = {"block": 1, "layer": 2}[unit] * (64 * 512 / whole.macs if measure == "macs" else 552 / whole.params)
    assert share + least > 0.6


def test_cheap_blocks_that_went_for_nothing_come_back() -> None:
    torch.manual_seed(0)
    model = deep()
    module = model.module
    with torch.no_grad():
        for place, size in enumerate((1e-4, 1e-4, 1e-3, 1.0)):
            module.layers[place].mix.weight.mul_(size)
            module.layers[place].mix.bias.mul_(size)
    wide = nn.Conv2d(8, 8, 9, padding=4)  # costs more than all the others
    with torch.no_grad():
        wide.weight.mul_(1e-2)
        wide.bias.zero_()
    module.layers[2].mix = wide
    run = Run()
    Prune(macs=0.5, unit="block").rewrite(model, data=images(), run=run)
    assert gone_from(run) == ["layers.2.mix"]


def test_a_pinned_layer_stays() -> None:
    for pin in ("layers.2", "layers.2.mix", "layers.[2]*"):
        run = Run()
        Prune(ratio=0.5, unit="layer").rewrite(deep(planted=2), data=images(), run=run, pins=(pin,))
        assert set(widths_of(run)) == {"layers.0", "layers.1", "layers.3"}
    with pytest.raises(UnfitError, match="every layer that could be removed is pinned"):
        Prune(ratio=0.5, unit="layer").rewrite(deep(), data=images(), run=Run(), pins=("layers",))


def test_the_repair_brings_the_outputs_nearer() -> None:
    model, x = deep(), images().test.inputs[0]
    knobs = {"ratio": 0.5, "unit": "layer", "score": "similarity"}
    bare = Prune(**knobs, repair=False).rewrite(model, data=unlabelled(), run=Run())
    repaired = Prune(**knobs).rewrite(model, data=unlabelled(), run=Run())
    with torch.no_grad():
        before, without, mended = (one.module(x) for one in (model, bare, repaired))
    assert relative_error(before, mended) < relative_error(before, without)


def test_a_budget_below_what_the_floor_allows_says_the_least_there_is() -> None:
    with pytest.raises(InputError, match=r"macs 0\.1 cannot be reached by removing layers; 0\.\d+, the least there is"):
        Prune(macs=0.1, unit="layer", least=0.5).check(deep(), data=images())
    with pytest.raises(InputError, match="ratio 0.9 cannot be reached"):
        Prune(ratio=0.9, unit="layer", least=0.5).check(deep(), data=images())


def test_a_network_without_residual_sums_has_no_block() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    model = Model(chain.eval(), (torch.zeros(2, 3, 16, 16),), Origin("module", "chain", dynamic=({0: "batch"},)))
    for unit, why in (("block", r"no sum x \+ f\(x\)"), ("layer", "no repeated module")):
        with pytest.raises(UnfitError, match=why):
            Prune(macs=0.5, unit=unit).check(model, data=images())


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"unit": "layer", "score": "taylor"}, "unit layer is scored by removal, similarity. Got score 'taylor'"),
        ({"unit": "channel", "score": "removal"}, "unit channel is scored by magnitude"),
        ({"unit": "layer", "score": "remove"}, "Did you mean 'removal'"),
        ({"unit": "block", "schedule": "iterative"}, "schedule: one-shot"),
    ],
)
def test_scores_of_another_unit_are_refused(knobs: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Prune(macs=0.5, **knobs)


def test_block_influence_is_zero_for_an_identity_one_for_a_right_angle_and_leaves_out_zeros() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert block_influence(before, 3 * before, -1) == 0
    assert block_influence(before, before.flip(1), -1) == 1
    assert block_influence(before, -before, -1) == 2
    assert block_influence(torch.zeros(2, 2), before[:2], -1) == 0
    # channels in dimension 1: two columns, of which both have turned by 90 degrees
    assert block_influence(torch.eye(2), torch.eye(2).flip(1), 1) == 1


def test_divergence_and_relative_error_have_their_textbook_values() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) nats; the logarithms of float32 have seven digits
    assert divergence(p.log(), q.log()) == pytest.approx(0.143841, abs=1e-6)
    assert divergence(p.log(), p.log()) == 0
    assert relative_error(torch.tensor([3.0, 4.0]), torch.zeros(2)) == 1
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(0.01)
