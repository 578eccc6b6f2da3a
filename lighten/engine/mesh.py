"""The ranks of a run as one grid with named axes."""

from typing import TYPE_CHECKING

import torch.distributed as dist

from lighten.core.distributed import Distributed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pipeline", "data", "tensor")
"""Slowest first: ranks of the tensor axis, which talk most, are neighbours."""


def mesh_of(distributed: Distributed, device_type: str = "cpu") -> "DeviceMesh":
    """The grid of all ranks; `mesh["data"]` is the part of it that a rank shares its layer, and not its examples, with.

    The process group must have been started. Raises InputError where the sizes do not multiply to the number of ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh

    distributed.check_world(dist.get_world_size())
    sizes = tuple(getattr(distributed, axis) for axis in AXES)
    return init_device_mesh(device_type, sizes, mesh_dim_names=AXES)
