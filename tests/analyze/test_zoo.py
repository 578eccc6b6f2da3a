"""Structured pruning holds on the architectures of transformers what docs/methods/prune-zoo.md states of them."""

import pytest
import torch
from zoo import ENTRIES, KINDS, Entry
from zoo_table import COLUMNS, cells, measure, read_page

from lighten.analyze.trace import export_program

FAST = ("resnet-basic", "regnet-y", "vit", "bert", "llama", "wav2vec2")
STATED = read_page()
entries = pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=entry.name, marks=() if entry.name in FAST else pytest.mark.slow) for entry in ENTRIES]
)
needs_table = pytest.mark.skipif(not STATED, reason="the table is not generated yet: python tests/zoo_table.py")


def test_the_zoo_has_sixty_networks_of_every_kind_and_no_name_twice() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    assert {entry.kind for entry in ENTRIES} == set(KINDS)


@entries
def test_a_network_is_the_same_each_time_and_tells_its_inputs_apart(entry: Entry) -> None:
    first, second = entry.build(), entry.build()
    with torch.no_grad():
        output, again = first.module(*first.example), second.module(*second.example)
    assert torch.equal(output, again)
    # a network whose signal has died out would agree with any cut of itself
    assert float((output[0] - output[1]).abs().max()) > 0.01


@entries
def test_a_network_traces_with_a_dynamic_batch(entry: Entry) -> None:
    model = entry.build()
    graph = export_program(model.module, model.example, model.origin.dynamic).module()
    three = tuple(value[[0, 1, 0]] for value in model.example)
    with torch.no_grad():
        # the same operators on the same numbers: the last bits of float32 at most
        torch.testing.assert_close(graph(*three), model.module(*three), rtol=1e-5, atol=1e-5)


@needs_table
@entries
def test_pruning_does_what_the_table_states(entry: Entry) -> None:
    row = measure(entry)
    found, stated = dict(zip(COLUMNS, cells(row), strict=True)), STATED[entry.name]
    for column in (*COLUMNS[3:6], *COLUMNS[7:9], *COLUMNS[10:]):  # not times, nor differences in the last bits
        assert found[column] == stated[column], column
