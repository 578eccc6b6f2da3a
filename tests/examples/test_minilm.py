"""The sentence encoder ranks words as people do, and int8 keeps what its embeddings hold."""

import pytest
import torch

import lighten
from examples import minilm
from lighten.evaluate.collect import collect
from lighten.evaluate.metrics import score
from lighten.evaluate.predictions import Pass

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> lighten.Model:
    try:
        return minilm.build()
    except lighten.InputError as error:
        pytest.skip(str(error))


def given(make) -> lighten.Data:
    try:
        return make()
    except lighten.InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_original_has_its_known_rank_correlation(model) -> None:
    data = given(minilm.similarity)
    assert (len(data.test), len(data.calibration)) == (353, 128)
    found = collect(model.module, data.test, how=Pass(data.task), what="scoring")
    assert score("spearman", found.values, found.targets) == pytest.approx(0.729, abs=0.001)


@pytest.mark.slow
def test_calibration_texts_are_long(model) -> None:
    batch = next(iter(given(minilm.similarity).calibration.batches(8)))
    tokens, mask = batch.inputs
    assert tokens.shape == mask.shape == (16, minilm.LONGEST)
    assert mask.sum(1).min() > 40


@pytest.mark.slow
def test_reviews_are_balanced_and_no_text_is_in_both_splits(model) -> None:
    data = given(minilm.sentiment)
    assert (len(data.test), len(data.calibration)) == (1500, 1500)
    assert data.test.targets.float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(data.test.targets.unique(), torch.tensor([0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [minilm.similarity, minilm.sentiment])
def test_int8_keeps_the_score(make, model, tmp_path) -> None:
    budget, target = lighten.Budget(max_drop=0.01), lighten.Target(threads=1)
    result = lighten.compress(model, given(make), budget=budget, target=target)
    result.save(tmp_path / "out")
    assert result.verdict == "met"
    assert result.report["drop"] <= 0.01
    assert result.report["compressed"]["size_bytes"] < 0.3 * result.report["baseline"]["size_bytes"]
