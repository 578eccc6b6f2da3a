"""What is compressed: a module, an example of its inputs, and where both came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

TASKS = (
    "image-classification",
    "audio-classification",
    "speech-recognition",
    "text-classification",
    "sentence-similarity",
    "language-model",
    "classification",
    "regression",
)


@dataclass(frozen=True)
class Origin:
    """Where a model came from, and what its outputs mean.

    kind: "module", "callable", "huggingface", "onnx", "exported" or "saved".
    source: the path or name given by the user.
    task: one of TASKS, or None when the reader cannot know; then the data decides.
    folder: the folder that holds the preprocessing files named in `files`, or None.
    files: names, relative to `folder`, of tokenizer, image-processor or feature-extractor files that must travel with the
    model.
    labels: class names in output order; empty when unknown.
    dynamic: for each input, the dimensions whose size may vary, mapped to their names, e.g. ({0: "batch", 1: "tokens"},).
    """

    kind: str
    source: str
    task: str | None = None
    folder: Path | None = None
    files: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    dynamic: tuple[dict[int, str], ...] = ()


@dataclass(frozen=True)
class Model:
    """module: in eval mode, takes tensors positionally, returns a tensor or a tuple whose first entry is scored.

    example: one batch of valid inputs, batch size at least 2 where dimension 0 is dynamic.
    input_names, output_names: the names in the exported file.
    sparse: parameters that were made sparse, by name, and their pattern ("unstructured", "2:4", "4x1", ...). The zeros in the
    tensor are the mask: every later step keeps them (engine.zeros).
    shared: parameters whose weights share few values, by name, and the bits of a code. Equal weights are what shares a value:
    later trainings move them as one (engine.sharing).
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    origin: Origin
    input_names: tuple[str, ...] = field(default=("input",))
    output_names: tuple[str, ...] = field(default=("output",))
    sparse: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
