"""Peak activation memory: which intermediate tensors are alive at the same time, in the graph's order.

An estimate of what a runtime needs that frees each tensor after its last use. Runtimes fuse operators and reuse buffers in
place, so they may need less; convolution workspaces are not in it, so they may need more.
"""

from collections.abc import Iterator, Set
from typing import Any

from torch import Tensor, fx

from lighten.analyze.shapes import Values


def peak_bytes(values: Values, stored: Set[fx.Node]) -> int:
    """Most bytes alive at once, inputs and outputs included. stored: nodes that hold weights, or only depend on such.

    A view and an in-place operator share the storage they act on, and take nothing of their own.
    """
    order = {node: step for step, node in enumerate(values)}
    size_bytes: dict[int, int] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    weights = {key for node in stored & values.keys() for key, _ in _storages(values[node])}
    for node, value in values.items():
        final_use = max((order[user] for user in node.users if user in order), default=order[node])
        for key, num_bytes in _storages(value):
            if key not in weights:
                size_bytes[key] = num_bytes
                first.setdefault(key, order[node])
                last[key] = max(last.get(key, 0), final_use)
    return _highest(size_bytes, first, last)


def _highest(size_bytes: dict[int, int], first: dict[int, int], last: dict[int, int]) -> int:
    """The largest sum of sizes over all steps, each size counted from its first to its last step."""
    changes: dict[int, int] = {}
    for key, num_bytes in size_bytes.items():
        changes[first[key]] = changes.get(first[key], 0) + num_bytes
        changes[last[key] + 1] = changes.get(last[key] + 1, 0) - num_bytes
    alive, peak = 0, 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every tensor in a value."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage._cdata, storage.nbytes()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _storages(item)
