"""Checkpoints written by several ranks: complete or absent, without pickle, read by any number of ranks."""

import json

import jobs_shard
import numpy
import pytest
import torch
from processes import on_ranks

from lighten.core.errors import InputError
from lighten.engine.dcp import ShardedCheckpoints


def test_what_two_ranks_save_while_they_train_on_one_rank_reads_and_trains_on(tmp_path):
    held, _ = on_ranks(jobs_shard.saved, 2, str(tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]  # the older one is gone, nothing is half written
    names = {path.suffix for path in (tmp_path / "checkpoint-1").iterdir()}
    assert names == {".safetensors", ".json"}
    (found,) = on_ranks(jobs_shard.loaded, 1, str(tmp_path), 1)
    assert found.pop("step") == 2
    assert set(found) == set(held)
    for name, value in held.items():
        numpy.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_two_ranks_save_and_four_go_on_as_two_would_have(tmp_path):
    on_ranks(jobs_shard.saved, 2, str(tmp_path), 2)
    expected, *_ = on_ranks(jobs_shard.loaded, 2, str(tmp_path), 2, 2)
    for found in on_ranks(jobs_shard.loaded, 4, str(tmp_path), 4, 2):
        for name, value in expected.items():
            numpy.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_every_rank_is_told(tmp_path):
    for said in on_ranks(jobs_shard.interrupted, 2, str(tmp_path)):
        assert "the disk is full" in said
    assert not list(tmp_path.glob("checkpoint-*"))
    assert ShardedCheckpoints(tmp_path).facts() is None


def test_a_single_process_without_a_group_saves_and_loads(tmp_path):
    checkpoints = ShardedCheckpoints(tmp_path)
    values = {"a": torch.arange(3), "b": torch.tensor(True)}
    checkpoints.save(0, values, {"step": 1})
    checkpoints.wait()
    found = {"a": torch.zeros(3, dtype=torch.int64), "b": torch.tensor(False)}
    checkpoints.load(found)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"]
    assert checkpoints.facts() == {"step": 1}


def test_what_is_missing_damaged_or_of_another_shape_is_an_error(tmp_path):
    checkpoints = ShardedCheckpoints(tmp_path)
    with pytest.raises(InputError, match="There is no checkpoint"):
        checkpoints.load({})
    checkpoints.save(0, {"a": torch.arange(3)}, {"step": 1})
    checkpoints.wait()
    with pytest.raises(InputError, match="Cannot read"):
        checkpoints.load({"b": torch.zeros(3)})
    with pytest.raises(InputError, match="Cannot read"):
        checkpoints.load({"a": torch.zeros(4)})
    for path in (tmp_path / "checkpoint-0").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="Cannot read"):
        checkpoints.load({"a": torch.zeros(3)})
    (tmp_path / "checkpoint-0" / "facts.json").write_text("{")
    with pytest.raises(InputError, match="Cannot read"):
        checkpoints.facts()


def test_facts_are_json_that_anyone_can_read(tmp_path):
    checkpoints = ShardedCheckpoints(tmp_path)
    checkpoints.save(3, {"a": torch.arange(3)}, {"epoch": 2, "losses": [0.5]})
    checkpoints.wait()
    assert json.loads((tmp_path / "checkpoint-3" / "facts.json").read_text()) == {"epoch": 2, "losses": [0.5]}
