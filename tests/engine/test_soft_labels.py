"""A teacher's answers on disk: what is kept of them, for outputs of every shape, and whose they are."""

import pytest
import torch
from networks import Tensors
from torch import Tensor

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.core.run import Run
from lighten.engine.shuffle import Shuffled
from lighten.engine.soft_labels import FILE, soft_labels


def of(split, say, *, path=None, teacher="t", top=64):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lighten.engine.soft_labels._BATCH", 5)
        return soft_labels(split, say, path=path, teacher=teacher, top=top, run=Run())


def test_few_outputs_come_back_in_half_precision():
    torch.manual_seed(0)
    split, weight = Tensors((torch.randn(12, 4),)), torch.randn(4, 6)
    rows = of(split, lambda batch: batch.inputs[0] @ weight)
    batch = Batch((split.inputs[0][[7, 2]],), None, (7, 2))
    torch.testing.assert_close(rows(batch), batch.inputs[0] @ weight, rtol=2**-10, atol=1e-6)


def test_of_many_classes_the_likely_ones_keep_their_probability_and_the_rest_share_theirs():
    torch.manual_seed(0)
    logits_NC = 3 * torch.randn(12, 500)
    rows = of(Tensors((torch.arange(12)[:, None],)), lambda batch: logits_NC[batch.inputs[0][:, 0]], top=16)
    found_NC = rows(Batch((torch.arange(12)[:, None],), None, tuple(range(12)))).softmax(-1)
    kept_NK, place_NK = logits_NC.softmax(-1).topk(16)
    torch.testing.assert_close(found_NC.gather(1, place_NK), kept_NK, rtol=0.01, atol=1e-5)
    rest_N = 1 - kept_NK.sum(1)
    others_NC = found_NC.scatter(1, place_NK, 0.0)
    torch.testing.assert_close(others_NC.sum(1), rest_N, rtol=0.01, atol=1e-4)
    torch.testing.assert_close(others_NC.amax(1), rest_N / 484, rtol=0.01, atol=1e-6)


def test_texts_of_several_lengths_come_back_wherever_the_batch_pads_them():
    lengths = [3, 5, 2, 4]
    ids = torch.zeros(4, 5, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, length in enumerate(lengths):
        ids[number, :length], mask[number, :length] = torch.arange(1, length + 1) + 10 * number, 1
    table_VC = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).half().float()
    rows = of(Tensors((ids, mask)), lambda batch: table_VC[batch.inputs[0]])
    assert len(rows.kept_NK) == sum(lengths)
    for batch in Shuffled(Tensors((ids, mask)), 2).epoch(seed=3):
        expected = table_VC[batch.inputs[0]] * batch.inputs[1][..., None]
        assert torch.equal(rows(batch), expected)


def test_frames_and_pairs_of_texts_come_back_in_their_shape():
    frames = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0)).half().float()
    split = Tensors((torch.arange(6)[:, None],))
    rows = of(split, lambda batch: frames[list(batch.index)])
    assert torch.equal(rows(Batch((torch.zeros(2, 1),), None, (4, 1))), frames[[4, 1]])

    def of_pairs(batch: Batch) -> Tensor:
        return torch.cat([frames[list(batch.index), 0], frames[list(batch.index), 1]])

    rows = of(split, of_pairs)
    batch = Batch((torch.zeros(4, 1),), None, (4, 1))
    assert torch.equal(rows(batch), of_pairs(batch))


def test_the_file_is_read_by_whom_it_belongs_to_and_the_teacher_is_not_asked(tmp_path):
    split, path = Tensors((torch.randn(8, 4),)), tmp_path / FILE
    first = of(split, lambda batch: batch.inputs[0], path=path)
    again = of(split, lambda batch: pytest.fail("asked"), path=path)
    batch = Batch((split.inputs[0],), None, tuple(range(8)))
    assert torch.equal(first(batch), again(batch))
    for given, knobs, message in (
        (split, {"teacher": "another"}, "another teacher"),
        (split, {"top": 2}, "another top_k"),
        (Tensors((split.inputs[0].flip(0),)), {}, "other examples"),
    ):
        with pytest.raises(InputError, match=f"holds the soft labels of {message}"):
            of(given, lambda batch: batch.inputs[0], path=path, **knobs)


def test_a_callable_is_known_by_what_it_says(tmp_path):
    split, path = Tensors((torch.randn(8, 4),)), tmp_path / FILE
    of(split, lambda batch: batch.inputs[0], path=path, teacher="")
    of(split, lambda batch: 1 * batch.inputs[0], path=path, teacher="")
    with pytest.raises(InputError, match="another teacher"):
        of(split, lambda batch: 2 * batch.inputs[0], path=path, teacher="")


def test_a_damaged_file_is_refused(tmp_path):
    split, path = Tensors((torch.randn(8, 4),)), tmp_path / FILE
    of(split, lambda batch: batch.inputs[0], path=path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="is no file of soft labels"):
        of(split, lambda batch: batch.inputs[0], path=path)


def test_outputs_that_cannot_be_told_apart_are_refused():
    split = Tensors((torch.randn(8, 4),))
    with pytest.raises(InputError, match="Soft labels are kept of outputs of shape"):
        of(split, lambda batch: torch.zeros(len(batch.index), 2, 2, 2))
