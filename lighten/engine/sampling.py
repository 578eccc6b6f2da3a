"""Text that a language model writes itself: tokens drawn one after the other from what it expects next.

For when no text may leave its owner. The first token is any, the next few are the likeliest, the others are drawn as the model
expects them, so that texts differ and yet are what it takes for text (Liu et al. 2023, arXiv:2305.17888).

Dimension key: B texts, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError, UnfitError
from lighten.core.run import Run

_BATCH = 16
_LIKELIEST = 4  # tokens behind the first, 3 to 5 in the paper
_FEWEST_TOKENS = 2  # a traced graph whose number of tokens may vary takes no single one


@torch.no_grad()
def sample_texts(module: nn.Module, count: int, length: int, *, is_padded: bool, run: Run) -> Tensor:
    """`count` texts of `length` tokens, int64, the same for the same run.seed.

    module: (input_ids, attention_mask), both B x T, to logits B x T x V, in evaluation mode. is_padded: it takes `length`
    tokens and no fewer; the rest is then masked. Time: a forward pass a token, without a cache of keys and values.
    Raises InputError for count < 1 or length < 2, UnfitError where the module gives no finite logits of that shape.
    """
    if count < 1 or length < _FEWEST_TOKENS:
        raise InputError(f"A language model writes 1 or more texts of 2 or more tokens. Got {count} of {length}.")
    generator = torch.Generator().manual_seed(run.seed)
    sizes = [min(_BATCH, count - start) for start in range(0, count, _BATCH)]
    texts: list[Tensor] = []
    steps = _written(module, sizes, length, is_padded=is_padded, generator=generator, texts=texts)
    for _ in run.progress.track(steps, what="the language model writes", total=len(sizes) * length):
        pass  # a token is drawn by asking for it
    return torch.cat(texts)


@torch.no_grad()
def continued(module: nn.Module, ids_BT: Tensor, mask_BT: Tensor, *, first: int, temperature: float = 1.0) -> Tensor:
    """The texts with every token from place `first` on drawn anew by the module, at a temperature > 0; masked tokens stay.

    module: as of `sample_texts`, and no token may see those behind it, so that it is always run on all T tokens. first: in
    [1, T). Draws from torch's own generator. Time: T - first forward passes.
    """
    ids_BT = ids_BT.clone()
    for place in range(first, ids_BT.shape[1]):
        result = module(ids_BT, mask_BT)
        logits_BV = (result if isinstance(result, Tensor) else result[0])[:, place - 1].float()
        drawn_B = torch.multinomial((logits_BV / temperature).softmax(-1), 1)[:, 0].to(ids_BT.dtype)
        ids_BT[:, place] = torch.where(mask_BT[:, place].bool(), drawn_B, ids_BT[:, place])
    return ids_BT


def _written(
    module: nn.Module, sizes: Iterable[int], length: int, *, is_padded: bool, generator: torch.Generator, texts: list[Tensor]
) -> Iterator[None]:
    for size in sizes:
        ids_BT = torch.zeros(size, length, dtype=torch.int64)
        num_tokens = _logits(module, ids_BT[:, : length if is_padded else _FEWEST_TOKENS], 1).shape[-1]
        ids_BT[:, 0] = torch.randint(num_tokens, (size,), generator=generator)
        yield
        for place in range(1, length):
            width = length if is_padded else max(place, _FEWEST_TOKENS)
            logits_BV = _logits(module, ids_BT[:, :width], place)
            ids_BT[:, place] = logits_BV.argmax(-1) if place <= _LIKELIEST else _drawn(logits_BV, generator)
            yield
        texts.append(ids_BT)


def _logits(module: nn.Module, ids_BT: Tensor, known: int) -> Tensor:
    """What is expected behind the first `known` tokens, B x V; the others are masked."""
    mask_BT = (torch.arange(ids_BT.shape[1]) < known).to(torch.int64).expand_as(ids_BT).contiguous()
    result = module(ids_BT, mask_BT)
    logits_BTV = result if isinstance(result, Tensor) else result[0]
    if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != ids_BT.shape:
        raise UnfitError(f"A language model's output has shape (texts, tokens, vocabulary). Got {tuple(logits_BTV.shape)}.")
    logits_BV = logits_BTV[:, known - 1].float()
    if not bool(torch.isfinite(logits_BV).all()):
        raise UnfitError("The language model's logits are not finite (NaN or infinity) for a text of its own.")
    return logits_BV


def _drawn(logits_BV: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
