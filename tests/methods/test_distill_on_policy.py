"""Texts that the student goes on with, and students from a config: what is learned there, and what is refused.

Dimension key: B windows, T tokens, V vocabulary.
"""

import json

import checkpoints
import pytest
import torch
from networks import Tensors
from torch import Tensor, nn

import lighten
from lighten.core.data import Batch, Data
from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.core.run import Run
from lighten.engine.losses import next_token
from lighten.engine.rewriting import identity_of
from lighten.engine.sampling import continued
from lighten.methods.distill.distill import Distill
from lighten.methods.distill.on_policy import OnPolicy, on_policy_of, reading, writing
from lighten.ops import distill

VOCABULARY, SEEN, LENGTH = 8, 4, 12


class Bigram(nn.Module):
    """The next token follows from the last one alone."""

    def __init__(self, logits_VV: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits_VV, freeze=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids) + 0.0 * attention_mask[..., None]


def language_model(logits_VV: Tensor) -> Model:
    example = torch.ones(2, LENGTH, dtype=torch.int64)
    dynamic = ({0: "batch", 1: "tokens"},) * 2
    origin = Origin("module", "bigram", "language-model", dynamic=dynamic)
    return Model(Bigram(logits_VV).eval(), (example, example.clone()), origin, ("input_ids", "attention_mask"))


def teacher_and_student() -> tuple[Model, Model]:
    """The teacher never leaves the first tokens, but says what follows any. The student knows nothing."""
    generator = torch.Generator().manual_seed(0)
    logits_VV = 2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    logits_VV[:SEEN, SEEN:] = -4
    return language_model(logits_VV), language_model(torch.zeros(VOCABULARY, VOCABULARY))


def texts(count: int = 64) -> Data:
    """Of the first tokens alone: what a student meets when it errs is not in them."""
    ids = torch.randint(SEEN, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    split = Tensors((ids, torch.ones_like(ids)))
    return Data("texts", "language-model", "perplexity", split, split, digest="texts")


def apart(student: Model, teacher: Model) -> Tensor:
    """KL(student, teacher) behind each token, shape V."""
    one_VV, two_VV = (model.module.state_dict()["table.weight"].log_softmax(-1) for model in (student, teacher))
    return (one_VV.exp() * (one_VV - two_VV)).sum(-1)


def taught(**knobs) -> Model:
    teacher, student = teacher_and_student()
    base = {"loss": "reverse_kl", "temperature": 1.0, "alpha": 1.0, "lr": 0.2, "optimizer": "adamw", "weight_decay": 0.0}
    step = Distill(teacher=teacher, epochs=12, batch_size=16, validation=0, **{**base, **knobs})
    step.check(student, data=texts())
    return step.rewrite(student, data=texts(), run=Run(seed=0))


def test_a_student_learns_what_to_do_behind_tokens_that_only_it_writes():
    """Off the teacher's texts the table behind unseen tokens gets no gradient at all, so it stays as it began."""
    teacher, student = teacher_and_student()
    before, off, on = apart(student, teacher), apart(taught(), teacher), apart(taught(on_policy=0.5), teacher)
    torch.testing.assert_close(off[SEEN:], before[SEEN:])
    assert (on[SEEN:] < 0.25 * before[SEEN:]).all()
    assert (on[:SEEN] < 0.25 * before[:SEEN]).all()


def test_tokens_are_drawn_from_the_module_at_the_temperature():
    logits_VV = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
    module, count = Bigram(logits_VV), 20_000
    ids = torch.full((count, 3), 5)
    torch.manual_seed(0)
    found = continued(module, ids, torch.ones_like(ids), first=1, temperature=2.0)
    share_V = found[:, 1].bincount(minlength=VOCABULARY) / count
    # four standard deviations of a share of 20,000 draws
    torch.testing.assert_close(share_V, (logits_VV[5] / 2).softmax(-1), rtol=0, atol=4 * 0.5 / count**0.5)
    assert (found[:, 0] == 5).all()
    torch.manual_seed(0)
    cold = continued(module, ids, torch.ones_like(ids), first=1, temperature=1e-3)
    assert (cold[:, 1] == logits_VV[5].argmax()).all()
    assert (cold[:, 2] == logits_VV[logits_VV[5].argmax()].argmax()).all()


def test_prompts_and_masked_tokens_stay_and_the_share_is_that_of_the_windows():
    ids = torch.arange(LENGTH).expand(400, LENGTH) % SEEN
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    seen = []
    torch.manual_seed(0)
    module = Bigram(torch.full((VOCABULARY, VOCABULARY), -9.0).index_fill(1, torch.tensor([7]), 9.0))
    loss = writing(lambda module, batch: seen.append(batch) or torch.zeros(()), OnPolicy(0.25, 0.5), freeze_norm=False)
    loss(module, Batch((ids, mask), None, tuple(range(400))))
    (written,) = seen
    is_own = written.inputs[0][:, LENGTH // 2] == 7
    assert torch.equal(written.inputs[0][:, : LENGTH // 2], ids[:, : LENGTH // 2])
    assert torch.equal(written.inputs[0][:, -2:], ids[:, -2:])
    assert (written.inputs[0][is_own][:, LENGTH // 2 : -2] == 7).all()
    assert torch.equal((~is_own).nonzero().flatten(), written.real_S)
    # four standard deviations of 400 draws
    assert abs(float(is_own.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert module.training


def test_labels_are_learned_from_real_text_alone():
    module = Bigram(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)))
    ids = torch.randint(SEEN, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    batch, seen = Batch((ids, torch.ones_like(ids)), None, (0, 1, 2, 3)), []
    writing(lambda module, batch: seen.append(batch) or torch.zeros(()), OnPolicy(0.5), freeze_norm=False)(module, batch)
    real_S = seen[0].real_S
    rows = tuple(value[real_S] for value in batch.inputs)
    expected = next_token(module, Batch(rows, None, (0,) * len(real_S))) if len(real_S) else torch.zeros(())
    torch.testing.assert_close(reading(next_token)(module, seen[0]), expected)
    # where all is its own there is nothing to learn
    writing(lambda module, batch: seen.append(batch) or torch.zeros(()), OnPolicy(1.0), freeze_norm=False)(module, batch)
    assert reading(next_token)(module, seen[1]).item() == 0


def test_two_trainings_write_the_same_texts():
    one, two = taught(on_policy=0.5, labels=True, alpha=0.5), taught(on_policy=0.5, labels=True, alpha=0.5)
    assert torch.equal(one.module.state_dict()["table.weight"], two.module.state_dict()["table.weight"])


def test_reverse_divergence_on_its_own_texts_is_what_falls():
    """The objective itself, over what the student writes from the data's beginnings."""
    teacher, student = teacher_and_student()
    ids = texts().train.inputs[0]
    ends = []
    for model in (student, taught(on_policy={"share": 1.0, "prompt": 0.25, "temperature": 1.0})):
        torch.manual_seed(0)
        own = continued(model.module, ids, torch.ones_like(ids), first=3)
        one, two = (other.module(own, torch.ones_like(own)).flatten(0, 1) for other in (model, teacher))
        ends.append(distill.reverse(one, two).item())
    assert ends[1] < 0.25 * ends[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (1.5, "share must be in"),
        (-0.1, "share must be in"),
        (True, "share must be in"),
        ({"share": 0.5, "prompt": 1.0}, "prompt must be in"),
        ({"temperature": 0}, "temperature must be > 0"),
        ({"shares": 0.5}, "Did you mean 'share'"),
        ("half", "share must be in"),
    ],
)
def test_a_share_out_of_range_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        Distill(on_policy=asked)


def test_nothing_is_written_by_default_or_at_share_zero():
    assert on_policy_of(None) is None
    assert on_policy_of(0) is None
    assert on_policy_of(0.3) == OnPolicy(share=0.3)


def test_other_tasks_and_a_cache_are_refused():
    with pytest.raises(InputError, match="on_policy writes others"):
        Distill(on_policy=0.5, cache=True)
    data = Data("points", "classification", "accuracy", texts().test, texts().train)
    with pytest.raises(InputError, match="on_policy is for language models"):
        Distill(on_policy=0.5)._check_data(data, Batch((torch.zeros(1, 2),), torch.zeros(1), (0,)))


def small(folder, **changes):
    """The config of a smaller network of the same kind."""
    settings = json.loads((folder / "config.json").read_text())
    path = folder.parent / "small.json"
    path.write_text(json.dumps({**settings, **changes}))
    return path


@pytest.fixture
def llama(tmp_path):
    return checkpoints.llama(tmp_path / "teacher")


def tokens(model: Model) -> Data:
    ids = torch.randint(1, len(checkpoints.WORDS), (16, 8), generator=torch.Generator().manual_seed(0))
    split = Tensors((ids, torch.ones_like(ids)))
    return Data("tokens", "language-model", "perplexity", split, split, digest="tokens")


def test_a_student_is_built_from_a_config_and_taught(llama):
    model = lighten.load(llama)
    step = Distill(student={"config": str(small(llama, num_hidden_layers=1))}, epochs=1, batch_size=8, validation=0, lr=0.05)
    step.check(model, data=tokens(model))
    student = step.rewrite(model, data=tokens(model), run=Run(seed=0))
    num_teacher, num_student = (sum(value.numel() for value in one.module.parameters()) for one in (model, student))
    assert num_student < num_teacher
    assert student.module(*model.example).shape == model.module(*model.example).shape
    assert student.input_names == model.input_names
    again = step.rewrite(model, data=tokens(model), run=Run(seed=0))
    assert all(torch.equal(one, two) for one, two in zip(student.module.parameters(), again.module.parameters(), strict=True))


def test_a_student_from_a_config_goes_on_with_its_own_texts(llama):
    model = lighten.load(llama)
    path = str(small(llama, num_hidden_layers=1))
    step = Distill(student={"config": path}, on_policy=0.5, loss="reverse_kl", epochs=1, batch_size=8, validation=0)
    assert step.rewrite(model, data=tokens(model), run=Run(seed=0)).module(*model.example).isfinite().all()


def test_a_folder_gives_its_config_and_another_content_is_another_step(llama):
    step = Distill(student={"config": str(llama)})
    before = identity_of(step)
    step.check(lighten.load(llama), data=tokens(lighten.load(llama)))
    config = llama / "config.json"
    config.write_text(config.read_text().replace("}", " }", 1))
    assert identity_of(step) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 77}, "answers with shape"),
        ({"model_type": "no-such-network"}, "no-such-network"),
        ({"num_attention_heads": 5}, "small.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_training(llama, changes, message):
    model = lighten.load(llama)
    with pytest.raises(InputError, match=message):
        Distill(student={"config": str(small(llama, **changes))}).check(model, data=tokens(model))


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"config": "x", "width": 0.5}, "and nothing else"), ({"config": 3}, "config: path")],
)
def test_a_config_beside_sizes_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        Distill(student=asked)


def test_a_config_that_does_not_exist_is_refused(llama):
    model = lighten.load(llama)
    with pytest.raises(InputError, match="gone does not exist"):
        Distill(student={"config": "gone"}).check(model, data=tokens(model))
