"""The report as data: what `report.json` holds, and what the page, the table and other programs read.

Every key may be missing or null; docs/report.md describes each in words. Fractions are in [0, 1] unless said otherwise,
sizes are bytes, times carry their unit in the name.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast


class Limit(TypedDict, total=False):
    """One side of the contract. limit is missing where none was set; holds is missing where it is undecided."""

    limit: float
    measured: float
    holds: bool


class Contract(TypedDict, total=False):
    """max_drop: a fraction of the metric's scale. size_bytes: of the file. latency_ms: median of one batch."""

    max_drop: Limit
    size_bytes: Limit
    latency_ms: Limit


class Broken(TypedDict, total=False):
    """A limit that does not hold. constraint: a key of Contract."""

    constraint: str
    limit: float
    measured: float
    why: str


class ModelFacts(TypedDict, total=False):
    """source: the path or name given. kind: of core.model.Origin. task: one of core.model.TASKS."""

    source: str
    kind: str
    task: str


class BadRow(TypedDict, total=False):
    """A row of the data that was left out."""

    where: str
    why: str


class DataFacts(TypedDict, total=False):
    """digest: sha256 over the source's content. num_test: examples scored. num_calibration: examples that set activation
    ranges. labels: class names in output order.
    """

    source: str
    digest: str
    num_test: int
    num_calibration: int
    bad_rows: list[BadRow]
    labels: list[str]


class Measurement(TypedDict, total=False):
    """One file, measured in its runtime. score: in the metric's unit. latency_count: samples. macs: of one example."""

    score: float
    size_bytes: int
    latency_ms_p50: float
    latency_ms_p95: float
    latency_count: int
    params: int
    macs: int
    peak_memory_bytes: int


class Decision(TypedDict, total=False):
    """Whether the evaluation set decides the tolerance. needed_examples: about how many would."""

    answer: Literal["holds", "broken", "undecided"]
    needed_examples: int
    sentence: str


class ClassFlips(TypedDict, total=False):
    """Examples of one class whose prediction changed, among num_examples of the class."""

    num_examples: int
    right_to_wrong: int
    wrong_to_right: int
    changed: int


class FlipExample(TypedDict, total=False):
    """One example whose prediction changed. target, before, after: class names, or numbers for tasks without classes."""

    index: int
    title: str
    text: str
    image_png_base64: str
    target: str | float
    before: str | float
    after: str | float
    confidence_before: float
    confidence_after: float


class Flips(TypedDict, total=False):
    """count: changed predictions in all. examples: the worst of them."""

    count: int
    per_class: dict[str, ClassFlips]
    examples: list[FlipExample]


class Parity(TypedDict, total=False):
    """The exported file against the torch graph, in the output's unit. sqnr_db: signal to quantization noise."""

    max_abs: float
    mean_abs: float
    sqnr_db: float


class Layer(TypedDict, total=False):
    """One site. spec: "int8", "int8 weights", "int8 dynamic" or "float". keep_cost_bytes: what keeping it in float adds.
    wider_cost_bytes: what codes of twice the bits would add, where they have fewer than 8. weight_sqnr_db: of the weight as
    rounded to the nearest codes. noise_alone, kl_alone, loss_rise_alone: of the network with this site alone quantized, on
    calibration examples, where the search asked. bits_per_weight: scales, zero points and tables counted. runs: "computed"
    where the runtime computes with the few bits, "stored" where it makes int8 or floats of them at load; of weights alone.
    """

    site: str
    kind: str
    spec: str
    params: int
    macs: int
    weight_bytes_before: int
    weight_bytes_after: int
    error_sqnr_db: float
    keep_cost_bytes: int
    wider_cost_bytes: int
    weight_sqnr_db: float
    noise_alone: float
    kl_alone: float
    loss_rise_alone: float
    bits_per_weight: float
    runs: str
    why: str


class Width(TypedDict, total=False):
    """Channels of one group, before the first and after the last step that cut any."""

    group: str
    before: int
    after: int


class Zeros(TypedDict, total=False):
    """One sparse tensor: how many of its weights are zero, in the network as exported. pattern: as in the recipe."""

    tensor: str
    pattern: str
    weights: int
    zeros: int


class Runtime(TypedDict, total=False):
    """One runtime that was asked for. version: of its package. files: bytes by name. plan: in a few words. original: the
    float32 file in the same runtime. why: the reason there is no file.
    """

    runtime: str
    version: str
    files: dict[str, int]
    plan: str
    size_bytes: int
    latency_ms_p50: float
    latency_ms_p95: float
    score: float
    drop: float
    parity: Parity
    operators: dict[str, int]
    peak_memory_bytes: int
    original: Measurement
    recommended: bool
    why: str


class Candidate(TypedDict, total=False):
    """A network that was tried. why: the reason it was chosen or not."""

    name: str
    score: float
    drop: float
    size_bytes: int
    latency_ms_p50: float
    chosen: bool
    why: str


class Report(TypedDict, total=False):
    """One run. file: the exported file's name. baseline_runtime: where the original's time was the shortest. steps: the
    ledger's entries, each with `what`, `seconds` since the run began, and further facts. plan: what each site became, as
    core.plan.Plan.to_dict gives it.
    """

    verdict: Literal["met", "infeasible"]
    interrupted: bool
    contract: Contract
    broken: list[Broken]
    model: ModelFacts
    data: DataFacts
    metric: str
    baseline: Measurement
    compressed: Measurement
    drop: float
    drop_interval: list[float]
    drop_method: str
    mean_kl: float
    num_examples: int
    decision: Decision
    flips: Flips
    runtime: str
    file: str
    baseline_runtime: str
    runtimes: list[Runtime]
    threads: int
    batch: int
    input_shapes: list[list[int]]
    seed: int
    device: str
    operators: dict[str, int]
    parity_max_abs: float
    parity: Parity
    speedup: float
    speedup_interval: list[float]
    latency_noise_ratio: float
    faster: bool
    notes: list[str]
    layers: list[Layer]
    widths: list[Width]
    zeros: list[Zeros]
    candidates: list[Candidate]
    plan: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]


def known(report: Mapping[str, Any]) -> Report:
    """A copy without nulls and non-finite numbers, at any depth: what is left was measured. The given report is not changed."""
    return cast(Report, _known(report))


def interval(bounds: list[float] | None) -> tuple[float, float] | None:
    """(low, high) where both ends are known, else None."""
    return (bounds[0], bounds[1]) if bounds is not None and len(bounds) == 2 else None


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _known(entry) for key, entry in value.items() if _is_known(entry)}
    if isinstance(value, (list, tuple)):
        return [_known(entry) for entry in value if _is_known(entry)]
    return value


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
