"""Weights in few bits, activations in float: every form computes the same in torch and in the file, and weighs what it says."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest
import torch
from networks import images, recurrent, residual, sentences
from torch import Tensor, nn

import lighten
from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.data import Data
from lighten.core.errors import InputError, UnfitError
from lighten.core.export import Export
from lighten.core.method import Compressed
from lighten.core.model import Model, Origin
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import FLOAT_FORMATS, Codebook, Float, Keep, Quant, Spec
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize import stored
from lighten.methods.quantize.integer import Quantize

WIDTH, WORDS = 128, 300


class Tower(nn.Module):
    """An embedding and four linear layers in a row, two of them neither first nor last."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        return (hidden * attention_mask.unsqueeze(-1)).mean(1)


class Fan(nn.Module):
    """A layer or table for each form, side by side: one file tells of all of them."""

    def __init__(self, num_layers: int, num_tables: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers))
        self.tables = nn.ModuleList(nn.Embedding(WIDTH, WIDTH) for _ in range(num_tables))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.stack([*(layer(x) for layer in self.layers), *(table(ids) for table in self.tables)])


def tower() -> Model:
    torch.manual_seed(0)
    dims = {0: "batch", 1: "tokens"}
    example = (torch.randint(50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    origin = Origin("module", "tower", task="text-classification", dynamic=(dims, dims))
    return Model(Tower().eval(), example, origin, ("input_ids", "attention_mask"), ("logits",))


def texts() -> Data:
    return replace(sentences(), task="text-classification", metric="agreement")


def realize(model: Model, data: Data, plan: Plan | None = None, **knobs: object) -> Compressed:
    prepared = Quantize(**knobs).prepare(model, trace(model), data=data, run=Run())  # type: ignore[arg-type]
    return prepared.realize(prepared.proposals()[0] if plan is None else plan)


def difference(compressed: Compressed, path: Path, inputs: tuple[Tensor, ...]) -> float:
    """Of the file's output from torch's, over the norm of torch's."""
    exporter = OnnxExporter()
    exporter.write(compressed, path)
    wanted = compressed.graph(*inputs)
    return float(((exporter.open(path, Target())(*inputs) - wanted).norm() / wanted.norm()).detach())


FORMS: dict[str, Spec] = {
    **{f"{bits} bits": Quant(bits, None, group=32) for bits in range(1, 9)},
    **{f"{bits} bits with zero points": Quant(bits, None, group=32, symmetric=False) for bits in (2, 3, 4, 8)},
    **{f"groups of {group}": Quant(4, None, group=group) for group in (8, 16, 64, 128)},
    **{format: Float(format, None if format in ("fp16", "bf16") else 32) for format in FLOAT_FORMATS},
    **{f"mx {format}": Float(format, 32, "mx") for format in ("e2m1", "e4m3", "int8")},
    "codebook": Codebook(4),
    "codebook of 3 bits": Codebook(3),
    "codebook a row": Codebook(2, rows=1),
    "codebook a tile": Codebook(3, rows=16, columns=32),
}
LINEAR, TABLES = list(FORMS.values()), list(FORMS.values())[:: len(FORMS) // 8]
# ONNX Runtime rounds the input of a 4-bit product to 8 bits a group, in steps of 1/127 of the group's largest value, which is
# some 2.5 to 3 times its root mean square: uniform noise of that step is 0.6 to 0.7 % of it
IN_EIGHT_BITS, IN_FLOAT = 0.01, 1e-6


def is_computed(form: Spec) -> bool:
    return type(form) is Quant and (form.weights or 8) <= 4 and form.group != 8


@dataclass(frozen=True)
class Written:
    """wanted, made: outputs of torch and of the file, one for each site. sizes: of the file's constants, in bytes, by name."""

    compressed: Compressed
    export: Export
    wanted: Tensor
    made: Tensor
    sizes: dict[str, int]


@pytest.fixture(scope="module")
def fan(tmp_path_factory: pytest.TempPathFactory) -> Written:
    torch.manual_seed(0)
    inputs = (torch.randn(8, 3, WIDTH), torch.randint(WIDTH, (8, 3)))
    dims = {0: "batch"}
    module = Fan(len(LINEAR), len(TABLES)).eval()
    model = Model(module, inputs, Origin("module", "fan", dynamic=(dims, dims)), ("x", "ids"))
    sites = [*(f"layers.{place}" for place in range(len(LINEAR))), *(f"tables.{place}" for place in range(len(TABLES)))]
    plan = Plan(dict(zip(sites, [*LINEAR, *TABLES], strict=True)))
    compressed = realize(model, texts(), plan, group=32, rounding="nearest")
    path = tmp_path_factory.mktemp("fan") / "file.onnx"
    export = OnnxExporter().write(compressed, path)
    constants = onnx.load(path).graph.initializer
    made = OnnxExporter().open(path, Target())(*inputs)
    assert type(made) is Tensor
    return Written(
        compressed, export, compressed.graph(*inputs).detach(), made, {one.name: len(one.raw_data) for one in constants}
    )


@pytest.mark.parametrize(
    "place", range(len(LINEAR) + len(TABLES)), ids=[*FORMS, *(f"table {name}" for name in list(FORMS)[:: len(FORMS) // 8])]
)
def test_file_and_torch_compute_the_same(place: int, fan: Written) -> None:
    form = [*LINEAR, *TABLES][place]
    noise = (fan.made[place] - fan.wanted[place]).norm() / fan.wanted[place].norm()
    is_rounded = place < len(LINEAR) and is_computed(form)
    assert float(noise) < (IN_EIGHT_BITS if is_rounded else IN_FLOAT)
    assert (float(noise) > IN_FLOAT) is is_rounded


def test_the_file_holds_what_the_report_counts(fan: Written) -> None:
    counted = sum(facts["stored_bytes"] for facts in fan.compressed.sites.values())
    biases, num_sites = 4 * WIDTH * len(LINEAR), len(LINEAR) + len(TABLES)
    # besides: up to two shapes of four numbers, and the base of a power
    assert 0 <= sum(fan.sizes.values()) - counted - biases < 68 * num_sites


def test_the_export_says_which_weights_the_runtime_computes_with(fan: Written) -> None:
    layers = {f"layers.{place}.weight" for place, form in enumerate(LINEAR) if is_computed(form)}
    is_found = [type(form) is Quant and form.group != 8 for form in TABLES]
    assert fan.export.computed == layers | {f"tables.{place}.weight" for place, found in enumerate(is_found) if found}


@pytest.mark.parametrize("name", FORMS)
def test_the_reported_noise_is_the_weight_s(name: str) -> None:
    torch.manual_seed(0)
    w_OK = torch.randn(WIDTH, WIDTH)
    found = stored.fit(w_OK, FORMS[name])
    noise = (found.value_OK - w_OK).square().sum() / w_OK.square().sum()
    assert found.facts(w_OK)["weight_sqnr_db"] == pytest.approx(float(-10 * torch.log10(noise)), abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (Quant(4, None, group=32), 4 + 16 / 32),
        (Quant(4, None, group=64, symmetric=False), 4 + 16 / 64 + 4 / 64),
        (Quant(3, None, group=64), 4 + 16 / 64),  # ONNX has no 3 bits
        (Quant(2, None, group=64), 2 + 16 / 64),
        (Quant(1, None, group=64), 2 + 16 / 64),
        (Quant(8, None, group=128), 8 + 16 / 128),
        (Float("fp16"), 16),
        (Float("bf16"), 16),
        (Float("nf4", 64), 4 + 16 / 64 + 16 * 32 / WIDTH**2),  # the table is in float32
        (Float("e2m1", 32, "mx"), 4 + 8 / 32 + 16 * 16 / WIDTH**2),  # and here in float16; a scale is a byte
        (Codebook(4), 4 + 16 * 16 / WIDTH**2),
        (Codebook(2, rows=1), 2 + 4 * 16 / WIDTH),
    ],
    ids=str,
)
def test_bits_per_weight_count_scales_zero_points_and_tables(spec: Spec, bits: float) -> None:
    torch.manual_seed(0)
    w_OK = torch.randn(WIDTH, WIDTH)
    assert stored.fit(w_OK, spec).facts(w_OK)["bits_per_weight"] == pytest.approx(bits)


def test_whole_rows_of_four_bits_are_computed_with_too(tmp_path: Path) -> None:
    compressed = realize(tower(), texts(), weights=4, activations="float")
    export = OnnxExporter().write(compressed, tmp_path / "file.onnx")
    assert {"layers.1.weight", "layers.2.weight"} == export.computed
    assert difference(compressed, tmp_path / "file.onnx", texts().test.inputs) < IN_EIGHT_BITS  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "forms"),
    [
        (residual(), {"stem": Codebook(4), "depthwise": Quant(3, None, symmetric=False), "project": Quant(4, None, group=4)}),
        (recurrent(), {"up": Quant(4, None, group=4), "lstm": Float("nf4", 4), "head": Float("fp16")}),
    ],
)
def test_convolutions_and_recurrent_cells_are_stored(model: Model, forms: dict[str, Spec], tmp_path: Path) -> None:
    compressed = realize(model, images(), Plan(forms), weights=8, group=4)
    assert difference(compressed, tmp_path / "file.onnx", model.example) < IN_FLOAT


@pytest.mark.parametrize(("rounding", "symmetric"), [("gptq", True), ("adaround", False), ("anneal", False)])
def test_a_solver_leaves_less_noise_than_rounding_to_nearest(rounding: str, symmetric: bool) -> None:
    model = tower()
    x = texts().test.inputs  # type: ignore[attr-defined]

    def noise(rounding: str) -> float:
        compressed = realize(model, texts(), weights=3, group=32, symmetric=symmetric, rounding=rounding)
        plan = compressed.plan.replace(dict.fromkeys(("table", "layers.0", "layers.3"), Keep()))
        alone = realize(model, texts(), plan, weights=3, group=32, symmetric=symmetric, rounding=rounding)
        return float((alone.graph(*x) - model.module(*x)).square().mean().detach())

    assert noise(rounding) < 0.9 * noise("nearest")


def test_hqq_asks_for_no_data_and_lowers_the_error_that_counts_outliers_less() -> None:
    torch.manual_seed(0)
    w_OK = torch.distributions.StudentT(3).sample((64, 128))
    spec = Quant(3, None, group=64, symmetric=False)
    data_free, rounded = (stored.fit(w_OK, spec, ranges="minmax", without_data=flag) for flag in (True, False))
    assert (data_free.value_OK - w_OK).abs().pow(0.7).sum() < 0.9 * (rounded.value_OK - w_OK).abs().pow(0.7).sum()
    prepared = Quantize(weights=3, group=32, rounding="hqq").prepare(tower(), trace(tower()), data=None, run=Run())  # type: ignore[arg-type]
    assert prepared.proposals()[0]["layers.1"] == Quant(3, None, group=32, symmetric=False)


def test_rows_shorter_than_a_group_are_a_group_of_their_own() -> None:
    prepared = Quantize(weights=4, group=16).prepare(residual(), trace(residual()), data=images(), run=Run())
    plan = prepared.proposals()[0]
    assert plan["depthwise"] == Quant(4, None)  # 9 columns
    assert plan["project"] == Quant(4, None)  # 16
    assert plan["stem"] == plan["head"] == Quant(8, None)  # the first and the last


def test_sixteen_bits_spare_the_edges_nothing() -> None:
    plan = Quantize(format="bf16").prepare(residual(), trace(residual()), data=images(), run=Run()).proposals()[0]
    assert set(plan.values()) == {Float("bf16")}


def test_columns_that_do_not_split_are_refused_by_name() -> None:
    with pytest.raises(UnfitError, match=r"table: 128 columns do not split into groups of 48") as caught:
        realize(tower(), texts(), weights=4, group=48)
    assert "Groups of 16 fit" in str(caught.value)
    with pytest.raises(UnfitError, match="table: 300 x 128 weights do not split into parts of 7 x 128"):
        realize(tower(), texts(), Plan({"table": Codebook(4, rows=7)}), weights=8, group=32)


def test_activations_in_a_plan_for_weights_alone_are_refused() -> None:
    with pytest.raises(UnfitError, match=r"layers\.1: Quant.* has activations to calibrate"):
        realize(tower(), texts(), Plan({"layers.1": Quant(8, 8)}), weights=4, group=32)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"group": 32, "activations": 8}, "for weights alone"),
        ({"format": "nf4", "activations": "dynamic"}, "for weights alone"),
        ({"format": "nf4", "weights": 4}, "exclude each other"),
        ({"format": "nf4", "codebook": 4}, "exclude each other"),
        ({"format": "nf5"}, "format must be one of"),
        ({"format": "nf4", "symmetric": False}, "symmetric is of integers"),
        ({"format": "nf4", "rounding": "gptq"}, "is of integers"),
        ({"format": "fp16", "group": 32}, "has no scale"),
        ({"format": "mx-e2m1", "group": 64}, "blocks of mx-e2m1 have 32"),
        ({"codebook": 9}, "bits must be a whole number from 1 to 8"),
        ({"codebook": 4, "group": 32}, "no groups"),
        ({"group": 0}, "group must be a whole number"),
        ({"weights": 4, "rounding": "hqq", "symmetric": True}, "symmetric must not be true"),
        ({"symmetric": "no"}, "symmetric must be one of"),
        ({"group": 32, "mean_bits": 4}, "mean_bits chooses"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Quantize(**knobs)  # type: ignore[arg-type]


def test_a_plan_mixes_weights_alone_with_integers_in_computation(tmp_path: Path) -> None:
    plan = Plan({"layers.0": Quant(8, 8, dynamic=True), "layers.1": Quant(4, None, group=32), "layers.2": Codebook(4)})
    compressed = realize(tower(), texts(), plan, activations="dynamic", smoothing=0)
    export = OnnxExporter().write(compressed, tmp_path / "file.onnx")
    counts = OnnxExporter().operators(tmp_path / "file.onnx")
    assert export.computed == {"layers.1.weight"}
    assert (counts["MatMul:int4"], counts["MatMul:int8"]) == (1, 1)


def test_a_run_reports_bits_and_who_computes_with_them() -> None:
    recipe = lighten.Recipe.from_yaml("steps:\n- quantize: {weights: 4, group: 32, activations: float, rounding: gptq}")
    result = lighten.compress(tower(), texts(), recipe=recipe)
    layers = {layer["site"]: layer for layer in result.report["layers"]}
    assert layers["layers.1"]["spec"] == "4-bit weights in groups of 32"
    assert (layers["layers.1"]["bits_per_weight"], layers["layers.1"]["runs"]) == (4.5, "computed")
    assert (layers["layers.0"]["spec"], layers["layers.0"]["runs"]) == ("int8 weights", "stored")
    # the bias stays in float32
    assert layers["layers.1"]["weight_bytes_after"] == WIDTH**2 * 4.5 / 8 + 4 * WIDTH
    assert result.report["compressed"]["size_bytes"] < 0.25 * result.report["baseline"]["size_bytes"]
