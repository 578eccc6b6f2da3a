"""Seconds of a training step on one process and on two gloo ranks, a core each, against what search/scale.py forecasts.

    python bench/distributed/timing.py [--steps 12] [--clock cpu]        writes timing.json and timing.md beside itself

The forecast has five constants. Three are of a network's kind and measured on one process: multiply-accumulates a second (CNN,
decoder) and parameters that Adam updates a second. Two are of the link, alpha and beta, and fitted to the steps of the CNN and
of a small decoder on two ranks, by the least sum of squared relative errors. Held out, and in no fit: a decoder of 10 million
parameters. The shortest of the steps counts: other work on the machine only makes steps longer. Where others never rest,
--clock cpu counts the processor's seconds of a rank with all its threads, which are those of a step on a core of its own but
for the times in which a rank waits; the forecast then leaves out the waiting of the pipeline.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests" / "distributed")]

from memory import ResidualBlock  # noqa: E402
from networks_of_ranks import Language  # noqa: E402

from lighten.analyze.stages import stages  # noqa: E402
from lighten.analyze.tensor_plan import tensor_plan  # noqa: E402
from lighten.core.data import Batch  # noqa: E402
from lighten.core.distributed import Distributed  # noqa: E402
from lighten.core.model import Model, Origin  # noqa: E402
from lighten.engine.losses import next_token  # noqa: E402
from lighten.engine.mesh import mesh_of  # noqa: E402
from lighten.engine.pipeline import Pipeline  # noqa: E402
from lighten.engine.shard import Options, shard  # noqa: E402
from lighten.search.scale import Fleet, Link, Network, Step, forecast, network_of  # noqa: E402

SEQUENCE = 32
# batch: over all ranks
CASES: dict[str, dict[str, Any]] = {
    "CNN": {"kind": "CNN", "batch": 32, "grids": ("one", "none", "full")},
    "decoder, 1M": {
        "kind": "decoder",
        "width": 128,
        "depth": 4,
        "batch": 8,
        "grids": ("one", "none", "full", "tensor", "pipeline"),
    },
    "decoder, 10M": {
        "kind": "decoder",
        "width": 320,
        "depth": 8,
        "batch": 8,
        "grids": ("one", "none", "full", "tensor", "pipeline"),
    },
}
HELD_OUT = "decoder, 10M"
GRIDS = {
    "one": Distributed(),
    "none": Distributed(data=2),
    "full": Distributed(data=2, shard="full"),
    "tensor": Distributed(tensor=2),
    "pipeline": Distributed(pipeline=2),
}
MICROBATCHES = 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def model_of(case: dict[str, Any], rows: int) -> Model:
    """From seed 0."""
    torch.manual_seed(0)
    dynamic = ({0: "batch"},)
    if case["kind"] == "CNN":
        parts = (ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        net = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        return Model(net.eval(), (torch.randn(rows, 1, 28, 28),), Origin("module", "CNN", dynamic=dynamic))
    net = Language(512, case["width"], case["depth"])
    ids = torch.randint(0, 512, (rows, SEQUENCE))
    return Model(net.eval(), (ids,), Origin("module", "decoder", dynamic=dynamic))


def seconds_of(case: dict[str, Any], grid: Distributed, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median and shortest step, and the shortest update."""
    rows = case["batch"] // grid.data
    model = model_of(case, rows)
    module, inputs = model.module, model.example
    mesh = mesh_of(grid) if dist.is_initialized() else None
    compute: Callable[[], Any] = lambda: loss_of(case, module(*inputs), inputs).backward()  # noqa: E731
    if mesh is not None and grid.pipeline > 1:
        pipeline = Pipeline(stages(model, 2), mesh["pipeline"], next_token, microbatches=MICROBATCHES)
        module = pipeline.module
        batch = Batch(inputs, None, tuple(range(rows)))

        def compute() -> None:
            pipeline.gradient(batch, ("ids_bt",))
            pipeline.reduce()

    elif mesh is not None:
        plan = tensor_plan(model, 2) if grid.tensor > 1 else None
        shard(module, mesh, Options(tensor_plan=plan, shard=grid.shard == "full"))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    times, updates = [], []
    for _ in range(steps + 2):
        if dist.is_initialized():
            dist.barrier()
        began = clock()
        optimizer.zero_grad()
        compute()
        if grid.data > 1 and grid.shard == "none":
            flat = torch.cat([value.grad.flatten() for value in module.parameters()])
            dist.all_reduce(flat)
        computed = clock()
        optimizer.step()
        times.append(clock() - began)
        updates.append(clock() - computed)
    return {"step_s": statistics.median(times[2:]), "least_s": min(times[2:]), "update_s": min(updates[2:])}


def loss_of(case: dict[str, Any], output: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    if case["kind"] == "CNN":
        return output.square().mean()
    return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), inputs[0][:, 1:].flatten())


def work(rank: int, world: int, meeting: str, how: tuple[int, str], answers: Any) -> None:
    """All cases of one number of ranks."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    rows = [
        {"case": name, "grid": grid, **seconds_of(case, GRIDS[grid], how[0], CLOCKS[how[1]])}
        for name, case in CASES.items()
        for grid in case["grids"]
        if GRIDS[grid].world == world
    ]
    answers.put(rows)
    if world > 1:
        dist.destroy_process_group()


def measured(how: tuple[int, str]) -> list[dict[str, Any]]:
    """Of the slower of two ranks."""
    context, found = multiprocessing.get_context("spawn"), []
    for world in (1, 2):
        answers = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                context.Process(target=work, args=(rank, world, f"{folder}/meeting", how, answers)) for rank in range(world)
            ]
            for rank in ranks:
                rank.start()
            given = [answers.get(timeout=1200) for _ in ranks]
            for rank in ranks:
                rank.join()
        found += [max(rows, key=lambda row: row["least_s"]) for rows in zip(*given, strict=True)]
    return found


def networks() -> dict[str, Network]:
    """As forecast sees them."""
    return {name: network_of(model_of(case, 2)) for name, case in CASES.items()}


def forecast_s(row: dict[str, Any], network: Network, constants: dict[str, Any]) -> float:
    """Longest time: gloo on a core of its own hides nothing."""
    case, grid = CASES[row["case"]], GRIDS[row["grid"]]
    link = Link(constants["alpha_s"], constants["bytes_per_s"])
    speed = constants["macs_per_s"][case["kind"]]
    fleet = Fleet(grid.world, 2**40, speed, link, link, update_params_per_s=constants["update_params_per_s"])
    micro = case["batch"] // grid.data // (MICROBATCHES if grid.pipeline > 1 else 1)
    found = forecast(network, fleet, grid, step=Step(case["batch"], micro, recompute=False, half=False))
    return found.longest_s - (found.waiting_s if constants["clock"] == "cpu" else 0.0)


def fitted(rows: list[dict[str, Any]], seen: dict[str, Network], clock: str) -> dict[str, Any]:
    """alpha and beta by a search over a grid of both."""
    alone = {row["case"]: row for row in rows if row["grid"] == "one"}
    small = alone["decoder, 1M"]
    constants: dict[str, Any] = {
        "clock": clock,
        "update_params_per_s": seen["decoder, 1M"].params / small["update_s"],
        "macs_per_s": {
            CASES[name]["kind"]: 3 * seen[name].macs * CASES[name]["batch"] / (alone[name]["least_s"] - alone[name]["update_s"])
            for name in ("CNN", "decoder, 1M")
        },
    }
    fit = [row for row in rows if row["case"] != HELD_OUT and row["grid"] != "one"]
    tried = []
    for alpha in (10 ** (-5 + place / 10) for place in range(31)):
        for speed in (10 ** (7 + place / 10) for place in range(31)):
            candidate = {**constants, "alpha_s": alpha, "bytes_per_s": speed}
            errors = [(forecast_s(row, seen[row["case"]], candidate) / row["least_s"] - 1) ** 2 for row in fit]
            tried.append((sum(errors), alpha, speed, candidate))
    return min(tried)[-1]


def main() -> None:
    """Measures, fits, forecasts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    rows, seen = measured((arguments.steps, arguments.clock)), networks()
    constants = fitted(rows, seen, arguments.clock)
    for row in rows:
        row["forecast_s"] = forecast_s(row, seen[row["case"]], constants)
        row["is_held_out"] = row["case"] == HELD_OUT
    facts = {"machine": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
    (HERE / "timing.json").write_text(
        json.dumps({**facts, "steps": arguments.steps, "constants": constants, "rows": rows}, indent=1) + "\n"
    )
    (HERE / "timing.md").write_text(table(rows))
    print(json.dumps(constants), table(rows), sep="\n")


def table(rows: list[dict[str, Any]]) -> str:
    """One row a case and grid."""
    lines = ["| network | ranks | measured ms | forecast ms | error | used in the fit |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: list(CASES).index(row["case"])):
        measured_ms, forecast_ms = row["least_s"] * 1000, row["forecast_s"] * 1000
        used = "held out" if row["is_held_out"] else "yes"
        cells = (
            row["case"],
            row["grid"],
            f"{measured_ms:.1f}",
            f"{forecast_ms:.1f}",
            f"{forecast_ms / measured_ms - 1:+.0%}",
            used,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
