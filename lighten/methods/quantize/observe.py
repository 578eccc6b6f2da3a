"""One pass over calibration data that records what every tensor of interest holds.

Extremes are taken over all values; the histogram over a random sample of each batch, since clipping decisions need the shape of
the distribution, not each of its millions of values. Peak memory is the sample: SAMPLE values a tensor.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lighten.core.data import Batch
from lighten.core.errors import InputError
from lighten.methods.quantize.bias import channel_means
from lighten.ops.ranges import NUM_BINS, Seen

SAMPLE = 2**17
_DECAY = 0.9
_SEEN, _MEAN = "seen ", "mean "


class Observer(fx.Interpreter):
    """Runs the float graph and records the nodes in `watched`. means_of: nodes by kind whose channel means are kept as well,
    while `keeps_means` is set.
    """

    def __init__(
        self, graph: fx.GraphModule, watched: Iterable[str], *, means_of: Mapping[str, str], num_batches: int, seed: int
    ) -> None:
        super().__init__(graph)
        self._watched, self._means_of = set(watched), means_of
        self.keeps_means = True
        self.means: dict[str, list[Tensor]] = {}
        self._each = max(SAMPLE // max(num_batches, 1), 256)
        self._generator = torch.Generator().manual_seed(seed)
        self._extremes: dict[str, list[tuple[float, float]]] = {}
        self._samples: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node; keeps its extremes and a sample when it is watched."""
        result = super().run_node(n)
        if n.name in self._watched and isinstance(result, Tensor) and result.numel():
            self._record(n.name, result)
        if self.keeps_means and n.name in self._means_of:
            self.means.setdefault(n.name, []).append(channel_means(result, self._means_of[n.name]))
        return result

    def _record(self, name: str, value: Tensor) -> None:
        flat = _flat(value)
        low, high = (float(end) for end in torch.aminmax(flat))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError(f"Calibration met NaN or infinity at {name}.", hint="Look for NaN in the data or overflow there.")
        self._extremes.setdefault(name, []).append((low, high))
        if flat.numel() > self._each:
            flat = flat[torch.randint(flat.numel(), (self._each,), generator=self._generator)]
        self._samples.setdefault(name, []).append(flat.float().clone())

    def seen(self) -> dict[str, Seen]:
        """The record of every watched tensor that was reached."""
        return {name: _summarize(self._extremes[name], torch.cat(self._samples[name])) for name in self._extremes}


@torch.no_grad()
def observe(observer: Observer, batches: Iterable[Batch], *, num_means: int) -> tuple[dict[str, Seen], dict[str, Tensor]]:
    """What the watched nodes hold over `batches`, and the channel means of the others over the first `num_means` batches, which
    must be of one size. One float forward pass over the data.
    """
    for number, batch in enumerate(batches):
        observer.keeps_means = number < num_means
        observer.run(*(fastest_layout(value) for value in batch.inputs))
    return observer.seen(), {name: torch.stack(values).mean(0) for name, values in observer.means.items()}


def to_tensors(seen: Mapping[str, Seen], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The record as a flat dict of tensors, to be kept: four extremes, then the histogram; and the means."""
    ends = {
        name: torch.tensor([one.low, one.high, one.average_low, one.average_high], dtype=torch.float64)
        for name, one in seen.items()
    }
    kept = {f"{_SEEN}{name}": torch.cat([ends[name], one.counts_N]) for name, one in seen.items()}
    return kept | {f"{_MEAN}{name}": value for name, value in means.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Seen], dict[str, Tensor]]:
    """The inverse of `to_tensors`."""
    seen = {name.removeprefix(_SEEN): _seen(value) for name, value in tensors.items() if name.startswith(_SEEN)}
    return seen, {name.removeprefix(_MEAN): value for name, value in tensors.items() if name.startswith(_MEAN)}


def _seen(value: Tensor) -> Seen:
    low, high, average_low, average_high = (float(end) for end in value[:4])
    return Seen(low, high, average_low, average_high, value[4:])


def fastest_layout(value: Tensor) -> Tensor:
    """Images as channels-last: on CPUs the convolution kernels then run without reordering, two to three times faster."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 and value.shape[1] > 1 else value


def _flat(value: Tensor) -> Tensor:
    """All values in one dimension, without a copy where the tensor is dense in either memory layout."""
    is_image = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return value.permute(0, 2, 3, 1).flatten() if is_image else value.flatten()


def _summarize(extremes: list[tuple[float, float]], sample: Tensor) -> Seen:
    low, high = min(pair[0] for pair in extremes), max(pair[1] for pair in extremes)
    average_low, average_high = extremes[0]
    for batch_low, batch_high in extremes[1:]:
        average_low = _DECAY * average_low + (1 - _DECAY) * batch_low
        average_high = _DECAY * average_high + (1 - _DECAY) * batch_high
    width = high - low
    counts_N = torch.histc(sample, NUM_BINS, min=low, max=high) if width > 0 else torch.ones(NUM_BINS)
    return Seen(low, high, average_low, average_high, counts_N.double())
