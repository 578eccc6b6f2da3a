"""Parallelism put on a network from outside, in one fixed order: tensor parallel, recomputing, compiling, sharding.

The network's code is that of one device. Sharding is ZeRO stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054) as torch's
`fully_shard` does it: each rank of the data axis keeps one part of every parameter, of its gradient and of what the optimizer
remembers. Parameters come together for a block at a time and are given up right after it, forward and backward.

Pipeline stages are cut before (engine.pipeline): each rank calls this for the stage that it has.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from lighten.core.errors import InputError, UnfitError
from lighten.core.parallel import TensorPlan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Options:
    """tensor_plan: which layers the ranks of the tensor axis share; needed where that axis has more than one.

    recompute: activations inside a repeated block are computed again in the backward pass, not kept (Chen et al. 2016,
    arXiv:1604.06174). compile: each repeated block by torch.compile. shard: over the data axis. precision: of parameters in
    forward and backward and of gradients there; sums over ranks, stored parameters and the optimizer stay float32.
    offload: shards lie in the host's memory between uses. Raises InputError on an unknown precision.
    """

    tensor_plan: TensorPlan | None = None
    recompute: bool = False
    compile: bool = False
    shard: bool = True
    precision: str = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}. Got {self.precision!r}.")


def shard(module: nn.Module, mesh: "DeviceMesh", options: Options | None = None) -> None:
    """Spreads `module` over the ranks of `mesh` (engine.mesh), in place; every rank holds the same weights before.

    Before the optimizer is made: parameters become DTensors. Between steps they are always sharded, so `whole` and
    `put` see all of them. A network without repeated blocks is gathered as one, which saves less memory at the peak.
    Raises UnfitError where the plan misses, a parameter cannot be sharded, or there are no blocks to recompute.
    """
    options = options or Options()
    blocks = repeated_blocks(module)
    if mesh["tensor"].size() > 1:
        from lighten.engine.tensor_parallel import parallelize

        if options.tensor_plan is None:
            raise UnfitError("A tensor axis needs a plan.", hint="analyze.tensor_plan finds one in the traced network.")
        parallelize(module, mesh["tensor"], options.tensor_plan)
    if options.recompute:
        _recompute(blocks)
    if options.compile:
        for block in blocks.values():
            block.compile()
    if options.shard and mesh["data"].size() > 1:
        _fully_shard(module, list(blocks.values()), mesh["data"], options)


def repeated_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """By path, in order: the modules of an outermost list of which there are several alike, of one class and with parameters of
    the same names and shapes. Traced graphs have none: their parts are never called.
    """
    found: dict[str, nn.Module] = {}
    for path, layers in module.named_modules():
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        kinds = Counter(_kind(layer) for layer in layers)
        prefix = f"{path}." if path else ""
        found |= {
            f"{prefix}{name}": layer
            for name, layer in layers.named_children()
            if kinds[_kind(layer)] > 1 and next(layer.parameters(), None) is not None
        }
    return found


def whole(value: Tensor) -> Tensor:
    """The full tensor of a sharded one, the tensor itself otherwise. All ranks that hold a part must ask for it."""
    gather: Any = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Writes a full tensor into a sharded or a plain one. Nothing is sent: each rank takes its part of what it is given."""
    target.copy_(shaped_like(target, value.to(device=target.device, dtype=target.dtype)))


def shaped_like(target: Tensor, value: Tensor) -> Tensor:
    """`value` sharded as `target` is, where it has its shape; else, and where `target` is plain, the value itself."""
    if not hasattr(target, "full_tensor") or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mine: Any = target
    return distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float = math.inf, *, stages: dist.ProcessGroup | None = None) -> float:
    """The norm of all gradients before clipping, the same on all ranks; above `limit` they are scaled down to it, in place.

    Each rank adds up its own parts; a part that several ranks hold counts once. stages: the group of the pipeline axis,
    whose ranks hold different layers.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    square = _square(gradients)
    if stages is not None:
        dist.all_reduce(square, group=stages)
    norm = float(square.sqrt())
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / (norm + 1e-6))  # torch's clip_grad_norm_ divides by as much
    return norm


def _square(gradients: list[Tensor]) -> Tensor:
    """Sum of squares. One sum over ranks for each mesh that gradients lie on."""
    plain = [gradient for gradient in gradients if not hasattr(gradient, "full_tensor")]
    total = _local_square(plain)
    by_mesh: dict[Any, list[Any]] = {}
    for gradient in gradients:
        if hasattr(gradient, "full_tensor"):
            by_mesh.setdefault(gradient.device_mesh, []).append(gradient)  # type: ignore[attr-defined]
    for mesh, parts in by_mesh.items():
        square = torch.stack([_local_square([part.to_local()]) / _copies(part) for part in parts]).sum()
        for axis in range(mesh.ndim):
            dist.all_reduce(square, group=mesh.get_group(axis))
        total = total.to(square.device) + square
    return total


def _local_square(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(tensors)).square().sum().float()


def _copies(value: Any) -> int:
    """How many ranks hold the same part."""
    places = zip(value.placements, value.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in places if placement.is_replicate())


def _kind(layer: nn.Module) -> Hashable:
    return type(layer), tuple((name, value.shape) for name, value in layer.named_parameters())


def _recompute(blocks: dict[str, nn.Module]) -> None:
    from torch.utils.checkpoint import checkpoint

    if not blocks:
        raise UnfitError("The network has no repeated blocks whose activations could be computed again.", hint="Leave it out.")
    for block in blocks.values():
        # the instance's forward and no wrapper around it: names of parameters stay as they are
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _fully_shard(module: nn.Module, blocks: list[nn.Module], mesh: "DeviceMesh", options: Options) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    scalars = {parameter for parameter in module.parameters() if not parameter.dim()}
    dtype = torch.bfloat16 if options.precision == "bf16" else None
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # fully_shard takes no others, such as channels last
    for part in (*blocks, module):
        fully_shard(
            part,
            mesh=mesh,
            # of the outermost too, which torch keeps whole by default: parameters are sharded whenever no pass is under way
            reshard_after_forward=True,
            mp_policy=MixedPrecisionPolicy(
                param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=dtype is not None
            ),
            offload_policy=CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if options.offload else OffloadPolicy(),
            ignored_params=scalars,
        )
        if isinstance(part, fx.GraphModule):
            # recompiling, as a change of mode does, would otherwise make the new class call itself without end
            type.__setattr__(type(part), "__call__", nn.Module.__call__)
    for scalar in scalars:
        if scalar.requires_grad:
            hook = partial(_average_gradient, mesh.get_group())
            scalar.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def _average_gradient(group: dist.ProcessGroup, parameter: Tensor) -> None:
    """fully_shard has no part of a tensor without dimensions for each rank: these stay whole."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= dist.get_world_size(group)
