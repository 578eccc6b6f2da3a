"""What training on two processes is worth: speed, bytes, local SGD against data parallel, and a rank that is killed.

    apt install dataset-fashion-mnist
    python bench/distributed/run.py FOLDER [--parts speed local kill] [--epochs 3] [--seeds 3] [--limit N]

Every process has a core and a thread of its own; the ranks talk over the loopback. `speed`: one process against two at the
same batch, of the residual CNN of bench/prune and of a transformer of 10 million parameters. `local`: parameters averaged every
16 steps against gradients in every step. `kill`: `lighten compress --nproc 2`, one of whose ranks is ended by SIGKILL. What is
done is kept in FOLDER. A whole run writes results.json and table.md beside this script.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from killed import kill_one
from networks import First, Windows, images, network

from lighten.core.distributed import Distributed
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.losses import loss_for
from lighten.engine.ranks import joined
from lighten.engine.schedule import Training
from lighten.engine.train import train
from lighten.gather import device

HERE = Path(__file__).parent
PARTS = ("speed", "local", "kill")
BATCHES = {"cnn": 128, "transformer": 16}
EVERY = 16
_TIMED_EPOCHS = 4


def main() -> None:
    """Measures, writes."""
    arguments = _parsed()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    images(arguments.folder)
    results: dict[str, Any] = {"device": device(), "cores": sorted(os.sched_getaffinity(0)), "arguments": _plain(arguments)}
    makers: dict[str, Callable[[argparse.Namespace], Any]] = {"speed": speed, "local": local, "kill": kill_one}
    for part in arguments.parts:
        results[part] = makers[part](arguments)
        write_atomic(arguments.folder / "distributed.json", json.dumps(results, indent=1) + "\n")
    print(table(results))
    if set(arguments.parts) == set(PARTS) and arguments.limit is None:
        write_atomic(HERE / "results.json", json.dumps(results, indent=1) + "\n")
        write_atomic(HERE / "table.md", table(results))


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Examples a second of one process and of two, alternately, `seeds` times: medians."""
    results = {}
    for name, batch in BATCHES.items():
        runs = {world: [_speed(arguments, name, batch, world=world) for _ in range(arguments.seeds)] for world in (1, 2)}
        rates = {world: [one["examples_per_second"] for one in made] for world, made in runs.items()}
        results[name] = {
            "batch": batch,
            "parameters": sum(value.numel() for value in network(name).parameters()),
            "examples_per_second": rates,
            "efficiency": statistics.median(rates[2]) / (2 * statistics.median(rates[1])),
            "bytes_per_step": runs[2][0]["bytes_per_step"],
        }
    return results


def _speed(arguments: argparse.Namespace, name: str, batch: int, *, world: int) -> dict[str, float]:
    return on_cores(_timed, world, str(arguments.folder), name, batch, arguments.steps)[0]


def _timed(folder: str, name: str, batch: int, steps: int) -> dict[str, float]:
    """The first epoch warms up."""
    split: Any = Windows(batch * steps) if name == "transformer" else First(_train(folder), batch * steps)
    loss = loss_for("language-model" if name == "transformer" else "image-classification")
    with joined(None) as (ranks, distributed):
        training = Training(epochs=_TIMED_EPOCHS, batch_size=batch, lr=0.01)
        done = train(network(name), split, loss=loss, training=training, run=Run(ranks=ranks, distributed=distributed))
        seconds = min(epoch.seconds for epoch in done.history[2:])
        return {"examples_per_second": batch * steps / seconds, "bytes_per_step": ranks.sent_bytes / done.num_steps}


def local(arguments: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy and bytes of both ways, each seed."""
    found: dict[str, list[dict[str, float]]] = {"gradients": [], f"parameters every {EVERY}": []}
    for seed in range(arguments.seeds):
        for name, every in zip(found, (None, EVERY), strict=True):
            given = (str(arguments.folder), every, seed, arguments.epochs, arguments.limit)
            key = f"local-{name}-{'-'.join(map(str, given[1:]))}.json"
            found[name].append(_remembered(arguments.folder / key, lambda given=given: on_cores(_trained, 2, *given)[0]))
    return found


def _trained(folder: str, every: int | None, seed: int, epochs: float, limit: int | None) -> dict[str, float]:
    data = images(Path(folder))
    split = First(data.train, limit or len(data.train))
    module = network("cnn", seed)
    with joined(None) as (ranks, _):
        run = Run(seed, ranks=ranks, distributed=Distributed(data=ranks.world, average_every=every))
        training = Training(epochs=epochs, batch_size=128, lr=0.1, keep="last")
        done = train(module, split, loss=loss_for(data.task), training=training, run=run)
        sent = ranks.sent_bytes
    hits = [(module(*batch.inputs).argmax(1) == batch.target).float().mean() * len(batch.index) for batch in _test(data, limit)]
    return {"accuracy": float(sum(hits)) / len(data.test), "sent_bytes": sent, "steps": done.num_steps}


@torch.no_grad()
def _test(data: Any, limit: int | None) -> Any:
    yield from data.test.batches(500)


def _train(folder: str) -> Any:
    return images(Path(folder)).train


def on_cores(job: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What `job` gives in `world` processes, each on a core of its own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in range(world)]
    ranks = [context.Process(target=_rank, args=(rank, world, port, ends[rank][1], job, arguments)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    try:
        return [end.recv() for end, _ in ends]
    finally:
        for rank in ranks:
            rank.join(20)
            rank.kill()


def _rank(number: int, world: int, port: int, end: Any, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    end.send(job(*arguments))


def _remembered(path: Path, compute: Callable[[], Any]) -> Any:
    if not path.is_file():
        write_atomic(path, json.dumps(compute()))
    return json.loads(path.read_text())


def table(results: dict[str, Any]) -> str:
    """Markdown, of the parts there are."""
    lines = []
    if "speed" in results:
        lines += [
            "| network | batch | 1 process, examples/s | 2 processes | efficiency | bytes a step, each rank |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in results["speed"].items():
            rates = {int(world): statistics.median(made) for world, made in row["examples_per_second"].items()}
            numbers = f"{rates[1]:.0f} | {rates[2]:.0f} | {row['efficiency']:.2f} | {row['bytes_per_step']:,.0f}"
            lines.append(f"| {name}, {row['parameters']:,} parameters | {row['batch']} | {numbers} |")
    if "local" in results:
        lines += ["", "| averaged | accuracy (each seed) | bytes sent, each rank | fewer |", "|---|---|---|---|"]
        most = next(iter(results["local"].values()))[0]["sent_bytes"]
        for name, rows in results["local"].items():
            each = ", ".join(f"{100 * row['accuracy']:.2f}" for row in rows)
            mean = 100 * statistics.mean(row["accuracy"] for row in rows)
            lines.append(f"| {name} | {mean:.2f} ({each}) | {rows[0]['sent_bytes']:,} | {most / rows[0]['sent_bytes']:.1f} |")
    if "kill" in results:
        lines += ["", "| after SIGKILL of a rank | |", "|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in results["kill"].items()]
    return "\n".join(lines) + "\n"


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name != "folder"}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of a timed epoch")
    parser.add_argument("--limit", type=int, help="training examples, for a quick look")
    return parser.parse_args()


if __name__ == "__main__":
    main()
