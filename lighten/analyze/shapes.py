"""What every node of a graph gives, found without computing it: tensors that have a size and a storage but no values."""

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from lighten.core.errors import UnfitError

Values = dict[fx.Node, Any]


def propagate(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> Values:
    """Each node's value on `example` as fake tensors: views share a storage as they would when run, and no memory is taken.

    Raises UnfitError naming the operator whose output size depends on the data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(graph, mode)
    with mode, torch.no_grad():
        recorder.run(*(mode.from_tensor(tensor) for tensor in example))
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph and remembers what each node gave."""

    def __init__(self, graph: fx.GraphModule, mode: FakeTensorMode) -> None:
        # values are kept here, so the interpreter must not drop them; a storage's address then names it for the whole run
        super().__init__(graph, garbage_collect_values=False)
        self.mode = mode
        self.values: Values = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        try:
            self.values[n] = super().run_node(n)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UnfitError(
                f"{n.name}: the size of what {n.target} gives depends on the data, so its cost is unknown."
            ) from error
        return self.values[n]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A stored tensor, without its values."""
        value = self.fetch_attr(str(target))
        return self.mode.from_tensor(value) if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """torch.export's input checks give nothing and are skipped."""
        return None if target == "_guards_fn" else super().call_module(target, args, kwargs)
