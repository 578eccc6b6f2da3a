"""What the catalog knows, what it says about what it does not know, and the contract of every method in it."""

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from lighten import catalog
from lighten.core.errors import InputError
from lighten.core.recipe import Step
from lighten.methods.quantize.integer import Quantize

DOCS = Path(__file__).parents[1] / "docs" / "methods"
KINDS = ("methods", "exporters", "readers")
ENTRIES = [(kind, name) for kind in KINDS for name in catalog.names(kind)]


HALVE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Halve:
    share: float = 0.5
"""


@pytest.fixture
def plug_in(monkeypatch):
    """Declares entry points as an installed package would."""
    declared: list[importlib.metadata.EntryPoint] = []

    def declare(kind: str, name: str, value: str) -> None:
        declared.append(importlib.metadata.EntryPoint(name, value, f"lighten.{kind}"))

    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry for entry in declared if entry.group == group])
    return declare


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_loads(kind, name):
    assert callable(catalog.get(kind, name))


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_a_method_is_a_frozen_dataclass_with_its_card_and_its_page(name):
    method = catalog.get("methods", name)
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    assert method.card.name == name
    assert method.card.title
    assert method.card.paper
    assert callable(method.rewrite if method.card.rewrites else method.prepare)
    assert method.__doc__
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert [field.name for field in dataclasses.fields(method) if f"`{field.name}`" not in page] == []


@pytest.mark.parametrize("name", [name for name in catalog.names("methods") if name != "prune"])  # which must be told how much
def test_a_method_without_knobs_is_one_with_its_defaults(name):
    built = catalog.build_method(Step(name))
    assert built == catalog.get("methods", name)()
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.card = None


@pytest.mark.parametrize("name", catalog.names("exporters"))
def test_an_exporter_has_the_name_of_its_entry_and_the_four_calls(name):
    exporter = catalog.exporter(name)
    assert exporter.name == name
    assert all(callable(getattr(exporter, call)) for call in ("write_float", "write", "open", "operators"))


@pytest.mark.parametrize(
    ("kind", "name", "near"), [("methods", "quantise", "quantize"), ("exporters", "onnxruntme", "onnxruntime")]
)
def test_an_unknown_name_is_answered_with_the_nearest(kind, name, near):
    with pytest.raises(InputError, match=f"{name!r}. Did you mean {near!r}\\?"):
        catalog.get(kind, name)


@pytest.mark.parametrize("name", ["gguf", "compressed_tensors"])
def test_a_planned_target_is_said_to_be_missing_in_this_version(name):
    with pytest.raises(InputError) as caught:
        catalog.exporter(name)
    available = "executorch, litert, onnxruntime, openvino"
    assert str(caught.value) == f"The target {name!r} is not available in this version. Available: {available}."


def test_a_planned_method_is_said_to_be_missing_in_this_version():
    with pytest.raises(InputError, match="The method 'factor' is not available in this version. Available: distill, "):
        catalog.build_method(Step("factor", {"rank": 5}))


def test_nothing_planned_is_already_there():
    assert [(kind, name) for kind in KINDS for name in catalog.PLANNED[kind] if name in catalog.names(kind)] == []


def test_knobs_reach_the_method():
    assert catalog.build_method(Step("quantize", {"ranges": "mse", "samples": 16})) == Quantize(ranges="mse", samples=16)


def test_an_unknown_knob_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="Unknown knob of quantize 'rangs'. Did you mean 'ranges'\\?"):
        catalog.build_method(Step("quantize", {"rangs": "mse"}))


@pytest.mark.parametrize(
    "knobs",
    [
        *({"bits": value} for value in (3, "8", 8.0, True)),
        *({"ranges": value} for value in ("max", ["mse"])),
        *({"percentile": value} for value in (20, "99")),
        *({"samples": value} for value in (0, 1.5)),
        {"smoothing": -1},
        {"bias_correction": "yes"},
    ],
    ids=str,
)
def test_a_bad_value_of_a_knob_is_refused_with_the_value(knobs):
    with pytest.raises(InputError) as caught:
        catalog.build_method(Step("quantize", knobs))
    assert repr(next(iter(knobs.values()))) in str(caught.value)


def test_a_plug_in_adds_a_method(plug_in, tmp_path, monkeypatch):
    (tmp_path / "package_of_halve.py").write_text(HALVE)
    monkeypatch.syspath_prepend(tmp_path)
    plug_in("methods", "halve", "package_of_halve:Halve")
    assert catalog.names("methods") == [*list(catalog.METHODS)[:2], "halve", *list(catalog.METHODS)[2:]]
    assert catalog.build_method(Step("halve", {"share": 0.25})).share == 0.25
    with pytest.raises(InputError, match="Unknown knob of halve 'shar'. Did you mean 'share'\\?"):
        catalog.build_method(Step("halve", {"shar": 1}))


def test_a_plug_in_does_not_replace_what_is_ours(plug_in):
    plug_in("methods", "quantize", "json:JSONDecoder")
    assert catalog.get("methods", "quantize") is Quantize


def test_a_plug_in_may_bring_what_is_planned(plug_in):
    plug_in("exporters", "gguf", "json:JSONDecoder")
    assert catalog.get("exporters", "gguf").__name__ == "JSONDecoder"


@pytest.mark.parametrize("value", ["no_such_package:Method", "json:NoSuchClass"])
def test_a_plug_in_that_cannot_be_loaded_is_named(plug_in, value):
    plug_in("methods", "broken", value)
    with pytest.raises(InputError, match=f"The method 'broken' cannot be loaded from {value}"):
        catalog.build_method(Step("broken"))


def test_a_plug_in_that_is_no_dataclass_is_refused(plug_in):
    plug_in("methods", "plain", "json:JSONDecoder")
    with pytest.raises(InputError, match="'plain' is no dataclass"):
        catalog.build_method(Step("plain", {"share": 1}))
