"""Modules given as objects or by a callable, and weights from files."""

import pickle

import pytest
import torch
from networks import Residual, residual
from safetensors.torch import save_file
from torch import nn

import lighten
from lighten.core.errors import InputError
from lighten.read.module import load_weights

EXAMPLE = torch.zeros(2, 4)
PLANS = """
import torch
from torch import nn

from lighten.core.model import Model, Origin


class Net(nn.Sequential):
    example_inputs = (torch.zeros(2, 4),)


def module(): return Net(nn.Linear(4, 3))
def plain(): return nn.Sequential(nn.Linear(4, 3))
def pair(): return plain(), torch.zeros(2, 4)
def model(): return Model(plain(), (torch.zeros(2, 4),), Origin("callable", "mine", task="regression"), ("features",))
def number(): return 3
def takes_one(size): return size
def fails(): raise RuntimeError("no such size")
"""


@pytest.fixture
def plans(tmp_path, monkeypatch):
    """A module with the test's own name, so that no earlier import answers for it."""
    name = f"plans_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PLANS)
    monkeypatch.chdir(tmp_path)
    return name


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3))


class Asked(nn.Linear):
    def example_inputs(self):
        return (torch.ones(3, 4),)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


def test_a_module_with_an_example_becomes_a_model_in_eval_mode() -> None:
    model = lighten.load(network().train(), example=EXAMPLE)
    assert not model.module.training
    assert model.input_names == ("input",)
    assert (model.origin.kind, model.origin.source, model.origin.dynamic) == ("module", "Sequential", ({0: "batch"},))


def test_a_single_example_is_doubled_so_that_the_batch_stays_free() -> None:
    assert lighten.load(network(), example=EXAMPLE[:1]).example[0].shape == (2, 4)


def test_several_inputs_are_numbered() -> None:
    model = lighten.load(nn.Bilinear(4, 4, 2), example=(EXAMPLE, EXAMPLE))
    assert model.input_names == ("input_0", "input_1")


def test_example_inputs_of_the_module_are_taken_as_value_or_callable() -> None:
    assert lighten.load(Asked(4, 3)).example[0].shape == (3, 4)
    module = network()
    module.example_inputs = [torch.ones(2, 4)]
    assert lighten.load(module).example[0].sum() == 8


def test_a_module_without_an_example_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no example of its inputs.*example_inputs"):
        lighten.load(network())


def test_a_module_in_half_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.weight is bfloat16, not float32.*module\.float"):
        lighten.load(network().bfloat16(), example=EXAMPLE)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(weight) -> None:
    module = network()
    module[0].bias.data[1] = weight
    with pytest.raises(InputError, match=r"NaN or infinity: 0\.bias"):
        lighten.load(module, example=EXAMPLE)


def test_a_mask_of_minus_infinity_is_no_damage() -> None:
    module = network()
    module.register_buffer("mask", torch.full((4, 4), float("-inf")))
    assert lighten.load(module, example=EXAMPLE).module is module


@pytest.mark.parametrize("name", ["module", "pair", "model"])
def test_a_callable_gives_a_module_a_pair_or_a_model(name, plans) -> None:
    model = lighten.load(f"{plans}:{name}")
    assert model.module(*model.example).shape == (2, 3)
    assert model.input_names == (("features",) if name == "model" else ("input",))


def test_a_given_example_goes_before_the_callables_own(plans) -> None:
    assert lighten.load(f"{plans}:pair", example=torch.zeros(5, 4)).example[0].shape == (5, 4)


def test_a_task_can_be_stated(plans) -> None:
    assert lighten.load(f"{plans}:module", task="classification").origin.task == "classification"
    with pytest.raises(InputError, match="Unknown task 'clasification'. Did you mean"):
        lighten.load(f"{plans}:module", task="clasification")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", "has no example of its inputs"),
        ("number", "gave a int"),
        ("missing", "has no attribute 'missing'"),
        ("takes_one", "failed: TypeError: .*missing 1 required positional argument: 'size'"),
        ("fails", "failed: RuntimeError: no such size"),
    ],
)
def test_a_callable_that_gives_no_model_is_refused(name, message, plans) -> None:
    with pytest.raises(InputError, match=message):
        lighten.load(f"{plans}:{name}")


def test_a_package_that_cannot_be_found_is_named() -> None:
    with pytest.raises(InputError, match="No module named 'no_such_package'.*folder that holds the package"):
        lighten.load("no_such_package:make")


def test_a_package_with_a_syntax_error_is_refused(plans, tmp_path) -> None:
    (tmp_path / f"{plans}.py").write_text("def broken(:")
    with pytest.raises(InputError, match="failed: SyntaxError"):
        lighten.load(f"{plans}:broken")


@pytest.mark.parametrize("name", ["module", "model"])
def test_weights_from_safetensors_replace_the_callables_own(name, plans, tmp_path) -> None:
    state = network().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    model = lighten.load(f"{plans}:{name}", weights=tmp_path / "weights.safetensors")
    assert torch.equal(model.module[0].weight, state["0.weight"])


def test_plain_tensors_in_a_torch_file_are_accepted(tmp_path) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    module = network()
    load_weights(module, tmp_path / "weights.pth")
    assert torch.equal(module[0].weight, state["0.weight"])


def test_weights_that_share_memory_may_come_once(tmp_path) -> None:
    given, module = Tied(), Tied()
    save_file({"table.weight": given.table.weight.detach()}, tmp_path / "weights.safetensors")
    load_weights(module, tmp_path / "weights.safetensors")
    assert torch.equal(module.head.weight, given.head.weight)


def test_buffers_are_loaded_too(tmp_path) -> None:
    save_file(residual().module.state_dict(), tmp_path / "weights.safetensors")
    module = Residual()
    load_weights(module, tmp_path / "weights.safetensors")
    assert torch.equal(module.norm.running_var, residual().module.norm.running_var)


def test_missing_and_unexpected_weights_are_both_named(tmp_path) -> None:
    save_file({"0.weight": torch.zeros(3, 4), "0.scale": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"does not fit the network: missing 0\.bias\. unexpected 0\.scale\."):
        load_weights(network(), tmp_path / "weights.safetensors")


def test_a_wrong_shape_names_both(tmp_path) -> None:
    save_file({"0.weight": torch.zeros(3, 5), "0.bias": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"0\.weight has shape \(3, 5\), the network's is \(3, 4\)"):
        load_weights(network(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_a_pickled_module_is_refused_in_one_sentence_that_names_it(suffix, tmp_path) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(network(), path)
    with pytest.raises(InputError) as caught:
        load_weights(network(), path)
    said = "it holds torch.nn.modules.container.Sequential, and loading that would run its code."
    assert str(caught.value) == f"{path} is refused: {said} Save module.state_dict() as .safetensors."


def test_a_pickle_that_would_run_a_program_is_refused_and_not_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(InputError, match="is refused"):
        load_weights(network(), tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_of_something_else_is_refused(tmp_path) -> None:
    torch.save({"epoch": 3, "model": network().state_dict()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="does not hold a state dict"):
        load_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [b"", b"no tensors at all", b"PK\x03\x04 half an archive"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_corrupt_file_is_refused(suffix, content, tmp_path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is corrupt"):
        load_weights(network(), path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_truncated_file_is_refused(suffix, tmp_path) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = network().state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is corrupt"):
        load_weights(network(), path)


def test_weights_that_do_not_exist_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="none.safetensors do not exist"):
        load_weights(network(), tmp_path / "none.safetensors")
