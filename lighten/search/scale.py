"""Memory and time of a training step on many ranks, on paper: closed forms whose constants are measured or given.

Memory is counted as engine.shard makes it. Time is work over speed, and for what ranks send each other alpha + bytes / beta a
message (Hockney 1994), in rings: an all-reduce of n bytes among d ranks takes 2 (d - 1) messages of n / d bytes, an all-gather
or a reduce-scatter half as many (Thakur et al. 2005, "Optimization of collective communication operations in MPICH", sections
4.1 and 4.4). How much of it is hidden depends on the library: a step has a shortest time, with the transfers of the data axis
behind the computation, and a longest one, with none there.

docs/scale.md has the assumptions in words, the tables, and how far the model is from measured steps.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from lighten.analyze.cost import inspect
from lighten.core.distributed import Distributed
from lighten.core.errors import InputError, UnfitError
from lighten.core.model import Model
from lighten.engine.shard import repeated_blocks

STATE_BYTES = 16
"""A parameter: float32 itself, its gradient and Adam's two moments, as engine.shard keeps them. ZeRO's 16 (Rajbhandari et al.
2020, arXiv:1910.02054, section 3.1) are split otherwise: bfloat16 weight and gradient, float32 weight and moments."""
_HALF, _SINGLE = 2, 4  # bytes of bfloat16 and float32
_ASPECT = 128  # width over depth of decoders from 7B to 405B: 4096 / 32, 8192 / 80, 16384 / 126
_MICROBATCHES = (1, 2, 4, 8, 16)  # examples of a microbatch that `best` tries


@dataclass(frozen=True)
class Network:
    """What a forecast needs to know. Sizes are of one example in bfloat16, counts are whole.

    block_params: in the blocks; ranks of the tensor axis share these. other_params: embedding and head, which they do not.
    macs: of one forward pass. blocks: how many. edge_bytes: what one block hands to the next. inner_bytes: what a block keeps
    for its backward pass; inner_shared_bytes: the part of it that the tensor axis divides. output_values: of the network.
    """

    block_params: int
    other_params: int
    macs: int
    blocks: int
    edge_bytes: int
    inner_bytes: int
    inner_shared_bytes: int = 0
    output_values: int = 0

    @property
    def params(self) -> int:
        """All of them."""
        return self.block_params + self.other_params


@dataclass(frozen=True)
class Link:
    """latency_s: alpha, of a message, seconds. bytes_per_s: beta, of one rank in one direction."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, messages: float, num_bytes: float) -> float:
        """Of so many messages, one after another, of so many bytes together."""
        return messages * self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Fleet:
    """memory_bytes, macs_per_s: of one rank; the speed is what it reaches, not its peak. link: between nodes. near: between
    ranks of a node, of which there are `node`; the tensor axis lies in one. update_params_per_s: of the optimizer, one rank.
    """

    ranks: int
    memory_bytes: int
    macs_per_s: float
    link: Link
    near: Link
    node: int = 8
    update_params_per_s: float = math.inf

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.node < 1:
            raise InputError(f"A fleet has at least 1 rank, and a node too. Got {self.ranks} and {self.node}.")
        if self.memory_bytes <= 0 or self.macs_per_s <= 0:
            raise InputError("Memory and speed of a rank must be above 0.")


@dataclass(frozen=True)
class Step:
    """batch: examples, over all ranks. micro: examples of a microbatch of one replica. recompute: activations inside blocks.
    half: parameters are gathered, and activations kept, in bfloat16; else in float32.
    """

    batch: int
    micro: int = 1
    recompute: bool = True
    half: bool = True


@dataclass(frozen=True)
class Forecast:
    """Of one rank, the fullest and the busiest. Bytes: state (parameters, gradients, optimizer), gathered parameters,
    activations. Seconds: work, waiting for the first and last microbatches of a pipeline, transfers along each axis, update.
    """

    distributed: Distributed
    micro: int
    state_bytes: int
    gathered_bytes: int
    activation_bytes: int
    work_s: float
    waiting_s: float
    data_s: float
    tensor_s: float
    pipeline_s: float
    update_s: float

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.state_bytes + self.gathered_bytes + self.activation_bytes

    @property
    def longest_s(self) -> float:
        """Of a step in which no transfer is hidden."""
        return self.work_s + self.waiting_s + self.data_s + self.tensor_s + self.pipeline_s + self.update_s

    @property
    def shortest_s(self) -> float:
        """Of one in which transfers of the data axis are hidden behind the work where that takes as long."""
        return max(self.work_s, self.data_s) + self.waiting_s + self.tensor_s + self.pipeline_s + self.update_s


def transformer(params: int, *, sequence: int = 4096, vocabulary: int = 128_000) -> Network:
    """A decoder of about so many parameters: blocks of 12 h^2, embedding and head apart, h = 128 x depth, a multiple of 128.

    An example is one sequence. A block keeps 34 bytes a token and channel in bfloat16, of which tensor parallelism divides 24
    (Korthikanti et al. 2022, arXiv:2205.05198, table 2, without the scores of attention, which fused kernels compute again).
    """
    if params < 12 * _ASPECT**2:
        raise InputError(f"A decoder of {params:,} parameters is smaller than one block.", hint="Write 7B or 350M.")
    depth = max(1, round((params / (12 * _ASPECT**2)) ** (1 / 3)))
    width = max(1, round(_width(params, depth, vocabulary) / 128)) * 128
    blocks, other = 12 * depth * width**2, 2 * vocabulary * width
    return Network(
        block_params=blocks,
        other_params=other,
        # every weight once a token, and queries with keys and scores with values, causal: half the square
        macs=sequence * (blocks + vocabulary * width) + depth * sequence**2 * width,
        blocks=depth,
        edge_bytes=_HALF * sequence * width,
        inner_bytes=34 * sequence * width,
        inner_shared_bytes=24 * sequence * width,
        output_values=sequence * vocabulary,
    )


def network_of(model: Model) -> Network:
    """Of any network, from what it costs (analyze.cost). Without repeated blocks it is one block. What a layer gives is kept
    for the backward pass; the largest such value is taken for what blocks hand on, and the tensor axis divides none.
    """
    found = inspect(model)
    blocks = repeated_blocks(model.module)
    inside = sum(value.numel() for block in blocks.values() for value in block.parameters()) or found.total.params
    # analyze.cost counts float32 bytes
    given = [layer.output_bytes * _HALF // _SINGLE for layer in found.layers]
    return Network(
        block_params=inside,
        other_params=found.total.params - inside,
        macs=found.total.macs,
        blocks=len(blocks) or 1,
        edge_bytes=max(given, default=0),
        inner_bytes=sum(given) // (len(blocks) or 1),
    )


def forecast(network: Network, fleet: Fleet, distributed: Distributed, *, step: Step) -> Forecast:
    """Of one training step with Adam. Raises InputError when the ranks or the batch do not divide as asked."""
    if distributed.world != fleet.ranks:
        distributed.check_world(fleet.ranks)
    count, rest = divmod(step.batch, distributed.data * step.micro)
    if rest or not count:
        raise InputError(
            f"A batch of {step.batch} is not cut into {distributed.data} shares of microbatches of {step.micro} examples."
        )
    work = _work_s(network, fleet, distributed, step)
    return Forecast(
        distributed,
        step.micro,
        *_memory(network, distributed, step, count),
        work_s=work,
        waiting_s=work * (distributed.pipeline - 1) / count,
        data_s=_data_s(network, fleet, distributed, step, count=count),
        tensor_s=_tensor_s(network, fleet, distributed, step),
        pipeline_s=_pipeline_s(network, fleet, distributed, step, count=count),
        update_s=_held(network, distributed) / fleet.update_params_per_s,
    )


def best(network: Network, fleet: Fleet, batch: int) -> Forecast:
    """The fastest of all grids of ranks that fit, by the longest time; the tensor axis stays in a node.

    Raises UnfitError with what the leanest would need where none fits.
    """
    found = list(_all(network, fleet, batch))
    if not found:
        raise UnfitError(f"A batch of {batch} examples does not divide over {fleet.ranks} ranks.", hint="Take a power of 2.")
    fitting = [each for each in found if each.memory_bytes <= fleet.memory_bytes]
    if not fitting:
        leanest = min(each.memory_bytes for each in found)
        raise UnfitError(
            f"{network.params / 1e9:.3g}B parameters do not fit: each of {fleet.ranks} ranks needs {leanest / 1e9:.1f} GB "
            f"and has {fleet.memory_bytes / 1e9:.1f} GB.",
            hint="Take more ranks.",
        )
    return min(fitting, key=lambda each: each.longest_s)


def _all(network: Network, fleet: Fleet, batch: int) -> Iterator[Forecast]:
    for grid, micro in itertools.product(_grids(network, fleet), _MICROBATCHES):
        if batch % (grid.data * micro) == 0 and batch // (grid.data * micro) >= grid.pipeline:
            yield forecast(network, fleet, grid, step=Step(batch, micro))


def _grids(network: Network, fleet: Fleet) -> Iterator[Distributed]:
    for tensor in _divisors(fleet.ranks):
        for pipeline in _divisors(fleet.ranks // tensor):
            if tensor <= fleet.node and pipeline <= network.blocks:
                data = fleet.ranks // tensor // pipeline
                yield Distributed(data, tensor, pipeline, shard="full" if data > 1 else "none")


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _width(params: int, depth: int, vocabulary: int) -> float:
    """h of 12 depth h^2 + 2 vocabulary h = params."""
    return (math.sqrt(vocabulary**2 + 12 * depth * params) - vocabulary) / (12 * depth)


def _stage_params(network: Network, grid: Distributed) -> float:
    """Of the fullest stage, on one rank of the tensor axis: the first has the embedding, the last the head."""
    ends = network.other_params if grid.pipeline == 1 else network.other_params / 2
    return network.block_params * _longest(network, grid) / grid.tensor + ends


def _longest(network: Network, grid: Distributed) -> float:
    """Share of the blocks that the longest stage has."""
    return math.ceil(network.blocks / grid.pipeline) / network.blocks


def _held(network: Network, grid: Distributed) -> float:
    """Parameters that a rank updates."""
    return _stage_params(network, grid) / (grid.data if grid.shard == "full" else 1)


def _memory(network: Network, grid: Distributed, step: Step, count: int) -> tuple[int, int, int]:
    size = _HALF if step.half else _SINGLE
    gathered = 0.0
    if grid.shard == "full" and grid.data > 1:
        # the block that runs and the next one, which comes meanwhile; the outermost part stays as long as a pass
        ends = network.other_params / (1 if grid.pipeline == 1 else 2)
        gathered = size * (2 * network.block_params / (network.blocks * grid.tensor) + ends)
    under_way = min(grid.pipeline, count)  # 1F1B: of the first stage
    blocks = math.ceil(network.blocks / grid.pipeline)
    inner = network.inner_bytes - network.inner_shared_bytes * (1 - 1 / grid.tensor)
    edges = network.edge_bytes * blocks * under_way
    kept = edges + inner if step.recompute else inner * blocks * under_way
    # the outputs and their gradients, in float32, of the microbatch whose loss is taken
    activations = step.micro * (kept * size / _HALF + 2 * _SINGLE * network.output_values)
    return math.ceil(STATE_BYTES * _held(network, grid)), math.ceil(gathered), math.ceil(activations)


def _work_s(network: Network, fleet: Fleet, grid: Distributed, step: Step) -> float:
    """A backward pass takes two forward passes; recomputing is one more."""
    passes = 4 if step.recompute else 3
    examples = step.batch / grid.data / grid.tensor
    return passes * network.macs * _longest(network, grid) * examples / fleet.macs_per_s


def _data_s(network: Network, fleet: Fleet, grid: Distributed, step: Step, *, count: int) -> float:
    """Sharded: every microbatch gathers parameters forward and backward and scatters float32 gradients. Else one all-reduce."""
    if grid.data == 1:
        return 0.0
    link = fleet.near if grid.world <= fleet.node else fleet.link
    params, share = _stage_params(network, grid), (grid.data - 1) / grid.data
    if grid.shard == "none":
        return link.seconds(2 * (grid.data - 1), 2 * share * _SINGLE * params)
    groups = network.blocks / grid.pipeline + 1
    size = _HALF if step.half else _SINGLE
    return count * link.seconds(3 * groups * (grid.data - 1), share * params * (2 * size + _SINGLE))


def _tensor_s(network: Network, fleet: Fleet, grid: Distributed, step: Step) -> float:
    """A block sums its two outputs forward (again when recomputing), and backward its inputs: of q, k, v and the MLP, four."""
    if grid.tensor == 1:
        return 0.0
    sums = 2 * (2 if step.recompute else 1) + 4
    rounds = sums * network.blocks / grid.pipeline * step.batch / (grid.data * step.micro)
    num_bytes = 2 * (grid.tensor - 1) / grid.tensor * _edge(network, step)
    return rounds * fleet.near.seconds(2 * (grid.tensor - 1), num_bytes)


def _pipeline_s(network: Network, fleet: Fleet, grid: Distributed, step: Step, *, count: int) -> float:
    """What a stage takes in and gives, forward and backward."""
    if grid.pipeline == 1:
        return 0.0
    link = fleet.near if grid.world <= fleet.node else fleet.link
    return 2 * (count + grid.pipeline - 1) * link.seconds(1, _edge(network, step))


def _edge(network: Network, step: Step) -> float:
    return step.micro * network.edge_bytes * (1 if step.half else _SINGLE / _HALF)
