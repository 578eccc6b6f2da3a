"""What a network costs, what it may cost, and where it must run."""

from dataclasses import dataclass, replace

from lighten.core.errors import InputError


@dataclass(frozen=True)
class Cost:
    """params: stored weights and biases, a count. macs: multiply-accumulates of one example. weight_bytes: bytes of the
    parameters as held. peak_activation_bytes: most bytes of intermediate tensors alive at once, one example (estimated).
    """

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int = 0


@dataclass(frozen=True)
class LayerCost:
    """One site's share. kind: the operator, e.g. "conv2d". output_bytes: bytes of what it gives, one example."""

    site: str
    kind: str
    params: int
    macs: int
    weight_bytes: int
    output_bytes: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """The contract; None leaves a limit open.

    size_bytes: of the exported file. latency_ms: median of one batch in the target runtime. max_drop: the metric's loss against
    the original, a fraction of its scale in [0, 1): 0.01 is one point of accuracy in percent.
    """

    size_bytes: int | None = None
    latency_ms: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.size_bytes is not None and self.size_bytes <= 0:
            raise InputError(f"size_bytes must be above 0. Got {self.size_bytes}.")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise InputError(f"latency_ms must be above 0. Got {self.latency_ms}.")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(f"max_drop must be a fraction in [0, 1). Got {self.max_drop}.", hint="1 % is 0.01.")


HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class Target:
    """Where the file must run. runtime: an exporter's catalog key, or several with commas between them: then each writes a
    file, and the best one is recommended. threads: intra-op threads. batch: examples a call. hint:
    what a runtime that asks is told to care for, "latency" (of one call) or "throughput" (of several at once).
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    hint: str = "latency"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"threads must be at least 1. Got {self.threads}.")
        if self.batch < 1:
            raise InputError(f"batch must be at least 1. Got {self.batch}.")
        if self.hint not in HINTS:
            raise InputError(f"hint must be one of {', '.join(HINTS)}. Got {self.hint!r}.")
        if len(set(self.runtimes)) < len(self.runtimes):
            raise InputError(f"The target names a runtime twice: {self.runtime}.")

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Each by itself."""
        return tuple(name.strip() for name in self.runtime.split(","))

    def each(self) -> tuple["Target", ...]:
        """One target a runtime."""
        return tuple(replace(self, runtime=name) for name in self.runtimes)
