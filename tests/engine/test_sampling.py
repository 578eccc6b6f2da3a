"""Texts that a language model writes itself. Dimension key: B texts, T tokens, V vocabulary."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run
from lighten.engine.sampling import sample_texts

V = 7


class NextNumber(nn.Module):
    """Is sure that n + 1 follows n; writes down the widths it was asked for."""

    def __init__(self, certainty: float = 50.0) -> None:
        super().__init__()
        self.certainty, self.widths = certainty, []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.widths.append(input_ids.shape[1])
        visible_BT = input_ids * attention_mask
        return functional.one_hot((visible_BT + 1) % V, V).float() * self.certainty


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_model_that_is_sure_writes_what_it_is_sure_of(is_padded: bool) -> None:
    texts_BT = sample_texts(NextNumber(), 20, 9, is_padded=is_padded, run=Run())
    assert texts_BT.shape == (20, 9)
    assert torch.equal(texts_BT, (texts_BT[:, :1] + torch.arange(9)) % V)
    assert len(texts_BT[:, 0].unique()) > 1


def test_tokens_behind_the_fifth_are_drawn_as_often_as_they_are_expected() -> None:
    certainty = 2.0
    texts_BT = sample_texts(NextNumber(certainty), 48, 64, is_padded=False, run=Run())
    follows_BT = texts_BT[:, 1:] == (texts_BT[:, :-1] + 1) % V
    assert bool(follows_BT[:, :4].all())
    expected = torch.tensor([certainty] + [0.0] * (V - 1)).softmax(0)[0]
    drawn = follows_BT[:, 4:].float()
    # five standard deviations of a mean of that many draws
    assert float(drawn.mean()) == pytest.approx(
        float(expected), abs=5 * float((expected * (1 - expected) / drawn.numel()).sqrt())
    )


def test_the_seed_alone_decides() -> None:
    first, again, other = (sample_texts(NextNumber(1.0), 4, 16, is_padded=False, run=Run(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_of_one_length_is_given_that_length_and_others_two_tokens_or_more() -> None:
    padded, growing = NextNumber(), NextNumber()
    sample_texts(padded, 2, 6, is_padded=True, run=Run())
    sample_texts(growing, 2, 6, is_padded=False, run=Run())
    assert set(padded.widths) == {6}
    assert growing.widths == [2, 2, 2, 3, 4, 5]


def test_what_is_no_language_model_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids.float()

    with pytest.raises(UnfitError, match="texts, tokens, vocabulary"):
        sample_texts(Flat(), 2, 6, is_padded=False, run=Run())
    with pytest.raises(UnfitError, match="not finite"):
        sample_texts(NextNumber(float("nan")), 2, 6, is_padded=False, run=Run())
    with pytest.raises(InputError, match="Got 0 of 6"):
        sample_texts(NextNumber(), 0, 6, is_padded=False, run=Run())
