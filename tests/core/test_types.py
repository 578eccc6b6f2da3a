import pytest

from lighten.core.cost import Budget, Target
from lighten.core.errors import InputError
from lighten.core.pins import pinned, refuse_unknown_pins
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe, Step
from lighten.core.spec import FLOAT_FORMATS, Codebook, Float, Keep, Quant, Spec, from_dict, to_dict
from lighten.ops.floats import FORMATS, HALVES


def test_a_plan_goes_to_data_and_back_unchanged() -> None:
    plan = Plan({"a": Quant(), "b": Keep(), "c": Quant(weights=None), "d": Quant(dynamic=True)})
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(plan.to_dict()).key() == plan.key()


@pytest.mark.parametrize(
    "spec",
    [
        Quant(weights=4, activations=None, group=64, symmetric=False),
        Quant(weights=2, activations=4),
        Float("e2m1", block=32, scale="mx"),
        Codebook(3, rows=1),
    ],
)
def test_a_spec_goes_to_data_and_back_unchanged(spec: Spec) -> None:
    assert from_dict(to_dict(spec)) == spec


def test_every_floating_format_can_be_asked_for() -> None:
    assert set(FLOAT_FORMATS) == {*FORMATS, *HALVES}


def test_a_site_that_is_not_named_is_kept() -> None:
    assert Plan({"a": Quant()}).spec("b") == Keep()


def test_a_recipe_goes_to_yaml_and_back_unchanged() -> None:
    recipe = Recipe((Step("quantize", {"bits": 8, "ranges": "mse"}),), {"layers.0": "keep"}, 3, Plan({"a": Quant()}))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: []", "Unknown recipe key 'stepps'. Did you mean 'steps'"),
        ("steps: 3", "steps must be a list"),
        ("steps: [{a: {}, b: {}}]", "A step is one method's name"),
        ("seed: -1", "seed must be an integer >= 0"),
        ("sites: {a: drop}", "sites maps a name or pattern to `keep`"),
        ("a: [", "not valid YAML"),
        ("- 3", "A recipe is a mapping"),
        ("plan: {a: {kind: quont}}", "Unknown spec kind 'quont'"),
    ],
)
def test_a_bad_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_yaml(text)


def test_pins_take_names_parents_and_patterns() -> None:
    plan = Plan({"layers.0.a": Quant(), "layers.1.a": Quant(), "head": Quant()})
    assert pinned(plan, {"layers.0": "keep"})["layers.0.a"] == Keep()
    assert pinned(plan, {"layers.*.a": "keep"})["layers.1.a"] == Keep()
    assert pinned(plan, {"head": "keep"})["layers.0.a"] == Quant()


def test_a_pin_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Unknown site 'haed'\. Did you mean 'head'"):
        refuse_unknown_pins(["haed"], ["head"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Budget(size_bytes=0),
        lambda: Budget(latency_ms=float("nan")),
        lambda: Budget(max_drop=1.5),
        lambda: Target(threads=0),
        lambda: Target(batch=0),
        lambda: Quant(weights=9),
        lambda: Quant(activations=0),
        lambda: Quant(weights=True),
        lambda: Quant(group=0),
        lambda: Quant(weights=None, activations=None),
        lambda: Quant(activations=None, dynamic=True),
        lambda: Float("fp8"),
        lambda: Float("nf4", scale="max"),
        lambda: Float("e2m1", block=-1),
        lambda: Codebook(9),
        lambda: Codebook(3, columns=0),
    ],
)
def test_values_out_of_range_are_refused(make) -> None:
    with pytest.raises(InputError, match=r"Got|needs|changes"):
        make()


def test_widths_change_only_where_a_plan_quantizes() -> None:
    plan = Plan({"a": Quant(dynamic=True), "b": Keep(), "c": Quant()})
    changed = plan.with_widths({"a": 4, "b": 4, "d": 4})
    assert dict(changed) == {"a": Quant(weights=4, dynamic=True), "b": Keep(), "c": Quant()}
