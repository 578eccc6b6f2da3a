"""Inputs from batch-norm statistics."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.data import Batch
from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run
from lighten.engine.renorm import reestimate
from lighten.engine.synthesize import Synthesis, _sizes, synthesize
from lighten.ops.statistics import moments, roughness

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
QUICK = Synthesis(steps=100, smoothness=0.0, labels=0.0)


def network() -> nn.Sequential:
    """Its statistics are those of bright, smooth inputs."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = functional.interpolate(torch.randn(64, 3, 2, 2), 8, mode="bilinear") * 2 + 3
    reestimate(module, [Batch((x,), None, tuple(range(64)))], total=1)
    return module


def test_what_reaches_the_norms_has_their_statistics() -> None:
    module = network()
    made = synthesize(module, EXAMPLE, 32, run=Run(), synthesis=QUICK)
    assert made.inputs[0].shape == (32, 3, 8, 8)
    assert made.num_norms == 2
    assert made.mismatch < 0.02 * made.beginning
    with torch.no_grad():
        found = moments(module[0](made.inputs[0]))
    off = (found.mean_C - module[1].running_mean).abs() / module[1].running_var.sqrt()
    # two norms, and the mean over channels is what is reported: no channel's squared distance is above 2 x 8 times it
    assert float(off.max()) < (16 * made.mismatch) ** 0.5


def test_inputs_of_any_scale_are_found() -> None:
    """Pixels from 0 to 255, say: the first layer's weights are small instead."""
    module = network()
    module[0].weight.data /= 100
    made = synthesize(module, EXAMPLE, 32, run=Run(), synthesis=replace(QUICK, steps=300))
    assert made.mismatch < 0.05 * made.beginning
    assert 50 < float(made.inputs[0].mean()) < 500


def test_the_seed_alone_decides() -> None:
    first, again, other = (
        synthesize(network(), EXAMPLE, 16, run=Run(seed=seed), synthesis=QUICK).inputs[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_is_left_as_it_was() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    synthesize(module, EXAMPLE, 8, run=Run(), synthesis=QUICK)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in module.parameters())


def test_smoothness_makes_neighbours_alike_and_labels_deal_out_the_classes() -> None:
    module = network()
    module[-1].weight.data *= 20

    def made(**knobs: float) -> Tensor:
        return synthesize(module, EXAMPLE, 32, run=Run(), synthesis=replace(QUICK, **knobs)).inputs[0]

    def spread(x: Tensor) -> int:
        with torch.no_grad():
            return int(torch.bincount(module(x).argmax(1), minlength=4).min())

    plain, smooth, labelled = made(), made(smoothness=0.3), made(labels=1.0)
    assert float(roughness(smooth)) < 0.7 * float(roughness(plain))
    assert spread(labelled) == 8 > spread(plain)


def test_batches_are_as_equal_as_can_be_and_bounded_by_memory() -> None:
    assert _sizes(EXAMPLE, 130) == [44, 43, 43]
    assert _sizes(EXAMPLE, 64) == [64]
    assert _sizes((torch.zeros(2, 3, 224, 224),), 40) == [14, 13, 13]
    assert _sizes((torch.zeros(2, 3, 2000, 2000),), 17) == [9, 8]


def test_a_module_that_writes_into_its_input_is_no_trouble() -> None:
    module = nn.Sequential(nn.ReLU(inplace=True), *network()).eval()
    assert synthesize(module, EXAMPLE, 8, run=Run(), synthesis=QUICK).num_norms == 2


def test_what_cannot_be_synthesized_is_refused() -> None:
    with pytest.raises(UnfitError, match="no batch norm with running statistics"):
        synthesize(nn.Conv2d(3, 2, 3), EXAMPLE, 8, run=Run())
    with pytest.raises(InputError, match="one of this network's holds integers"):
        synthesize(nn.Embedding(5, 2), (torch.ones(2, 3, dtype=torch.int64),), 8, run=Run())
    with pytest.raises(InputError, match=r"At least 8 inputs .* Got 7"):
        synthesize(network(), EXAMPLE, 7, run=Run())
    spoiled = network()
    spoiled[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UnfitError, match="not finite"):
        synthesize(spoiled, EXAMPLE, 8, run=Run())


@pytest.mark.parametrize("knobs", [{"steps": 0}, {"steps": 1.5}, {"lr": -1}, {"smoothness": float("nan")}, {"labels": True}])
def test_bad_knobs_are_refused(knobs) -> None:
    with pytest.raises(InputError, match=f"synthesis: {next(iter(knobs))} must be"):
        Synthesis(**knobs)
