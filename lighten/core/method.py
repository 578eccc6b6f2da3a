"""The contract every compression method keeps, and the card that says what it is.

A method works in two steps, because a search asks for many plans and must pay for the data only once: `prepare` goes through
the calibration data, `realize` carries out a plan on what was learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import fx

from lighten.core.data import Data
from lighten.core.graph import Graph
from lighten.core.model import Model
from lighten.core.plan import Plan
from lighten.core.run import Run
from lighten.core.spec import Spec


@dataclass(frozen=True)
class Card:
    """name: the catalog key. title: one line. paper: author, year, identifier. needs_data: True when it calibrates.
    rewrites: True for a Rewrite, whose result is another network; False for a Method, whose result is a file's numbers.
    trains: True when it goes through the one training loop.
    """

    name: str
    title: str
    paper: str
    needs_data: bool
    rewrites: bool = False
    trains: bool = False


@dataclass(frozen=True)
class Compressed:
    """A method's result. graph: the network with integer weights and quantize/dequantize nodes, runs in torch. plan: what
    each site became. sites: per site facts for the report, JSON data. outputs: by graph node, scale and zero point of a uint8
    grid for a float result of integer operands, for runtimes whose kernels give such a result in integers only.
    """

    graph: fx.GraphModule
    plan: Plan
    model: Model
    sites: dict[str, dict[str, float]]
    outputs: Mapping[str, tuple[float, int]] = field(default_factory=dict)


class Prepared(Protocol):
    """A method that knows its data. graph: the float network it works on."""

    @property
    def graph(self) -> Graph: ...

    def proposals(self) -> tuple[Plan, ...]:
        """Complete plans worth trying, the most promising first."""

    def gentler(self, site: str, spec: Spec) -> Spec:
        """The next spec towards float for this site; Keep() at the end."""

    def realize(self, plan: Plan, *, repair: bool = True) -> Compressed:
        """The network with every site as the plan says. repair: False skips what only improves accuracy (for quick estimates).

        Raises UnfitError, before any work, when a site cannot take its spec.
        """


class Method(Protocol):
    """A frozen dataclass whose fields are its knobs. One that trains has `check` too, as a Rewrite has it, and `start`, the
    method that its training begins with; its `prepare` raises core.run.Stopped with what it has when an epoch is done.
    """

    card: ClassVar[Card]

    def prepare(self, model: Model, graph: Graph, *, data: Data, run: Run) -> Prepared:
        """Goes through the calibration data once."""


class Rewrite(Protocol):
    """A step that gives another network, to be exported by the steps behind it: channels cut, weights trained."""

    card: ClassVar[Card]

    def check(self, model: Model, *, data: Data) -> None:
        """Raises InputError or UnfitError where the step would, as far as model and data tell: called for every step of a
        recipe before the first one works.
        """

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The new network; the given one is not changed. pins: names or patterns of sites that must stay as they are."""
