"""Nothing more is done to the numbers: the network, as the steps before left it, is exported in float32."""

from dataclasses import dataclass
from typing import ClassVar

from lighten.core.data import Data
from lighten.core.graph import Graph
from lighten.core.method import Card, Compressed
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Keep, Spec


@dataclass(frozen=True)
class KeepFloat:
    """The last step of a recipe that quantizes nothing."""

    card: ClassVar[Card] = Card(name="keep", title="float32 stays", paper="none", needs_data=False)

    def prepare(self, model: Model, graph: Graph, *, data: Data, run: Run) -> "Prepared":
        """Nothing to learn from the data."""
        return Prepared(model, graph)


@dataclass(frozen=True)
class Prepared:
    """The network itself."""

    model: Model
    graph: Graph

    def proposals(self) -> tuple[Plan, ...]:
        """One: every site as it is."""
        return (Plan(),)

    def gentler(self, site: str, spec: Spec) -> Spec:
        """There is nothing gentler than float."""
        return Keep()

    def realize(self, plan: Plan, *, repair: bool = True) -> Compressed:
        """The traced network."""
        return Compressed(self.graph.module, plan, self.model, {})
