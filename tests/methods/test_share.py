"""Shared values as a step: few numbers a layer, zeros exact, values that train, kept by later steps; what is refused."""

import io

import numpy as np
import onnx
import pytest
import torch
from networks import Tensors
from onnx import numpy_helper
from torch import Tensor, nn

import lighten
from lighten import InputError, Recipe, UnfitError
from lighten.analyze.trace import tensor_of
from lighten.core.data import Data
from lighten.core.model import Model, Origin
from lighten.core.recipe import Step
from lighten.core.run import Run
from lighten.core.spec import Codebook
from lighten.engine.rewriting import rewritten
from lighten.engine.sharing import check_shared, groups_of, keep_shared, num_values, put_together
from lighten.export.onnx import OnnxExporter
from lighten.export.pack.reading import Archive
from lighten.export.pack.writing import archive_of
from lighten.methods.distill.distill import Distill
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune
from lighten.methods.quantize import stored
from lighten.methods.share import Share, share
from lighten.methods.sparsify.sparsify import Sparsify
from lighten.pack import pack

LAYERS = ("first.weight", "wide.weight", "head.weight")


class Small(nn.Module):
    """A convolution, one with a batch norm of both signs, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.wide(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


def network(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = Small().eval()
    with torch.no_grad():
        module.norm.weight.mul_(torch.randn(16))
        module.norm.running_var.uniform_(0.5, 2)
    return Model(module, (torch.randn(2, 1, 8, 8),), Origin("module", "small", dynamic=({0: "batch"},)))


def stripes() -> Data:
    """Four kinds of stripes, to be told apart."""

    def split(count: int, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        target_B = torch.randint(4, (count,), generator=generator)
        wave = torch.sin(torch.arange(8) * 1.5)
        flat = torch.stack([wave.expand(8, 8), wave.expand(8, 8).T, torch.diag(wave) * 2, torch.zeros(8, 8)])
        return Tensors((flat[target_B][:, None] + 0.5 * torch.randn(count, 1, 8, 8, generator=generator),), target_B)

    return Data("stripes", "image-classification", "accuracy", split(64, 2), split(128, 1), digest="stripes")


def after(model: Model, *steps) -> Model:
    return rewritten(model, steps, data=stripes(), run=Run(seed=3), pins=(), identity={})[0]


@pytest.fixture(scope="module")
def trained() -> Model:
    return after(network(), Finetune(epochs=6, batch_size=16, lr=0.1, validation=0))


@pytest.fixture(scope="module")
def sparse(trained) -> Model:
    return after(trained, Sparsify(ratio=0.6, score="magnitude", dense=[], samples=32))


def loss(model: Model) -> float:
    split = stripes().train
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.module(*split.inputs), split.target))


def counts(model: Model) -> list[int]:
    return list(num_values(model.module, LAYERS).values())


def test_a_step_on_shared_weights_is_the_mean_of_the_steps_of_their_group():
    weight = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [2.0, 1.0, 1.0]]))
    together = keep_shared(nn.ParameterDict({"w": weight}), ["w"])
    gradient = torch.tensor([[0.3, 9.0, -0.2], [0.4, -0.6, 0.9]])
    weight.data -= gradient
    together(1, 1.0)
    one, two = 1 - (0.3 - 0.6 + 0.9) / 3, 2 - (-0.2 + 0.4) / 2
    torch.testing.assert_close(weight.data, torch.tensor([[one, 0.0, two], [two, one, one]]))


def test_that_step_is_gradient_descent_on_values_scaled_by_the_root_of_how_often_they_occur():
    """w_i = u_g / sqrt(n_g) has the same length as u, so no learning rate has to know n_g."""
    torch.manual_seed(0)
    x, codes = torch.randn(40, 12), torch.randint(3, (12,))
    values = torch.tensor([0.5, -1.0, 2.0])
    root = codes.bincount().sqrt()
    scaled = (values * root).requires_grad_()
    ((x @ (scaled / root)[codes]) ** 2).mean().backward()
    weight = values[codes].requires_grad_()
    ((x @ weight) ** 2).mean().backward()
    moved = (weight - 0.1 * weight.grad).detach()
    put_together(moved, groups_of(values[codes]))
    torch.testing.assert_close(moved, ((scaled - 0.1 * scaled.grad) / root)[codes].detach())


@pytest.mark.parametrize("bits", [2, 4])
def test_every_layer_has_as_many_values_as_the_codebook_and_its_zeros_stay(sparse, bits):
    before = {name: tensor_of(sparse.module, name) == 0 for name in LAYERS}
    result = after(sparse, Share(codebook=bits, epochs=1, batch_size=32, lr=0.05))
    assert counts(result) == [2**bits] * 3
    for name, zero in before.items():
        value = tensor_of(result.module, name)
        assert torch.equal(value == 0, zero)
        assert not torch.signbit(value[zero]).any()
    assert result.shared == dict.fromkeys(LAYERS, bits)
    assert result.sparse == sparse.sparse


def test_more_values_than_weights_change_nothing_but_the_batch_norm_that_is_folded(trained):
    result = after(trained, Share(codebook={"first": 7, "head": 6}, tune=False))
    (x,) = stripes().test.inputs
    torch.testing.assert_close(result.module(x), trained.module(x), rtol=1e-4, atol=1e-5)
    assert not [node for node in result.module.graph.nodes if "batch_norm" in str(node.target)]


def test_trained_values_are_better_than_those_of_k_means(sparse):
    found = after(sparse, Share(codebook=2, tune=False))
    tuned = after(sparse, Share(codebook=2, epochs=6, batch_size=16, lr=0.05, validation=0))
    assert counts(tuned) == counts(found) == [4, 4, 4]
    assert loss(tuned) < 0.8 * loss(found)


def test_shared_values_are_the_nearest_of_the_codebook():
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    shared = weight.clone()
    share(shared, 3)
    values = shared.unique()
    assert len(values) == 8
    nearest = values[(weight[..., None] - values).abs().argmin(-1)]
    assert torch.equal(shared, nearest)


def test_widths_are_those_of_the_first_pattern_and_biases_share_too(trained):
    result = after(trained, Share(codebook={"first": 2, "w*": 3}, biases=1, tune=False))
    assert result.shared == {"first.weight": 2, "wide.weight": 3, "first.bias": 1, "wide.folded_bias": 1, "head.bias": 1}
    values = num_values(result.module, result.shared)
    assert list(values.values()) == [4, 8, 2, 2, 2]
    assert num_values(result.module, ["head.weight"])["head.weight"] == 64


def test_layers_named_dense_and_pinned_ones_keep_their_weights(trained):
    steps = [Share(codebook=2, dense=["first"], tune=False)]
    result = rewritten(trained, steps, data=stripes(), run=Run(), pins=("head",), identity={})[0]
    assert list(result.shared) == ["wide.weight"]
    assert torch.equal(tensor_of(result.module, "head.weight"), tensor_of(trained.module, "head.weight"))


@pytest.mark.parametrize(
    "step",
    [
        Finetune(epochs=1, batch_size=32, lr=0.05, validation=0),
        Finetune(epochs=1, batch_size=32, lr=0.05, ema=0.9, weight_decay=0.01, validation=0),
        Finetune(epochs=1, batch_size=32, optimizer="adamw", lr=0.01, validation=0),
        Distill(epochs=1, batch_size=32, lr=0.05, validation=0),
    ],
)
def test_later_trainings_move_shared_values_and_keep_them_shared(sparse, step):
    shared = after(sparse, Share(codebook=3, tune=False))
    result = after(shared, step)
    assert counts(result) == [8, 8, 8]
    assert not torch.equal(tensor_of(result.module, "wide.weight"), tensor_of(shared.module, "wide.weight"))


@pytest.mark.parametrize("step", [Sparsify(ratio=0.9, dense=[]), Prune(ratio=0.5)])
def test_steps_that_would_tear_values_apart_are_refused_behind_share(trained, step):
    with pytest.raises(UnfitError, match="tear shared values apart"):
        after(after(trained, Share(tune=False)), step)


def test_a_step_that_gave_more_values_is_an_error():
    with pytest.raises(UnfitError, match="gave fc 5 values, which had 4"):
        check_shared({"fc": 4}, {"fc": 5}, step="prune")


def test_a_training_that_goes_on_gives_the_same_bits(sparse, tmp_path):
    def run(folder):
        steps = [Share(codebook=3, epochs=2, batch_size=32, lr=0.05, validation=0)]
        return rewritten(sparse, steps, data=stripes(), run=Run(seed=1, folder=folder), pins=(), identity={})[0]

    first, again = run(tmp_path), run(tmp_path)
    other = run(tmp_path / "other")
    assert again.shared == first.shared
    for name in LAYERS:
        assert torch.equal(tensor_of(first.module, name), tensor_of(again.module, name))
        assert torch.equal(tensor_of(first.module, name), tensor_of(other.module, name))


def test_the_file_holds_the_few_values_and_the_archive_codes_them(sparse, tmp_path):
    """Each weight takes at most the entropy of its values, and 20 % for the coder's tables in so small a network."""
    result = after(sparse, Share(codebook=2, tune=False))
    OnnxExporter().write_float(result, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    arrays = [numpy_helper.to_array(one) for one in onnx.load_from_string(data).graph.initializer]
    wide = next(array for array in arrays if array.size == 16 * 8 * 9)
    assert len(np.unique(wide)) == 4
    archive = archive_of({"model.onnx": data})
    assert b"".join(Archive(io.BytesIO(archive)).chunks("model.onnx")) == data
    OnnxExporter().write_float(sparse, tmp_path / "sparse.onnx")
    before = archive_of({"model.onnx": (tmp_path / "sparse.onnx").read_bytes()})
    _, count = np.unique(wide, return_counts=True)
    entropy_bytes = float(-(count * np.log2(count / count.sum())).sum()) / 8
    kept = np.count_nonzero(wide)
    # 26 bits a weight that stays is what float32 takes (bench/pack/table.md)
    assert len(before) - len(archive) > 26 / 8 * kept - 1.2 * entropy_bytes


def test_prune_share_code_is_one_recipe(trained, tmp_path):
    recipe = Recipe((
        Step("sparsify", {"ratio": 0.6, "score": "magnitude", "dense": [], "samples": 32}),
        Step("share", {"codebook": 3, "epochs": 1, "batch_size": 32}),
        Step("keep"),
    ))  # fmt: skip
    result = lighten.compress(trained, stripes(), recipe=recipe)
    result.save(tmp_path / "out")
    loaded = lighten.load(tmp_path / "out")
    assert loaded.shared == dict.fromkeys(LAYERS, 3)
    assert loaded.sparse == dict.fromkeys(LAYERS, "unstructured")
    assert counts(loaded) == [8, 8, 8]
    sizes = pack(tmp_path / "out", tmp_path / "small.lighten")
    assert sizes["size_bytes"] < sizes["unpacked_bytes"] / 2


def test_quantization_by_codebooks_of_as_many_values_keeps_them(sparse):
    """The file has codes and a table then; the table is float16, which rounds a value by 2^-11 of it at most."""
    weight = tensor_of(after(sparse, Share(codebook=3, tune=False)).module, "wide.weight").flatten(1)
    kept = stored.fit(weight, Codebook(3), keep_zeros=True).value_OK
    torch.testing.assert_close(kept, weight, rtol=2**-11, atol=0)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"codebook": 0}, "integer from 1 to 8. Got 0"),
        ({"codebook": 9}, "integer from 1 to 8. Got 9"),
        ({"codebook": {"head": 2.5}}, "bits of head"),
        ({"codebook": {}}, "names no layer"),
        ({"biases": 12}, "bits of biases"),
        ({"dense": "first"}, "a list of names"),
        ({"tune": 1}, "true or false"),
        ({"validation": 0.7}, "validation"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, said):
    with pytest.raises(InputError, match=said):
        Share(**knobs)


@pytest.mark.parametrize("knobs", [{"codebook": {"haed": 4}}, {"dense": ["haed"]}])
def test_a_layer_that_does_not_exist_is_refused_before_training(trained, knobs):
    with pytest.raises(InputError, match="haed"):
        Share(**knobs).check(trained, data=stripes())


def test_tuning_without_a_training_split_is_refused(trained):
    data = Data("stripes", "image-classification", "accuracy", stripes().test, digest="stripes")
    with pytest.raises(InputError, match="training split"):
        Share().check(trained, data=data)
    Share(tune=False).check(trained, data=data)
