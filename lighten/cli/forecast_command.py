"""lighten forecast [MODEL] --gpus N"""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lighten.cli import quantities
from lighten.cli.output import Show, as_json
from lighten.core.errors import InputError

if TYPE_CHECKING:
    from lighten.search.scale import Fleet, Forecast, Network

_AXES = ("data", "tensor", "pipeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, on what, and how it is spread where that is not to be searched."""
    model = parser.add_argument_group("what is trained")
    model.add_argument("model", nargs="?", help="a Hugging Face folder, a folder lighten wrote, or package.module:callable")
    model.add_argument("--params", metavar="N", help="instead of a model: a decoder of so many parameters, e.g. 7B")
    model.add_argument("--sequence", type=quantities.batch_size, default=4096, help="tokens of its examples (default 4096)")
    model.add_argument("--vocabulary", type=quantities.batch_size, default=128_000, help="tokens it knows (default 128000)")
    model.add_argument("--batch", type=quantities.batch_size, default=1024, help="examples of a step, all ranks (default 1024)")
    fleet = parser.add_argument_group("on what")
    fleet.add_argument("--gpus", type=quantities.batch_size, required=True, metavar="N", help="ranks, one a GPU")
    fleet.add_argument("--memory", default="80GB", help="of one GPU (default 80GB)")
    fleet.add_argument("--speed", default="400TFLOP/s", help="that one reaches, not its peak (default 400TFLOP/s)")
    fleet.add_argument("--link", default="50GB/s", help="of one GPU to other nodes, one way (default 50GB/s)")
    fleet.add_argument("--near", metavar="SPEED", default="300GB/s", help="of one GPU inside its node (default 300GB/s)")
    fleet.add_argument("--node", type=quantities.batch_size, default=8, metavar="N", help="GPUs of a node (default 8)")
    fleet.add_argument("--latency", default="10us", help="of one message (default 10us)")
    grid = parser.add_argument_group("spread how (the fastest grid that fits is searched where none of these is given)")
    for axis in _AXES:
        grid.add_argument(f"--{axis}", type=quantities.batch_size, metavar="N", help=f"ranks of the {axis} axis")
    grid.add_argument(
        "--micro", type=quantities.batch_size, default=1, metavar="N", help="examples of a microbatch (default 1)"
    )


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints memory and time of a rank: an estimate from closed forms (docs/scale.md), nothing is run. Exit code 3 where it
    does not fit.
    """
    from lighten.core.distributed import Distributed
    from lighten.search.scale import Step, best, forecast

    network, fleet = _network(arguments), _fleet(arguments)
    sizes = {axis: getattr(arguments, axis) or 1 for axis in _AXES}
    if any(getattr(arguments, axis) for axis in _AXES):
        shard = "full" if sizes["data"] > 1 else "none"
        grid = Distributed(sizes["data"], sizes["tensor"], sizes["pipeline"], shard=shard)
        found = forecast(network, fleet, grid, step=Step(arguments.batch, arguments.micro))
    else:
        found = best(network, fleet, arguments.batch)
    fits = found.memory_bytes <= fleet.memory_bytes
    show(as_json(_data(network, found, fits)) if arguments.json else _table(network, fleet, found))
    return 0 if fits else 3


def _network(arguments: argparse.Namespace) -> "Network":
    from lighten.read.source import load
    from lighten.search.scale import network_of, transformer

    if (arguments.model is None) == (arguments.params is None):
        raise InputError("Give a MODEL or --params, and not both.")
    if arguments.params is None:
        return network_of(load(arguments.model))
    params = quantities.count(arguments.params)
    return transformer(params, sequence=arguments.sequence, vocabulary=arguments.vocabulary)


def _fleet(arguments: argparse.Namespace) -> "Fleet":
    from lighten.search.scale import Fleet, Link

    latency_s = quantities.latency_ms(arguments.latency) / 1000
    return Fleet(
        ranks=arguments.gpus,
        memory_bytes=quantities.size_bytes(arguments.memory),
        macs_per_s=quantities.flop_per_s(arguments.speed) / 2,
        link=Link(latency_s, quantities.bytes_per_s(arguments.link)),
        near=Link(latency_s, quantities.bytes_per_s(arguments.near)),
        node=arguments.node,
    )


def _data(network: "Network", found: "Forecast", fits: bool) -> dict[str, Any]:
    totals = {"memory_bytes": found.memory_bytes, "shortest_s": found.shortest_s, "longest_s": found.longest_s}
    return {**asdict(found), **totals, "fits": fits, "params": network.params, "is_estimate": True}


def _table(network: "Network", fleet: "Fleet", found: "Forecast") -> str:
    grid, used = found.distributed, found.memory_bytes / fleet.memory_bytes
    rows = [
        ("parameters", f"{network.params / 1e9:.4g} B in {network.blocks} blocks"),
        ("ranks", f"data {grid.data} (shard {grid.shard}), tensor {grid.tensor}, pipeline {grid.pipeline}"),
        ("examples of a microbatch", f"{found.micro}"),
        ("", ""),
        ("memory of a rank", f"{found.memory_bytes / 1e9:.1f} GB, {used:.0%} of what it has"),
        ("  parameters, gradients, Adam", f"{found.state_bytes / 1e9:.1f} GB"),
        ("  gathered parameters", f"{found.gathered_bytes / 1e9:.1f} GB"),
        ("  activations", f"{found.activation_bytes / 1e9:.1f} GB"),
        ("", ""),
        ("time of a step", f"{found.shortest_s:.3g} to {found.longest_s:.3g} s"),
        ("  work", f"{found.work_s:.3g} s"),
        ("  waiting in the pipeline", f"{found.waiting_s:.3g} s"),
        ("  transfers, data axis", f"{found.data_s:.3g} s, hidden or not"),
        ("  transfers, tensor axis", f"{found.tensor_s:.3g} s"),
        ("  transfers, pipeline axis", f"{found.pipeline_s:.3g} s"),
    ]
    lines = [f"{name:<32}{value}".rstrip() for name, value in rows]
    verdict = "" if used <= 1 else "\nIt does not fit.\n"
    return (
        "\n".join(lines) + f"\n{verdict}\nEstimated from closed forms; nothing was run. Assumptions and errors: docs/scale.md."
    )
