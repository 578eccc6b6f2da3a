"""How a run is spread over processes: the line `distributed: {...}` of a recipe."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lighten.core.errors import InputError

SHARDS = ("none", "full")
_AXES = ("data", "tensor", "pipeline")


@dataclass(frozen=True)
class Distributed:
    """data, tensor, pipeline: ranks along each axis; their product is the number of processes (ranks).

    data: replicas, each with its share of every batch. tensor: ranks that share each layer. pipeline: stages, one behind the
    other. shard: "full" splits parameters, gradients and optimizer state over the data axis (ZeRO-3, Rajbhandari et al. 2020,
    arXiv:1910.02054), "none" gives each replica all of them. sync_norm: batch norms use the statistics of the whole batch, else
    of a rank's share. own_data: each rank trains on the split it was given, which it alone has; else all have the same
    split and take shares of it.

    average_every: K >= 1, local SGD (Stich 2019, arXiv:1805.09767; federated averaging, McMahan et al. 2017,
    arXiv:1602.05629): the ranks train alone and average their parameters every K steps, weighted by examples; None averages
    gradients in every step. outer_lr, outer_momentum: of Nesterov's step along the averaged change (DiLoCo, Douillard et al.
    2023, arXiv:2311.08105, which takes 0.7 and 0.9); 1 and 0 are the plain average. timeout: seconds that ranks wait for one
    of them in training. Raises InputError on a value out of range or a combination that does not exist.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    shard: str = "none"
    sync_norm: bool = True
    own_data: bool = False
    average_every: int | None = None
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in (*_AXES, "average_every"):
            value = getattr(self, name)
            if not (type(value) is int and value >= 1) and not (value is None and name == "average_every"):
                raise InputError(f"distributed: {name} must be an integer >= 1. Got {value!r}.")
        if self.shard not in SHARDS:
            raise InputError(f"distributed: shard must be one of {', '.join(SHARDS)}. Got {self.shard!r}.")
        for name in ("sync_norm", "own_data"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"distributed: {name} must be true or false. Got {getattr(self, name)!r}.")
        for name, most in (("outer_lr", math.inf), ("timeout", math.inf), ("outer_momentum", 1)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            least = 0 if name == "outer_momentum" else math.ulp(0.0)
            if not is_number or not least <= value < most:
                allowed = "in [0, 1)" if name == "outer_momentum" else "> 0"
                raise InputError(f"distributed: {name} must be {allowed}. Got {value!r}.")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.average_every is None and (self.outer_lr, self.outer_momentum) != (1.0, 0.0):
            raise InputError(
                "distributed: outer_lr and outer_momentum step along averaged parameters.", hint="Give average_every too."
            )
        if self.average_every is not None and (self.shard != "none" or self.tensor * self.pipeline > 1):
            raise InputError(
                "distributed: average_every needs the whole network on each rank.",
                hint="Leave out shard, tensor and pipeline, or average gradients in every step.",
            )

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.data * self.tensor * self.pipeline

    def check_world(self, size: int) -> None:
        """Raises InputError unless `size` processes are what the axes ask for."""
        if self.world == size:
            return
        product = " x ".join(f"{name} {getattr(self, name)}" for name in _AXES)
        started = f"{size} was started" if size == 1 else f"{size} were started"
        raise InputError(
            f"distributed: {product} needs {self.world} processes, and {started}.",
            hint=f"Run with --nproc {self.world}, or set sizes whose product is {size}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what is at its default."""
        default = asdict(Distributed())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Distributed":
        """The inverse of `to_dict`. Raises InputError on a key that is none."""
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise InputError(f"Unknown key of distributed {key!r}.", hint=f"Known: {', '.join(known)}.")
        return cls(**given)
