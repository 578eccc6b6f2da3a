"""Distillation as a step of a recipe: what the student learns, from whom, and what is refused before any work."""

import copy
from dataclasses import replace

import pytest
import torch
from networks import Tensors, encoder, residual, sentences
from torch import nn

import lighten
from lighten.core.data import Data
from lighten.core.errors import InputError, LightenError
from lighten.core.model import Model, Origin
from lighten.core.recipe import Recipe, Step
from lighten.core.run import Run, Silent, Stopped
from lighten.engine.rewriting import identity_of, rewritten
from lighten.methods.distill.distill import Distill
from lighten.methods.distill.layers import Watching
from lighten.methods.finetune import Finetune
from lighten.methods.prune.prune import Prune
from lighten.methods.training import own_graph


class Layer(nn.Module):
    """A residual branch of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def network(seed: int = 0, *, hidden: int = 16, classes: int = 3) -> Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    with torch.no_grad():
        module[4].weight.mul_(8)  # a network that is sure of something
    return Model(module.eval(), (torch.randn(2, 6),), Origin("module", "network", dynamic=({0: "batch"},)))


def points(count: int = 256, *, labels: bool = True) -> Data:
    """Inputs without structure; labels are the teacher's business."""
    generator = torch.Generator().manual_seed(1)
    x_BI = torch.randn(2 * count, 6, generator=generator)
    target_B = torch.randint(3, (2 * count,), generator=generator)
    parts = [Tensors((x_BI[half],), target_B[half] if labels else None) for half in (slice(count), slice(count, None))]
    return Data("points", "classification", "accuracy" if labels else "agreement", parts[1], parts[0], digest="points")


def images(count: int = 64) -> Data:
    generator = torch.Generator().manual_seed(0)
    split = Tensors((torch.randn(count, 3, 16, 16, generator=generator),), torch.randint(5, (count,), generator=generator))
    return Data("images", "image-classification", "accuracy", split, split, digest="images")


def distance(one: Model, two: Model, data: Data) -> float:
    """Between the distributions over classes."""
    with torch.no_grad():
        first, second = (model.module(*data.test.inputs).softmax(-1) for model in (one, two))
    return float((first - second).abs().sum(-1).mean())


def differing(one: Model, two: Model, data: Data) -> float:
    """The share of examples for which they choose another class."""
    with torch.no_grad():
        first, second = (model.module(*data.test.inputs).argmax(-1) for model in (one, two))
    return float((first != second).float().mean())


def entry(run: Run, what: str = "distill") -> dict:
    return next(found for found in run.ledger.entries if found["what"] == what)


class Hearing(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.parametrize("loss", ["kd", "mse", "dkd", "dist", "reverse_kl", "skew_kl", "jensen_shannon"])
def test_a_student_without_labels_comes_nearer_to_its_teacher(loss):
    teacher, student, data = network(1), network(2, hidden=12), points(labels=False)
    knobs = {"lr": 0.02, "optimizer": "adamw", "temperature": 1.0, "validation": 0}
    step = Distill(epochs=20, batch_size=32, teacher=teacher, loss=loss, **knobs)
    step.check(student, data=data)
    after = step.rewrite(student, data=data, run=Run())
    # what correlates with the teacher's probabilities need not be near them, but prefers the same class
    assert differing(after, teacher, data) < 0.25 * differing(student, teacher, data)
    assert loss == "dist" or distance(after, teacher, data) < 0.25 * distance(student, teacher, data)


def test_original_is_the_network_before_any_step():
    data, model = points(labels=False), network(1)
    run = Run(original=model)
    step = Distill(epochs=8, batch_size=32, optimizer="adamw", lr=0.01, temperature=1.0)
    cut = Prune(params=0.5, round_to=1, repair=False)
    known, _ = rewritten(model, (cut,), data=data, run=run, pins=(), identity={})
    taught, _ = rewritten(model, (cut, step), data=data, run=run, pins=(), identity={})
    assert distance(taught, model, data) < 0.5 * distance(known, model, data)
    assert entry(run)["teacher"] == "original"


def test_pruning_recovers_more_from_the_original_than_from_labels_that_say_little():
    # labels are the teacher's choices for one example in two, chance for the others
    teacher, data = network(1), points(512)
    with torch.no_grad():
        choice_B = teacher.module(*data.train.inputs).argmax(1)
    target_B = torch.where(torch.rand(512, generator=torch.Generator().manual_seed(0)) < 0.5, choice_B, data.train.target)
    data = replace(data, train=Tensors(data.train.inputs, target_B))
    smaller = Prune(params=0.5, round_to=1).rewrite(teacher, data=data, run=Run())
    knobs = {"epochs": 6, "batch_size": 32, "lr": 0.02, "validation": 0}
    tuned = Finetune(**knobs).rewrite(smaller, data=data, run=Run())
    taught = Distill(**knobs, alpha=0.9).rewrite(smaller, data=data, run=Run(original=teacher))
    assert distance(taught, teacher, data) < 0.5 * distance(tuned, teacher, data)


def test_the_given_network_and_the_teacher_are_not_changed():
    teacher, student = network(1), network(2)
    before = [copy.deepcopy(model.module.state_dict()) for model in (teacher, student)]
    Distill(epochs=1, teacher=teacher, features="fitnets").rewrite(student, data=points(), run=Run())
    for model, weights in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())


def test_zeros_of_a_sparse_network_stay():
    student = network(2)
    with torch.no_grad():
        student.module[2].weight[:, ::2] = 0
    student = replace(student, sparse={"2.weight": "unstructured"})
    after = Distill(epochs=2, teacher=network(1), optimizer="adamw", lr=0.01).rewrite(student, data=points(), run=Run())
    weight = after.module.get_parameter("2.weight")
    assert torch.equal(weight == 0, student.module[2].weight == 0)
    assert not torch.equal(weight, student.module[2].weight)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({"width": 0.5, "round_to": 1}, 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3), ({"params": 0.5, "round_to": 1}, None)],
)
def test_a_student_is_made_from_the_network_by_its_scores(asked, expected):
    model = network(1)
    after = Distill(epochs=1, student=asked).rewrite(model, data=points(), run=Run())
    count, whole = (sum(value.numel() for value in one.module.parameters()) for one in (after, model))
    assert count == expected or (expected is None and 0.35 * whole < count <= 0.5 * whole)


def test_a_student_of_half_the_depth_has_half_the_layers():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), *(Layer(8) for _ in range(4)), nn.Linear(8, 3)).eval()
    model = Model(module, (torch.randn(2, 6),), Origin("module", "tower", dynamic=({0: "batch"},)))
    after = Distill(epochs=1, student={"depth": 0.5}).rewrite(model, data=points(), run=Run())
    count, whole = (sum("weight" in name for name, _ in one.module.named_parameters()) for one in (after, model))
    assert (whole, count) == (2 + 4 * 2, 2 + 2 * 2)


def test_several_teachers_teach_their_weighted_mean():
    data, members = points(labels=False), [network(seed) for seed in (1, 2)]
    wanted = [{"teacher": members[0], "weight": 3}, {"teacher": members[1].module, "weight": 1}]
    step = Distill(epochs=30, batch_size=32, optimizer="adamw", lr=0.01, loss="mse", teacher=wanted, validation=0)
    after = step.rewrite(network(3, hidden=32), data=data, run=Run())
    with torch.no_grad():
        said = [model.module(*data.test.inputs) for model in (*members, after)]
    mean = 0.75 * said[0] + 0.25 * said[1]
    assert float((said[2] - mean).square().mean()) < 0.1 * float((said[2] - said[1]).square().mean())


def test_any_callable_and_an_onnx_file_teach_as_their_module_does(tmp_path):
    from lighten.export.onnx import OnnxExporter

    teacher, data = network(1), points()
    path = tmp_path / "teacher.onnx"
    OnnxExporter().write_float(teacher, path)
    found = []
    for wanted in (teacher, teacher.module.forward, str(path)):
        step = Distill(epochs=2, teacher=wanted, lr=0.05)
        step.check(network(2), data=data)
        found.append(step.rewrite(network(2), data=data, run=Run()).module.get_parameter("0.weight"))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-3, atol=1e-4)  # the runtime adds in another order


def test_a_saved_folder_teaches(tmp_path):
    data = points()
    lighten.compress(network(1), data, recipe=Recipe((Step("keep"),))).save(tmp_path)
    found = [
        Distill(epochs=1, teacher=wanted, lr=0.05).rewrite(network(2), data=data, run=Run()).module.get_parameter("0.weight")
        for wanted in (network(1), str(tmp_path))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert identity_of(Distill(teacher=str(tmp_path))) != identity_of(Distill(teacher="original"))


def test_another_file_of_the_same_name_is_another_step(tmp_path):
    path = tmp_path / "teacher.onnx"
    path.write_bytes(b"one")
    first = identity_of(Distill(teacher=str(path)))
    path.write_bytes(b"two")
    assert identity_of(Distill(teacher=str(path))) != first


@pytest.mark.parametrize("features", ["fitnets", "attention_maps", "relations", "angles", "contrast", "hidden"])
def test_features_come_nearer_to_the_teachers(features):
    data, teacher = images(), residual()
    student = None if features == "hidden" else {"width": 0.5, "round_to": 1}
    knobs = {"epochs": 4, "batch_size": 16, "lr": 0.02, "keep": "last", "validation": 0, "alpha": 0.0}
    small = Distill(epochs=0.01, lr=1e-9, student=student, validation=0).rewrite(teacher, data=data, run=Run())
    run = Run(original=teacher)
    step = Distill(**knobs, features=features, beta=100.0)
    learned = step.rewrite(small, data=data, run=run)
    assert [(pair["student"], pair["teacher"]) for pair in entry(run)["pairs"]] == [("add", "add")]
    assert not any("hint" in name for name, _ in learned.module.named_parameters())
    if features in ("relations", "attention_maps"):
        plain = Distill(**knobs).rewrite(small, data=data, run=Run(original=teacher))
        near, far = (_unlike(features, model, teacher, data) for model in (learned, plain))
        assert near < 0.8 * far


def _unlike(features: str, student: Model, teacher: Model, data: Data) -> float:
    from lighten.ops.features import attention_maps, distances

    found = []
    for model in (student, teacher):
        watching = Watching(own_graph(model), ["add"])
        with torch.no_grad():
            watching(*data.train.inputs)
        found.append(watching.found["add"])
    compare = attention_maps if features == "attention_maps" else lambda s, t: distances(s.flatten(1), t.flatten(1))
    return float(compare(*found))


def test_a_text_encoder_keeps_the_relations_of_its_tokens_and_embeddings():
    data, teacher = sentences(), encoder()
    step = Distill(epochs=2, batch_size=8, student={"width": 0.5}, loss="kd", features="relations", match="depth", validation=0)
    data = replace(data, train=data.train or data.test)
    step.check(teacher, data=data)
    run = Run()
    step.rewrite(teacher, data=data, run=run)
    assert entry(run)["pairs"]


def test_an_encoder_that_a_probe_scores_learns_embeddings_not_classes():
    data = sentences()
    data = replace(data, train=data.train or data.test, task="text-classification", metric="probe")
    step = Distill(epochs=1, batch_size=8, validation=0)
    step.check(encoder(), data=data)
    run = Run()
    step.rewrite(encoder(), data=data, run=run)
    assert entry(run).get("scores") is None
    with pytest.raises(InputError, match="'dkd' does not suit sentence-similarity. Try kd, mse, cosine, relations"):
        Distill(loss="dkd").check(encoder(), data=data)


def test_the_report_has_what_teacher_and_student_reach_alone_and_taught():
    run = Run()
    Distill(epochs=2, teacher=network(1), compare=True).rewrite(network(2), data=points(), run=run)
    scores, alone = entry(run)["scores"], entry(run, "trained alone")["scores"]
    assert scores["what"] == "accuracy"
    assert scores["examples"] == 26
    assert scores["teacher"] == alone["teacher"]
    assert all(0 <= value <= 1 for value in (scores["before"], scores["after"], alone["alone"]))


def test_soft_labels_computed_once_teach_as_the_teacher_does(tmp_path):
    data, knobs = points(), {"epochs": 2, "teacher": network(1), "lr": 0.05}
    progress = Hearing()
    live = Distill(**knobs).rewrite(network(2), data=data, run=Run())
    path = tmp_path / "labels.safetensors"
    kept = Distill(**knobs, cache=str(path)).rewrite(network(2), data=data, run=Run(progress=progress))
    again = Distill(**knobs, cache=str(path)).rewrite(network(2), data=data, run=Run())
    # half precision keeps 11 bits of a logit
    torch.testing.assert_close(
        kept.module.get_parameter("0.weight"), live.module.get_parameter("0.weight"), rtol=2e-3, atol=1e-3
    )
    assert torch.equal(again.module.get_parameter("0.weight"), kept.module.get_parameter("0.weight"))
    assert progress.said == [f"Soft labels: 256 rows of 3 logits, about 0.0 MB in {path}."]


def test_soft_labels_of_another_teacher_or_other_examples_are_refused_before_training(tmp_path):
    path, data = str(tmp_path / "labels.safetensors"), points()
    step = Distill(epochs=1, teacher=network(1), cache=path)
    step.rewrite(network(2), data=data, run=Run())
    step.check(network(2), data=data)
    other = replace(data, train=Tensors((data.train.inputs[0] + 1,), data.train.target))
    for one, given, message in (
        (replace(step, teacher=network(3)), data, "another teacher"),
        (step, other, "other examples"),
        (replace(step, top_k=2), data, "another top_k"),
    ):
        with pytest.raises(InputError, match=message):
            one.check(network(2), data=given)
        with pytest.raises(InputError, match=message):
            one.rewrite(network(2), data=given, run=Run())


def test_the_teacher_is_asked_once_for_each_example_where_its_answers_are_kept():
    asked, module = [], network(1).module

    def teacher(x):
        asked.append(len(x))
        return module(x)

    Distill(epochs=3, teacher=teacher, cache=True).rewrite(network(2), data=points(), run=Run())
    assert sum(asked) == 256 + 2 * 32  # the first examples tell the size, and whose answers they are


def test_images_are_changed_for_both_networks_alike():
    seen = []
    model = residual()

    def teacher(x):
        seen.append(x)
        return model.module(x)

    data = images()
    step = Distill(epochs=1, batch_size=16, teacher=teacher, augment=True, validation=0)
    step.rewrite(model, data=data, run=Run())
    known = {tuple(image.flatten()[:8].tolist()) for image in data.train.inputs[0]}
    in_training = [tuple(image.flatten()[:8].tolist()) for x in seen for image in x]
    assert len(set(in_training) - known) > 0.9 * len(in_training)


def test_ctrl_c_gives_the_best_student_so_far():
    class Interrupting(Silent):
        def track(self, items, *, what, total):
            for number, item in enumerate(items):
                if number == 12:
                    raise KeyboardInterrupt
                yield item

    with pytest.raises(Stopped) as caught:
        Distill(epochs=5, teacher=network(1), features="fitnets").rewrite(
            network(2), data=points(), run=Run(progress=Interrupting())
        )
    assert type(caught.value.result) is Model
    assert not [name for name, _ in caught.value.result.module.named_parameters() if "hint" in name]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": 0}, "temperature must be > 0. Got 0."),
        ({"temperature": -1.0}, "temperature must be > 0. Got -1.0."),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\]. Got 1.5."),
        ({"loss": "dks"}, "Unknown distillation loss 'dks'. Did you mean 'dkd'?"),
        ({"features": "fitnet"}, "Unknown features 'fitnet'. Did you mean 'fitnets'?"),
        ({"match": "similar"}, "Unknown match 'similar'. Did you mean 'similarity'?"),
        ({"beta": 0}, "beta must be > 0. Got 0."),
        ({"top_k": 0}, "top_k must be an integer >= 1. Got 0."),
        ({"labels": "yes"}, "labels must be true or false. Got 'yes'."),
        ({"cache": 3}, "cache must be true, false or a path. Got 3."),
        ({"augment": "flip"}, "augment must be true, false or a list of shift, flip, mixup. Got 'flip'."),
        ({"augment": ["flop"]}, "Unknown change of images 'flop'. Did you mean 'flip'?"),
        ({"cache": True, "augment": True}, "cache keeps what the teacher says to the examples as they are"),
        ({"cache": True, "features": "fitnets"}, "features need the teacher in every step"),
        ({"features": "fitnets", "teacher": "t.onnx"}, "features need one teacher whose layers can be seen"),
        ({"teacher": 3}, 'teacher must be "original"'),
        ({"teacher": []}, 'teacher must be "original"'),
        ({"teacher": [{"teacher": "original"}]}, "a teacher with a weight is"),
        ({"teacher": [{"teacher": "original", "weight": 0}]}, "a teacher's weight must be > 0. Got 0."),
        ({"student": {}}, "student must say a size"),
        ({"student": {"width": 1.5}}, r"student's width must be in \(0, 1\]. Got 1.5."),
        ({"student": {"wide": 0.5}}, "Unknown knob of distill's student 'wide'. Did you mean 'width'?"),
        ({"student": {"width": 0.5, "params": 0.5}}, "student takes one of width, params and macs. Got width and params."),
        ({"validation": 0.6}, r"distill: validation must be in \[0, 0.5\]. Got 0.6."),
        ({"lr": -1}, "lr must be > 0. Got -1."),
    ],
)
def test_a_knob_out_of_range_is_refused(knobs, message):
    with pytest.raises(InputError, match=message):
        Distill(**knobs)


@pytest.mark.parametrize(
    ("knobs", "change", "message"),
    [
        ({"teacher": network(1, classes=4)}, {}, r"The student's output has shape \(64, 3\), the teacher's \(64, 4\)."),
        ({"loss": "cosine"}, {}, "'cosine' does not suit classification. Try kd, mse"),
        ({"features": "hidden", "match": {"relu": "relo"}}, {}, "Unknown layer of the teacher 'relo'. Did you mean 'relu'?"),
        ({"features": "hidden", "match": {"rela": "relu"}}, {}, "Unknown layer of the student 'rela'. Did you mean 'relu'?"),
        (
            {"features": "hidden", "match": "depth", "teacher": network(1, hidden=8)},
            {},
            r"gives \(64, 16\), .* of the teacher \(64, 8\)",
        ),
        ({"features": "attention_maps", "match": "name"}, {}, "It compares maps of convolutions"),
        ({"features": "hidden", "teacher": lambda x: torch.zeros(len(x), 3)}, {}, "cannot be seen"),
        ({"features": "attention_maps"}, {}, "can be paired with one of the teacher by similarity"),
        ({"features": "minilm"}, {}, "no layer whose features could be compared"),
        ({"teacher": "gone"}, {}, "gone does not exist"),
        ({"teacher": "gone.onnx"}, {}, "The teacher gone.onnx does not exist"),
        ({"teacher": lambda x, y: x}, {}, "does not take the data's inputs"),
        ({"labels": True}, {"train": Tensors((torch.zeros(20, 6),))}, "labels needs labels"),
        ({"compare": True, "labels": False}, {}, "compare needs labels"),
        ({"augment": True}, {}, "augment is for images, and the task is classification"),
        ({}, {"train": None}, "distill needs a training split"),
        ({"patience": 1, "validation": 0}, {}, "patience needs a validation"),
        ({"student": {"params": 0.001}}, {}, "cannot be reached"),
    ],
)
def test_what_does_not_fit_is_told_before_training(knobs, change, message):
    with pytest.raises(LightenError, match=message):
        Distill(**{"teacher": network(1), **knobs}).check(network(2), data=replace(points(), **change))


def test_the_recipe_runs_from_yaml():
    text = (
        "steps: [{distill: {teacher: original, loss: kd, temperature: 4, alpha: 0.9, epochs: 1, student: {width: 0.5}}}, keep]"
    )
    result = lighten.compress(network(1), points(), recipe=Recipe.from_yaml(text))
    assert "distill" in [found["what"] for found in result.report["steps"]]
    assert result.compressed.graph(torch.zeros(2, 6)).shape == (2, 3)
    assert Recipe.from_yaml(result.recipe.to_yaml()).steps[0].knobs["student"] == {"width": 0.5}


def test_the_teacher_takes_no_part_in_the_batch_order():
    """So that a student with a cache, a live teacher or none sees the same examples in the same order."""
    seen: list[tuple[int, ...]] = []

    def teacher(x):
        seen.append(tuple((x[:, 0] * 1000).int().tolist()))
        torch.rand(3)  # a teacher may draw
        return torch.zeros(len(x), 3)

    for _ in range(2):
        Distill(epochs=1, teacher=teacher, validation=0).rewrite(network(2), data=points(), run=Run())
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
