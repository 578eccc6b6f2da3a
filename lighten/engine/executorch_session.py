"""A .pte file in ExecuTorch's runtime on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import Tensor

from lighten.core.errors import InputError
from lighten.engine.one_by_one import one_by_one
from lighten.engine.quiet import mute

_open: "WeakSet[ExecutorchSession]" = WeakSet()


class ExecutorchSession:
    """A loaded file; callable with torch tensors in input order. Batches are run example by example."""

    def __init__(self, path: Path, threads: int) -> None:
        self._library = executorch_runtime()
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
        _set_threads(self._library, threads)
        try:
            with mute():
                self._program = self._library._load_program(str(path))  # the runtime's only Python interface
                self._method = self._program.load_method("forward")
        except Exception as error:  # the runtime raises what pybind makes of its error codes
            raise InputError(f"ExecuTorch cannot load {path}: {_line(error)}") from error
        facts = self._method.method_meta()
        shapes = [facts.input_tensor_meta(place).sizes() for place in range(facts.num_inputs())]
        self._first = [shape[0] if shape else None for shape in shapes]
        _open.add(self)

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs a batch; a tensor for one output, else a tuple."""
        if len(inputs) != len(self._first):
            raise InputError(f"The file takes {len(self._first)} inputs. Got {len(inputs)}.")
        return one_by_one(self._run, inputs, self._first)

    def _run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            return self._method([value.contiguous() for value in inputs])  # type: ignore[no-any-return]
        except Exception as error:  # as above
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise InputError(f"ExecuTorch refused inputs of shape {shapes}: {_line(error)}") from error


def _set_threads(library: Any, threads: int) -> None:
    """A process has one pool of threads. A loaded program keeps a pointer to it, so it must not be replaced beneath one."""
    with mute():
        current = library._threadpool_get_thread_count()
    if current == threads:
        return
    if len(_open):
        raise InputError(
            f"ExecuTorch has {current} threads for all programs of a process. Got {threads}.",
            hint="Let go of the programs that are loaded, or use another process.",
        )
    with mute():
        library._unsafe_reset_threadpool(threads)


def executorch_runtime() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        with mute():
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise InputError("ExecuTorch is not installed.", hint='pip install "lighten[executorch]"') from error
    return portable_lib


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
