"""Batch-norm re-estimation: known statistics come back, and a pruned network its answers."""

import pytest
import torch
from torch import Tensor, nn

from lighten.analyze.trace import traced
from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.renorm import reestimate


def batches(x: Tensor, size: int) -> list[Batch]:
    return [Batch((part,), None, tuple(range(len(part)))) for part in x.split(size)]


def inputs(count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 6, 6, generator=generator)
    return x * torch.tensor([0.5, 2, 5])[:, None, None] + torch.arange(count)[:, None, None, None] / count


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(32, 4), nn.BatchNorm1d(4)).eval()


@pytest.mark.parametrize("size", [60, 13, 7])
def test_the_first_norm_gets_the_statistics_of_all_examples_exactly_however_they_are_batched(size: int) -> None:
    module = network()
    assert reestimate(module, batches(inputs(), size), total=5) == 3
    made = module[0](inputs()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module[1].running_mean, made.mean(1))
    torch.testing.assert_close(module[1].running_var, made.var(1), rtol=1e-5, atol=0)


@torch.no_grad()
def test_in_one_batch_every_norm_gets_what_training_mode_would_have_normalized_by() -> None:
    module, reference = network(), network().train()
    reestimate(module, batches(inputs(), 60), total=1)
    for child in reference.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.momentum = 1.0  # only the last batch counts
    reference(inputs())
    for name, value in reference.named_buffers():
        if "running" in name:
            torch.testing.assert_close(module.get_buffer(name), value, rtol=1e-4, atol=1e-6)


def test_a_traced_graph_is_treated_like_its_module() -> None:
    module = network()
    graph = traced(Model(module, (inputs(2),), Origin("module", "network", dynamic=({0: "batch"},))))
    for one in (module, graph):
        reestimate(one, batches(inputs(), 20), total=3)
    found = {name: value for name, value in graph.named_buffers() if "running" in name}
    assert len(found) == 6
    for name, value in found.items():
        torch.testing.assert_close(value, module.get_buffer(name))


def test_a_norm_that_is_called_twice_sees_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(x + 4)

    module = Twice().eval()
    assert reestimate(module, batches(inputs(), 60), total=1) == 1
    torch.testing.assert_close(module.norm.running_mean, inputs().mean((0, 2, 3)) + 2)


@torch.no_grad()
def test_a_layer_that_was_scaled_down_computes_as_before() -> None:
    """The known answer: a norm undoes any gain and shift before it, once it knows them."""
    module = network()
    reestimate(module, batches(inputs(), 60), total=1)
    wanted = module(inputs())
    module[0].weight.mul_(0.01)
    module[0].bias.add_(5)
    spoiled = float((module(inputs()) - wanted).abs().max())
    reestimate(module, batches(inputs(), 60), total=1)
    # the norm's epsilon is 1e-5, and a channel's variance has become 1e-4 of what it was
    repaired = float((module(inputs()) - wanted).abs().max())
    assert repaired < 0.02 * spoiled


def test_a_pruned_network_gets_its_answers_back() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)]
    layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(4):
        for index in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    module.eval()

    @torch.no_grad()
    def accuracy() -> float:
        return float((module(x[1200:]).argmax(1) == y[1200:]).float().mean())

    before = accuracy()
    with torch.no_grad():
        for place in (3, 6):  # 60 % of the weights, the smallest
            weight = module[place].weight
            weight.mul_(weight.abs() > weight.abs().flatten().quantile(0.6))
    pruned = accuracy()
    reestimate(module, batches(x[:512], 128), total=4)
    assert before > 0.9
    assert accuracy() - pruned > 0.5 * (before - pruned) > 0.02


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="There is no batch"):
        reestimate(network(), [], total=0)
    with pytest.raises(InputError, match="one value a channel. .* Give batches of 2 or more"):
        reestimate(nn.Sequential(nn.BatchNorm1d(3)).eval(), batches(torch.randn(3, 3), 1), total=3)


def test_a_network_without_batch_norms_is_left_as_it_is() -> None:
    assert reestimate(nn.Linear(3, 2), batches(torch.randn(4, 3), 2), total=2) == 0
