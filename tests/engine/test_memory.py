"""A resumed run takes up what the first one finished, and nothing else."""

import json

import pytest
import torch

from lighten.core.errors import InputError
from lighten.engine.memory import FolderMemory

MINE = {"model": "a", "seed": 0}


class Counted:
    """A computation that counts how often it was done."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


def test_a_value_is_computed_once_over_two_runs(tmp_path):
    compute = Counted({"drop": 0.25, "names": ["a", None]})
    first = FolderMemory(tmp_path, identity=MINE).remember("key", compute)
    second = FolderMemory(tmp_path, identity=MINE).remember("key", compute)
    assert first == second == compute.value
    assert compute.calls == 1


def test_tensors_come_back_bit_for_bit(tmp_path):
    values = {"a": torch.randn(3, 4).T, "b": torch.arange(5), "c": torch.tensor(1.5, dtype=torch.float64)}
    compute = Counted(values)
    FolderMemory(tmp_path, identity=MINE).remember_tensors("key", compute)
    kept = FolderMemory(tmp_path, identity=MINE).remember_tensors("key", compute)
    assert compute.calls == 1
    assert kept.keys() == values.keys()
    for name, value in values.items():
        assert kept[name].dtype == value.dtype
        assert torch.equal(kept[name], value)


def test_keys_do_not_share_entries_and_neither_do_the_two_kinds(tmp_path):
    memory = FolderMemory(tmp_path, identity=MINE)
    assert memory.remember("a", lambda: 1) == 1
    assert memory.remember("b", lambda: 2) == 2
    assert memory.remember_tensors("a", lambda: {"x": torch.ones(1)})["x"].item() == 1.0
    assert memory.remember("a", lambda: 3) == 1


@pytest.mark.parametrize("other", [{"model": "b", "seed": 0}, {"model": "a", "seed": 1}, {"model": "a"}])
def test_another_identity_forgets_everything(tmp_path, other):
    FolderMemory(tmp_path, identity=MINE).remember("key", lambda: 1)
    assert FolderMemory(tmp_path, identity=other).remember("key", lambda: 2) == 2
    assert FolderMemory(tmp_path, identity=MINE).remember("key", lambda: 3) == 3


def test_the_order_of_the_identity_does_not_matter(tmp_path):
    FolderMemory(tmp_path, identity=MINE).remember("key", lambda: 1)
    assert FolderMemory(tmp_path, identity=dict(reversed(MINE.items()))).remember("key", lambda: 2) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
@pytest.mark.parametrize("kind", ["remember", "remember_tensors"])
def test_a_damaged_entry_is_computed_again_and_repaired(tmp_path, damage, kind):
    memory = FolderMemory(tmp_path, identity=MINE)
    before = set(tmp_path.iterdir())
    compute = Counted([1, 2, 3] if kind == "remember" else {"x": torch.arange(3)})
    getattr(memory, kind)("key", compute)
    (entry,) = set(tmp_path.iterdir()) - before
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1  # the last byte lies in the value, not in its hash
    entry.write_bytes({"flipped": bytes(content), "cut": bytes(content[: len(content) // 2]), "emptied": b""}[damage])
    getattr(memory, kind)("key", compute)
    assert compute.calls == 2
    getattr(memory, kind)("key", compute)
    assert compute.calls == 2


def test_a_computation_that_fails_leaves_no_entry(tmp_path):
    def fail():
        raise KeyboardInterrupt

    memory = FolderMemory(tmp_path, identity=MINE)
    with pytest.raises(KeyboardInterrupt):
        memory.remember("key", fail)
    assert memory.remember("key", lambda: 2) == 2


def test_a_damaged_identity_forgets(tmp_path):
    FolderMemory(tmp_path, identity=MINE).remember("key", lambda: 1)
    (identity,) = (path for path in tmp_path.iterdir() if json.dumps(MINE).encode() in path.read_bytes())
    identity.write_bytes(b"")
    assert FolderMemory(tmp_path, identity=MINE).remember("key", lambda: 2) == 2


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(InputError, match="is in the way"):
        FolderMemory(place, identity=MINE)
