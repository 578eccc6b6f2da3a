"""A network run beside another one, as far as its values are asked for: only what both still need is in memory."""

from typing import Any

from torch import Tensor, fx


class Beside(fx.Interpreter):
    """The values of a graph's nodes by name, in the order of the graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._graph = module
        self._by_name = {node.name: node for node in module.graph.nodes}
        self._ahead, self._behind = iter(module.graph.nodes), iter(module.graph.nodes)

    def begin(self, inputs: tuple[Tensor, ...]) -> None:
        """Once, before any value."""
        self.env = {}
        self.args_iter = iter(self._graph.graph.process_inputs(*inputs))

    def value(self, name: str) -> Any:
        """What the node gives; runs the network up to it."""
        wanted = self._by_name[name]
        while wanted not in self.env:
            node = next(self._ahead)
            self.env[node] = self.run_node(node)
        return self.env[wanted]

    def pass_by(self, name: str) -> None:
        """Forgets what only nodes up to this one read."""
        for node in self._behind:
            for read in self.user_to_last_uses.get(node, ()):
                self.env.pop(read, None)
            if node.name == name:
                return
