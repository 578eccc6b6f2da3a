"""lighten sensitivity MODEL --data D"""

import argparse

from lighten.cli.compress_command import folder
from lighten.cli.output import Show, as_json
from lighten.cli.quantities import batch_size, num_threads, seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the data and the target."""
    from lighten.cli.main import default_threads

    parser.add_argument("model", help="a Hugging Face folder, a folder lighten wrote, or package.module:callable")
    parser.add_argument("--data", required=True, metavar="D", help="as for compress; labels are not needed")
    parser.add_argument(
        "--out", metavar="DIR", help="a folder for sensitivity.html, the page with the plot, and sensitivity.json"
    )
    parser.add_argument("--weights", metavar="FILE", help="weights for package.module:callable, .safetensors")
    parser.add_argument("--target", default="onnxruntime", help="the runtime that will run the file (default: onnxruntime)")
    parser.add_argument(
        "--threads", type=num_threads, default=default_threads(), help="(default: the cores there are, at most 4)"
    )
    parser.add_argument("--batch", type=batch_size, default=1, help="examples a call (default: 1)")
    parser.add_argument("--no-time", action="store_true", help="do not write and time a file for each layer")
    parser.add_argument("--seed", metavar="N", default="0", help="of every random choice (default: 0)")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints each layer at every width, the one that hurts most first; with --out also writes the page."""
    from lighten import catalog
    from lighten.cli.progress import progress_for
    from lighten.core.cost import Target
    from lighten.read.source import load
    from lighten.report.sensitivity import table, write
    from lighten.sensitivity import sensitivity

    catalog.exporter(arguments.target)  # a slip of the finger is told before a large model is read
    out = None if arguments.out is None else folder(arguments.out)
    number = seed(arguments.seed)
    found = sensitivity(
        load(arguments.model, weights=arguments.weights),
        arguments.data,
        target=Target(arguments.target, threads=arguments.threads, batch=arguments.batch),
        timed=not arguments.no_time,
        seed=number,
        progress=progress_for(quiet=arguments.quiet or arguments.json),
    )
    told = [] if out is None else [f"Page: {write(found, out)}"]
    show(as_json(found) if arguments.json else "\n\n".join([table(found), *told]))
    return 0
