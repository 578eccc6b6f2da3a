"""Layers shared by the ranks of the tensor axis, as a plan says (analyze.tensor_plan).

A layer by columns makes this rank's share of the channels; what consumes them, by rows, gives a part of the sum over all. The
input of columns passes as it is and its gradient is summed over the ranks; the output of rows is summed and its gradient passes
(the operators f and g of Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053, figure 3). Between them each rank works on plain
tensors of its own; parameters are DTensors, so they are gathered, saved and sharded further like any other.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from lighten.core.errors import UnfitError
from lighten.core.parallel import TensorPlan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def parallelize(module: nn.Module, mesh: "DeviceMesh", plan: TensorPlan) -> None:
    """Shares the layers of `module` among the ranks of `mesh`, of one dimension, in place.

    Every rank gives the same input and gets the same output and the same gradients of what is not shared. Weights are those
    of the mesh's first rank. Raises UnfitError when the plan is for another number of ranks or shares nothing.
    """
    if plan.size != mesh.size():
        raise UnfitError(f"The plan is for {plan.size} ranks, and the tensor axis has {mesh.size()}.")
    if not plan.columns:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(plan.refused.items())[:3])
        raise UnfitError(f"No layer can be shared by {plan.size} ranks. {reasons}", hint="Leave the tensor axis at 1.")
    styles: dict[str, ParallelStyle] = {
        **{path: _Share(columns=True) for path in plan.columns},
        **{path: _Share(rows=True) for path in plan.rows},
        **{path: _Share() for path in plan.along},
    }
    parallelize_module(module, mesh, styles)
    for (path, name), value in plan.integers.items():
        setattr(module.get_submodule(path), name, value)


class _Share(ParallelStyle):
    """Of one layer. columns, rows: as above; neither: it works on each channel alone."""

    def __init__(self, *, columns: bool = False, rows: bool = False) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows

    def _apply(self, module: nn.Module, mesh: "DeviceMesh") -> nn.Module:
        for name, value in list(module.named_parameters(recurse=False)):
            shared = distribute_tensor(value, mesh, [self._place(name)])
            module.register_parameter(name, nn.Parameter(shared, requires_grad=value.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.dim():  # the others count batches
                module.register_buffer(name, distribute_tensor(buffer, mesh, [self._place(name)]))
        groups: Any = getattr(module, "groups", None)
        if not self.columns and not self.rows and groups is not None:
            module.groups = groups // mesh.size()
        module.forward = partial(self._forward, module, mesh)
        return module

    def _place(self, name: str) -> Placement:
        if self.rows:
            return Shard(1) if name == "weight" else Replicate()
        return Shard(0)

    def _forward(self, module: nn.Module, mesh: "DeviceMesh", value: Tensor) -> Tensor:
        if self.columns:
            replicated = DTensor.from_local(value, mesh, [Replicate()], run_check=False)
            value = replicated.to_local(grad_placements=[Partial()])
        local = _Local(module, without_bias=self.rows)
        result: Tensor = type(module).forward(local, value)
        if not self.rows:
            return result
        summed = DTensor.from_local(result, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()])
        result = summed.to_local()
        bias: Any = module.bias
        # once, and not by every rank: behind the sum
        return result if bias is None else result + bias.to_local().reshape(-1, *[1] * _num_dims_behind(module))


class _Local:
    """A layer as its own code sees it on this rank: with this rank's part of each tensor."""

    def __init__(self, module: nn.Module, *, without_bias: bool) -> None:
        self._module, self._hidden = module, "bias" if without_bias else ""

    def __getattr__(self, name: str) -> Any:
        if name == self._hidden:
            return None
        value = getattr(self._module, name)
        return value.to_local() if isinstance(value, DTensor) else value


def _num_dims_behind(module: nn.Module) -> int:
    """Dimensions behind the channels in what the layer gives."""
    return len(getattr(module, "kernel_size", ()))
