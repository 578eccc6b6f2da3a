"""Sparsity as a step: exact zeros in every pattern, score and schedule, kept by every later step; what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from networks import Tensors, encoder, recurrent, residual, sentences
from torch import Tensor, nn

import lighten
from lighten import InputError, Recipe, Target, UnfitError
from lighten.analyze.trace import tensor_of, trace
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.engine.rewriting import rewritten
from lighten.engine.zeros import Zeros, check_zeros, zeros_of
from lighten.evaluate.zeros import require_zeros, zeros_in
from lighten.methods.finetune import Finetune
from lighten.methods.keep import KeepFloat
from lighten.methods.prune.prune import Prune
from lighten.methods.quantize.integer import Quantize
from lighten.methods.sparsify import oneshot
from lighten.methods.sparsify.layers import find_layers
from lighten.methods.sparsify.oneshot import ALLOCATIONS
from lighten.methods.sparsify.score import SCORES
from lighten.methods.sparsify.sparsify import Sparsify
from lighten.methods.sparsify.train import TRAINED
from lighten.methods.training import own_graph
from lighten.ops.masks import holds, pattern_of
from lighten.report.page import page


class Small(nn.Module):
    """A first convolution, one with groups, a transposed one, a pointwise one with batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        x = torch.relu(self.norm(self.wide(torch.relu(self.up(x)))))
        return self.head(x.mean((2, 3)))


LAYERS = ("grouped.weight", "up.weight", "wide.weight", "head.weight")


def network(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(Small().eval(), (torch.randn(2, 1, 8, 8),), Origin("module", "small", dynamic=({0: "batch"},)))


def stripes(count: int = 128) -> Data:
    """Four kinds of stripes, to be told apart."""

    def split(count: int, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        target_B = torch.randint(4, (count,), generator=generator)
        wave = torch.sin(torch.arange(8) * 1.5)
        flat = torch.stack([wave.expand(8, 8), wave.expand(8, 8).T, torch.diag(wave) * 2, torch.zeros(8, 8)])
        x_BCHW = flat[target_B][:, None] + 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
        return Tensors((x_BCHW,), target_B)

    return Data("stripes", "image-classification", "accuracy", split(64, 2), split(count, 1), digest="stripes")


@pytest.fixture(scope="module")
def trained() -> Model:
    steps = [Finetune(epochs=6, batch_size=16, lr=0.1, validation=0)]
    return rewritten(network(), steps, data=stripes(), run=Run(), pins=(), identity={})[0]


def accuracy(model: Model) -> float:
    split = stripes().test
    with torch.no_grad():
        return float((model.module(*split.inputs).argmax(1) == split.target).float().mean())


def share(model: Model) -> float:
    """Of zeros among all weights that are sparse."""
    found = zeros_of(model.module, model.sparse).values()
    return sum(one.zeros for one in found) / sum(one.where.numel() for one in found)


def sparsified(model: Model, data: Data | None = None, **knobs) -> Model:
    run = Run(seed=3)
    return rewritten(model, [Sparsify(**knobs)], data=data or stripes(), run=run, pins=(), identity={})[0]


@pytest.mark.parametrize("score", SCORES)
def test_every_score_gives_the_share_of_zeros_that_was_asked_for(trained, score):
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    result = sparsified(trained, ratio=0.6, score=score, samples=64)
    # at most a weight a layer more
    assert 0.6 <= share(result) < 0.6 + len(LAYERS) / 1_100
    assert tuple(result.sparse) == LAYERS
    assert all(torch.equal(value, before[name]) for name, value in trained.module.state_dict().items())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4x1", "1x4", "2x2"])
def test_every_pattern_holds_in_convolutions_grouped_and_transposed_ones_and_linear_layers(trained, pattern):
    ratio = None if ":" in pattern else 0.5
    result = sparsified(trained, ratio=ratio, pattern=pattern, allocation="uniform", samples=64)
    for layer in find_layers(own_graph(result), dense=None, pins=()):
        mask_OK = layer.rows(tensor_of(result.module, layer.name)) != 0
        assert holds(mask_OK, pattern_of(pattern))
        assert not mask_OK.all()


def test_neighbouring_inputs_of_a_convolution_are_input_channels_not_kernel_positions(trained):
    weight = tensor_of(sparsified(trained, pattern="2:4", samples=64).module, "wide.weight")
    # (outputs, inputs, kernel): two of every four input channels at each kernel position
    assert set((weight != 0).reshape(16, 2, 4, 9).sum(2).flatten().tolist()) == {2}


def test_layers_too_large_for_the_exact_order_lose_their_weights_in_rounds(trained, monkeypatch):
    monkeypatch.setattr(oneshot, "_MOST_EXACT", 0)
    large = sparsified(trained, ratio=0.7, samples=64)
    assert share(large) == pytest.approx(0.7, abs=0.02)
    assert accuracy(large) > 0.9


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("score", ["magnitude", "wanda", "obs"])
def test_every_allocation_meets_the_ratio_over_all_layers(trained, allocation, score):
    result = sparsified(trained, ratio=0.7, score=score, allocation=allocation, samples=64)
    # a row or a layer keeps whole weights, and at least one
    assert share(result) == pytest.approx(0.7, abs=0.02)


def test_without_training_the_surgeon_loses_less_than_magnitude(trained):
    inputs, lost = stripes().test.inputs, []
    for knobs in ({"score": "obs"}, {"score": "magnitude"}, {"score": "magnitude", "repair": False}):
        result = sparsified(trained, ratio=0.7, allocation="uniform", samples=128, **knobs)
        with torch.no_grad():
            lost.append(float((result.module(*inputs) - trained.module(*inputs)).square().mean()))
    # measured 0.005, 0.11 and 2.5
    assert lost[0] < 0.2 * lost[1] < 0.2 * lost[2]


def test_a_threshold_sets_what_lies_below_it_to_zero(trained):
    result = sparsified(trained, threshold=0.1, repair=False)
    for name in LAYERS:
        was, now = (tensor_of(one.module, name) for one in (trained, result))
        torch.testing.assert_close(now, torch.where(was.abs() > 0.1, was, 0.0))


@pytest.mark.parametrize("schedule", [*TRAINED, "one-shot"])
def test_every_schedule_ends_with_the_zeros_that_were_asked_for_and_learns(schedule):
    knobs = {"pattern": "2x1"} if schedule == "group_l1" else {}
    rounds = {"rounds": 2} if schedule.startswith("rewind") else {}
    training = {"batch_size": 16, "lr": 0.1}
    result = sparsified(network(), ratio=0.6, schedule=schedule, epochs=8, training=training, samples=64, **knobs, **rounds)
    assert share(result) == pytest.approx(0.6, abs=0.01)
    # by chance 0.25; untrained 0.2; noise on every weight learns slower: 0.55 to 1.0 over twelve seeds
    assert accuracy(result) > (0.5 if schedule == "variational" else 0.8)
    assert [type(value) for value in result.module.parameters()] == [nn.Parameter] * len(list(network().module.parameters()))


def test_a_gradual_schedule_holds_n_of_m_at_its_end(trained):
    result = sparsified(trained, pattern="2:4", schedule="cubic", epochs=2, training={"batch_size": 16})
    assert share(result) == 0.5
    assert all(
        holds(tensor_of(result.module, name).flatten(2).mT.flatten(1) != 0, pattern_of("2:4")) for name in ["wide.weight"]
    )


def test_zeros_stay_through_training_and_integers(trained):
    steps = [Sparsify(ratio=0.8, samples=64), Finetune(epochs=2, batch_size=16, lr=0.1), Sparsify(ratio=0.9, samples=64)]
    first = rewritten(trained, steps[:1], data=stripes(), run=Run(), pins=(), identity={})[0]
    last = rewritten(trained, steps, data=stripes(), run=Run(), pins=(), identity={})[0]
    before, after = zeros_of(first.module, LAYERS), zeros_of(last.module, LAYERS)
    assert share(last) == pytest.approx(0.9, abs=0.01)
    for name in LAYERS:
        assert not (before[name].where & ~after[name].where).any()
    assert [zeros.zeros for zeros in after.values()] == [zeros.zeros for zeros in zeros_of(trace(last).module, LAYERS).values()]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        *({"weights": bits, "rounding": solver} for bits in (4, 2) for solver in ("nearest", "gptq", "adaround", "anneal")),
        {"activations": "float"},
    ],
    ids=str,
)
def test_where_a_weight_is_zero_its_code_stands_for_zero(trained, knobs):
    sparse = sparsified(trained, ratio=0.7, allocation="uniform", samples=64)
    graph = trace(sparse)
    prepared = Quantize(samples=32, **knobs).prepare(sparse, graph, data=stripes(), run=Run())
    compressed = prepared.realize(prepared.proposals()[0])
    require_zeros(compressed, graph, step="quantize")
    before, after = zeros_of(graph.module, LAYERS), zeros_in(compressed, graph)
    assert set(after) == set(LAYERS)
    assert all(after[name].zeros >= before[name].zeros > 0.6 * before[name].where.numel() for name in LAYERS)


def test_a_last_step_that_fills_zeros_is_found_out(trained):
    sparse = sparsified(trained, ratio=0.7, samples=64)
    graph = trace(sparse)
    compressed = KeepFloat().prepare(sparse, graph, data=stripes(), run=Run()).realize(Plan())
    require_zeros(compressed, graph, step="keep")
    filled = replace(compressed, graph=copy.deepcopy(compressed.graph))
    tensor_of(filled.graph, "head.weight").data += 1
    with pytest.raises(UnfitError, match="keep filled .* zeros of head.weight"):
        require_zeros(filled, graph, step="keep")


def test_it_takes_up_a_network_that_was_read_back_from_a_folder(trained, tmp_path):
    steps = [Prune(ratio=0.2, round_to=1), Sparsify(ratio=0.5), Finetune(epochs=1)]
    kept = rewritten(trained, steps, data=stripes(), run=Run(folder=tmp_path), pins=(), identity={})[0]
    assert share(kept) == pytest.approx(0.5, abs=0.02)


def test_channels_that_go_leave_slices_of_the_zeros(trained):
    steps = [Sparsify(ratio=0.8, samples=64), Prune(ratio=0.4, round_to=1, samples=64)]
    result = rewritten(trained, steps, data=stripes(), run=Run(), pins=(), identity={})[0]
    assert tensor_of(result.module, "wide.weight").numel() < 16 * 8 * 9
    assert share(result) > 0.5
    assert tuple(result.sparse) == LAYERS


def test_a_cut_that_breaks_groups_apart_is_refused_with_the_order_to_take(trained):
    steps = [Sparsify(pattern="2:4", samples=64), Prune(ratio=0.4, round_to=1, samples=64)]
    with pytest.raises(UnfitError, match="prune broke the pattern 2:4 of .*Put sparsify behind"):
        rewritten(trained, steps, data=stripes(), run=Run(), pins=(), identity={})


def test_a_step_that_fills_zeros_is_found_out():
    where = torch.tensor([True, True, False])
    filled = Zeros((3,), 1, torch.tensor([True, False, False]))
    with pytest.raises(UnfitError, match="finetune filled 1 zeros of head.weight, which had 2"):
        check_zeros({"head.weight": Zeros((3,), 2, where)}, {"head.weight": filled}, step="finetune")


def test_the_first_convolution_and_depthwise_ones_stay_dense_unless_a_list_says_which():
    graph = own_graph(residual())
    assert [layer.site for layer in find_layers(graph, dense=None, pins=())] == ["project", "head"]
    assert [layer.site for layer in find_layers(graph, dense=["head"], pins=())] == ["stem", "depthwise", "project"]
    assert [layer.site for layer in find_layers(graph, dense=None, pins=["project"])] == ["head"]
    assert [layer.site for layer in find_layers(own_graph(recurrent()), dense=None, pins=())] == ["head"]


def test_a_table_of_embeddings_that_a_layer_shares_stays_dense():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.inner(self.table(ids)))

    model = Model(Tied().eval(), (torch.zeros(2, 5, dtype=torch.int64),), Origin("module", "tied"))
    assert [layer.site for layer in find_layers(own_graph(model), dense=None, pins=())] == ["inner"]


def test_transformer_layers_on_texts_are_made_sparse_without_labels():
    result = sparsified(encoder(), replace(sentences(), task="sentence-similarity"), pattern="2:4", samples=32)
    assert set(result.sparse) == {"up.weight", "down.weight"}
    assert share(result) == 0.5


def test_a_training_that_is_taken_up_again_gives_the_same_network(trained, tmp_path):
    knobs = {"ratio": 0.8, "schedule": "cubic", "epochs": 2, "training": {"batch_size": 16}}
    step = Sparsify(**knobs)
    whole = step.rewrite(trained, data=stripes(), run=Run())

    class Interrupting:
        def track(self, items, *, what, total):
            for number, item in enumerate(items):
                yield item
                if number == 9:
                    raise KeyboardInterrupt

        def say(self, line):
            pass

    with pytest.raises(KeyboardInterrupt):
        step.rewrite(trained, data=stripes(), run=Run(folder=tmp_path, progress=Interrupting()))
    again = step.rewrite(trained, data=stripes(), run=Run(folder=tmp_path))
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"ratio": 0}, "ratio must be in"),
        ({"ratio": 1}, "ratio must be in"),
        ({"ratio": "half"}, "ratio must be in"),
        ({"threshold": -1}, "threshold must be > 0"),
        ({"pattern": "2:1"}, "N is smaller than M"),
        ({"pattern": "blocky"}, "pattern must be"),
        ({"pattern": 124}, "in quotes"),
        ({"pattern": "2:4", "ratio": 0.6}, "makes 0.5 of the weights zero"),
        ({"pattern": "2:4", "allocation": "erk"}, "one share of zeros"),
        ({"pattern": "2:4", "schedule": "rigl"}, "does not move"),
        ({"score": "magnitud"}, "Did you mean 'magnitude'"),
        ({"schedule": "cubid"}, "Did you mean 'cubic'"),
        ({"schedule": "cubic", "score": "obs"}, "ranks weights by itself"),
        ({"schedule": "group_l1"}, "needs blocks"),
        ({"threshold": 0.1, "ratio": 0.5}, "threshold takes no ratio"),
        ({"score": "sparsegpt", "allocation": "erk"}, "allocation: uniform"),
        ({"rounds": 3}, "rounds is for schedule"),
        ({"strength": 1.0, "schedule": "cubic"}, "strength is for schedule"),
        ({"training": {"lr": 0.1}}, "training needs epochs"),
        ({"epochs": 1, "training": {"lrr": 0.1}}, "Did you mean 'lr'"),
        ({"epochs": 0}, "epochs must be > 0"),
        ({"dense": "head"}, "dense must be a list"),
        ({"samples": 0}, "samples must be"),
    ],
    ids=str,
)
def test_knobs_that_mean_nothing_are_refused(knobs, why):
    with pytest.raises(InputError, match=why):
        Sparsify(**knobs)


@pytest.mark.parametrize(
    ("pattern", "why"), [("1:16", "grouped .*4 inputs"), ("8x1", "head .*4 outputs"), ("1x3", "grouped .*4 inputs")]
)
def test_a_pattern_that_does_not_divide_a_layer_names_it_before_any_work(pattern, why):
    with pytest.raises(UnfitError, match=why):
        Sparsify(pattern=pattern).check(network(), data=stripes())


def test_what_the_data_lacks_is_said_before_any_work():
    unlabelled = replace(stripes(), train=Tensors(stripes().train.inputs))
    with pytest.raises(InputError, match="score taylor needs targets"):
        Sparsify(score="taylor").check(network(), data=unlabelled)
    with pytest.raises(InputError, match="a training needs targets"):
        Sparsify(schedule="cubic").check(network(), data=unlabelled)
    with pytest.raises(InputError, match="training split"):
        Sparsify(epochs=1).check(network(), data=replace(stripes(), train=None))
    with pytest.raises(InputError, match="Unknown layer in `dense` 'heat'. Did you mean 'head'"):
        Sparsify(dense=["heat"]).check(network(), data=stripes())


def test_a_schedule_that_would_move_zeros_made_before_is_refused(trained):
    sparse = sparsified(trained, ratio=0.5, samples=64)
    with pytest.raises(UnfitError, match="would move zeros"):
        sparsified(sparse, ratio=0.8, schedule="rigl", epochs=1)


def test_the_job_reports_the_zeros_of_the_file_and_that_they_make_nothing_faster(tmp_path):
    recipe = Recipe.from_yaml("steps: [{sparsify: {ratio: 0.75, samples: 32}}, {quantize: {bits: 8, samples: 32}}]")
    result = lighten.compress(network(), stripes(), recipe=recipe, target=Target(threads=1), out=tmp_path)
    zeros = {entry["tensor"]: entry for entry in result.report["zeros"]}
    assert set(zeros) == set(LAYERS)
    assert sum(entry["zeros"] for entry in zeros.values()) >= 0.75 * sum(entry["weights"] for entry in zeros.values())
    assert any("smaller to store, not the network faster. Zipped" in note for note in result.report["notes"])
    assert 'id="zeros"' in page(result.report)


@pytest.mark.parametrize("knobs", [{"score": "magnitude", "samples": 32}, {"schedule": "cubic", "epochs": 1}])
def test_zeros_have_no_sign(trained, knobs):
    """A negative zero is another pattern of bits, which an archive has to keep apart."""
    result = sparsified(trained, ratio=0.6, **knobs)
    steps = [Finetune(epochs=1, batch_size=16, lr=0.1, validation=0)]
    result = rewritten(result, steps, data=stripes(), run=Run(), pins=(), identity={})[0]
    for name in result.sparse:
        for weight in (tensor_of(result.module, name), tensor_of(trace(result).module, name)):
            assert not torch.signbit(weight[weight == 0]).any()
