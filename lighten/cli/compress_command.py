"""lighten compress MODEL --data D --out DIR"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lighten.cli import quantities
from lighten.cli.output import Show, as_json
from lighten.cli.speaker import is_first, number

if TYPE_CHECKING:
    from lighten.core.cost import Budget, Target
    from lighten.core.recipe import Recipe
    from lighten.result import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the data, the contract and the target."""
    parser.add_argument("model", help="a Hugging Face folder, a folder lighten wrote, or package.module:callable")
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="images, wav files, .npz, .csv, .jsonl, .txt, synthetic or package.module:callable",
    )
    parser.add_argument(
        "--calibration",
        metavar="D",
        help="another source of training and calibration inputs, e.g. synthetic (default: of --data)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; an interrupted run in it is resumed")
    parser.add_argument("--weights", metavar="FILE", help="weights for package.module:callable, .safetensors")
    parser.add_argument("--recipe", metavar="R.yaml", help="what to do; int8 when not given")
    _add_contract(parser)
    parser.add_argument("--metric", help="what is scored, e.g. f1 or top_5 (default: what suits the data)")
    parser.add_argument("--tensorboard", metavar="DIR", help="a folder for the curves of every training step")
    parser.add_argument("--seed", metavar="N", help="of every random choice (default: the recipe's, else 0)")
    _add_processes(parser)


def _add_contract(parser: argparse.ArgumentParser) -> None:
    """What may be lost and spent, and where."""
    from lighten.cli.main import default_threads

    parser.add_argument("--max-drop", metavar="1%", help="largest drop of the metric, e.g. 1%% or 0.01")
    parser.add_argument("--max-size", metavar="2MB", help="largest file, e.g. 2MB or 500kB")
    parser.add_argument("--max-latency", metavar="5ms", help="largest median time of one batch, e.g. 5ms")
    parser.add_argument(
        "--target",
        default="onnxruntime",
        metavar="RUNTIME",
        help="the runtime that will run the file (default: onnxruntime), or several, as onnxruntime,openvino: each gets a "
        "file, and one is recommended",
    )
    parser.add_argument(
        "--hint",
        choices=("latency", "throughput"),
        default="latency",
        help="what OpenVINO is told to care for (default: latency)",
    )
    parser.add_argument(
        "--threads",
        type=quantities.num_threads,
        default=default_threads(),
        help="of the runtime (default: the cores there are, at most 4)",
    )
    parser.add_argument("--batch", type=quantities.batch_size, default=1, help="examples a call (default: 1)")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc", type=quantities.num_ranks, metavar="N", help="train in N processes, as `torchrun` would start"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="N",
        help="with --nproc: how often lost processes are started anew (default: 3)",
    )


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Exit code 0 when the contract is met, 3 when it is not and the best result was kept, 130 when there is none yet."""
    from lighten.cli.progress import progress_for
    from lighten.core.cost import Budget, Target
    from lighten.core.recipe import Recipe
    from lighten.core.run import Silent
    from lighten.engine.interrupt import insist
    from lighten.engine.ranks import joined
    from lighten.report.write import PAGE_NAME
    from lighten.result import WORK

    recipe = Recipe() if arguments.recipe is None else Recipe.from_file(Path(arguments.recipe))
    recipe = recipe if arguments.seed is None else replace(recipe, seed=quantities.seed(arguments.seed))
    budget = Budget(
        size_bytes=None if arguments.max_size is None else quantities.size_bytes(arguments.max_size),
        latency_ms=None if arguments.max_latency is None else quantities.latency_ms(arguments.max_latency),
        max_drop=None if arguments.max_drop is None else quantities.drop(arguments.max_drop),
    )
    target = Target(arguments.target, threads=arguments.threads, batch=arguments.batch, hint=arguments.hint)
    _refuse_unknown_names(arguments, recipe)
    out = folder(arguments.out)
    try:
        with joined(recipe.distributed) as (ranks, _):
            result = _compress(arguments, budget, recipe, target=target)
            progress = progress_for(quiet=arguments.quiet) or Silent()
            if ranks.number == 0:
                insist(lambda: result.save(out), progress=progress, why="the result is being written.")
    except KeyboardInterrupt:
        return _interrupted(out / WORK)
    show(as_json(result.report) if arguments.json else f"{result.table()}\n\nReport: {out / PAGE_NAME}")
    for limit in result.broken if is_first() else ():
        print(f"lighten: not met: {limit['why']}", file=sys.stderr)
    return 3 if result.broken or result.interrupted else 0


def _refuse_unknown_names(arguments: argparse.Namespace, recipe: "Recipe") -> None:
    """A slip of the finger is told before a large model and its data are read."""
    from lighten import catalog
    from lighten.core.cost import Target
    from lighten.engine.scalars import summary_writer
    from lighten.evaluate.metrics import metric_named

    for one in Target(arguments.target).each():
        catalog.exporter(one.runtime)
    for step in recipe.steps:
        catalog.build_method(step)
    if arguments.tensorboard is not None:
        summary_writer()
    if arguments.metric is not None:
        metric_named(arguments.metric)


def folder(name: str) -> Path:
    """Refused before a large model is read when nothing can be written there."""
    from lighten.core.errors import InputError
    from lighten.engine.files import check_writable

    if not name.strip():
        raise InputError("--out is empty.", hint="Name a folder; the current one is `.`.")
    check_writable(Path(name), 0)
    return Path(name)


def _interrupted(work: Path) -> int:
    kept = f" The same command continues the work kept in {work}." if work.is_dir() else ""
    if is_first():
        print(f"lighten: interrupted; there is no result yet.{kept}", file=sys.stderr)
    return 130


def _compress(arguments: argparse.Namespace, budget: "Budget", recipe: "Recipe", *, target: "Target") -> "Result":
    from lighten.cli.progress import progress_for
    from lighten.compress import compress
    from lighten.data.source import calibrated_on, load_data, require_labels
    from lighten.evaluate.metrics import require_suited
    from lighten.read.source import load

    model = load(arguments.model, weights=arguments.weights)
    progress = progress_for(quiet=arguments.quiet or arguments.json or not is_first())
    source = arguments.data.replace("{rank}", str(number()))  # each rank may have data of its own
    data = load_data(source, model=model, seed=recipe.seed, progress=progress)
    if arguments.calibration is not None:
        data = calibrated_on(data, arguments.calibration, model=model, seed=recipe.seed, progress=progress)
    if arguments.metric is None:
        require_labels(data, source)
    else:
        require_suited(arguments.metric, data.task)
        data = replace(data, metric=arguments.metric)
    return compress(
        model,
        data,
        budget=budget,
        recipe=recipe,
        target=target,
        out=arguments.out,
        tensorboard=arguments.tensorboard,
        progress=progress,
    )
