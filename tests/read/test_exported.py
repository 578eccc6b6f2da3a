"""What torch.export.save writes is read without trusting it."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import encoder, images, recurrent, residual
from torch import nn

import lighten
from lighten.analyze.trace import export_program, trace
from lighten.core.errors import InputError, LightenError
from lighten.core.run import Run
from lighten.methods.quantize.integer import Quantize

MAKERS = [residual, encoder, recurrent]


def saved(make, tmp_path):
    model, path = make(), tmp_path / "model.pt2"
    torch.export.save(export_program(model.module, model.example, model.origin.dynamic), path)
    return path


@pytest.mark.parametrize("make", MAKERS)
def test_it_gives_the_numbers_of_the_network_that_was_saved(make, tmp_path) -> None:
    model, original = lighten.load(saved(make, tmp_path)), make()
    inputs = tuple(value[:1].repeat(5, *[1] * (value.dim() - 1)) for value in original.example)
    assert torch.equal(model.module(*inputs), original.module(*inputs))
    assert [site.kind for site in trace(model).sites] == [site.kind for site in trace(original).sites]
    assert [sorted(dims) for dims in model.origin.dynamic] == [sorted(dims) for dims in original.origin.dynamic]


def test_its_parameters_train_and_have_their_names(tmp_path) -> None:
    model = lighten.load(saved(residual, tmp_path))
    assert dict(model.module.named_parameters()).keys() == dict(residual().module.named_parameters()).keys()
    model.module(*model.example).square().sum().backward()
    assert all(value.grad is not None for value in model.module.parameters())


def test_it_is_quantized(tmp_path) -> None:
    model = lighten.load(saved(residual, tmp_path))
    prepared = Quantize().prepare(model, trace(model), data=images(), run=Run())
    made = prepared.realize(prepared.proposals()[0])
    x = images().test.inputs[0]
    expected = model.module(x)
    assert (made.graph(x) - expected).abs().max() < 0.1 * (expected.max() - expected.min())


def rewritten(path, change) -> None:
    """Every member of the archive through `change`, which gives None to leave it out."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        for info in archive.infolist():
            content = change(info.filename, archive.read(info))
            if content is not None:
                clean.writestr(info.filename, content)
    path.write_bytes(copy.getvalue())


class Trap:
    """Would write a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_the_example_is_refused_and_not_run(tmp_path) -> None:
    path = saved(residual, tmp_path)
    trap = pickle.dumps(Trap(str(tmp_path / "ran")), protocol=2)
    rewritten(path, lambda name, content: trap if "sample_inputs" in name else content)
    with pytest.raises(InputError, match="holds objects whose loading runs code|is damaged"):
        lighten.load(path)
    assert not (tmp_path / "ran").exists()


def test_an_object_in_torchs_own_pickle_is_refused(tmp_path) -> None:
    path = saved(residual, tmp_path)
    buffer = io.BytesIO()
    torch.save(((nn.Linear(2, 2),), {}), buffer)
    rewritten(path, lambda name, content: buffer.getvalue() if "sample_inputs" in name else content)
    with pytest.raises(InputError, match="holds objects whose loading runs code"):
        lighten.load(path)


def edited(path, change) -> None:
    def edit(name, content):
        if "/models/" not in name:
            return content
        text = content.decode()
        assert change(text) != text
        return change(text)

    rewritten(path, edit)


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('touch ran')",
        "Symbol('s77').__class__",
        "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
        "9**9**9",
        "open('ran')",
        "(lambda: 0)()",
    ],
)
def test_a_size_that_is_no_formula_is_refused(formula, tmp_path) -> None:
    """torch evaluates these texts as Python."""
    path = saved(residual, tmp_path)
    wanted = json.dumps("Symbol('s77', positive=True, integer=True)")
    edited(path, lambda text: text.replace(wanted, json.dumps(formula)))
    with pytest.raises(InputError, match="for a size, which is refused"):
        lighten.load(path)


@pytest.mark.parametrize("target", ["torch.os.system", "torch.hub.load", "torch.ops.load_library", "builtins.eval", "#own:x"])
def test_an_operator_that_is_none_is_refused(target, tmp_path) -> None:
    path = saved(residual, tmp_path)
    edited(path, lambda text: text.replace("torch.ops.aten.linear.default", target))
    with pytest.raises(InputError, match="which is not an operator that is run"):
        lighten.load(path)


def test_text_that_torch_would_compile_is_left_out(tmp_path) -> None:
    path = saved(encoder, tmp_path)

    def edit(text):
        structure = json.loads(text)
        structure["guards_code"] = ["open('ran', 'w') and True"]
        return json.dumps(structure)

    edited(path, edit)
    model = lighten.load(path)
    model.module(*model.example)
    assert not (tmp_path / "ran").exists()


def test_a_weight_that_is_a_pickle_is_refused(tmp_path) -> None:
    path = saved(residual, tmp_path)

    def mark(name, content):
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("weights_config.json") else content
        )

    rewritten(path, mark)
    with pytest.raises(InputError, match="it holds a pickle"):
        lighten.load(path)


def test_a_compressed_archive_may_be_a_bomb_and_is_refused(tmp_path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", b" " * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"is compressed \(model/models/model.json\)"):
        lighten.load(path)


def test_torchscript_is_refused_with_what_to_do(tmp_path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", "class M: ...")
    with pytest.raises(InputError, match="is a TorchScript file, whose code lighten never runs. Save it anew by torch.export"):
        lighten.load(path)
    (tmp_path / "model.jit").write_bytes(b"PK")
    with pytest.raises(InputError, match="is a TorchScript file, whose code lighten never runs"):
        lighten.load(tmp_path / "model.jit")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_another_file_is_refused(content, tmp_path) -> None:
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(InputError, match="is not a .pt2 archive, or is damaged"):
        lighten.load(tmp_path / "model.pt2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(data, tmp_path) -> None:
    path = tmp_path / "model.pt2"
    if not path.exists():
        saved(recurrent, tmp_path)
        (tmp_path / "original").write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "original").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        lighten.load(path)
    except LightenError as error:
        assert str(error)  # noqa: PT017
