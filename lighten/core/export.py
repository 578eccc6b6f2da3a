"""The contract every exporter keeps: write a file, and run that very file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lighten.core.cost import Target
from lighten.core.method import Compressed
from lighten.core.model import Model

STEM = "model"
"""Of the exported files' names, in the folder that a run writes."""


def file_name(path: Path) -> str:
    """What an exported file is called in that folder: the stem, with its own ending."""
    return f"{STEM}{path.suffix}"


@dataclass(frozen=True)
class Export:
    """One exported file. size_bytes: with `others`, the files beside it that belong to it, of the same stem. computed: names of
    the weights that the runtime's operators read in the few bits they are stored in; all other weights of few bits become int8
    or float when the file is loaded.
    """

    path: Path
    size_bytes: int
    sha256: str
    computed: frozenset[str] = frozenset()
    others: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of it, the one to open first."""
        return self.path, *self.others


class Session(Protocol):
    """An exported file loaded in its runtime; callable with the batch's inputs (a core.data.Runner)."""

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs, float32 on the CPU, in the exported order."""


class Exporter(Protocol):
    """name is the catalog key and the value of Target.runtime. suffix: of its files' names, ".onnx". Making one raises
    InputError where the runtime's package is not installed, naming the extra to install.
    """

    name: str
    suffix: str

    def write_float(self, model: Model, path: Path) -> Export:
        """Writes the original network."""

    def write(self, compressed: Compressed, path: Path) -> Export:
        """Writes the compressed network."""

    def open(self, path: Path, target: Target) -> Session:
        """Loads a written file in the real runtime."""

    def weight_widths(self) -> tuple[int, ...]:
        """Bits that a weight's code can take in the file, the widest first; others are stored in the next wider."""

    def exact_weight_bits(self) -> int:
        """Most bits of a weight that the runtime's fastest integer kernels multiply without saturating on this machine. Wider
        weights are written so that they stay exact, on slower kernels.
        """

    def operators(self, path: Path) -> dict[str, int]:
        """Counts of what the runtime really executes after its own optimization, keys such as "Conv:int8" or "MatMul:fp32"."""
