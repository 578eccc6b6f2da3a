"""lighten compare A B --data D"""

import argparse
from typing import Any

from lighten.cli.output import Show, as_json
from lighten.cli.quantities import batch_size, num_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two models and the data."""
    from lighten.cli.main import default_threads

    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=name.upper(), help="an .onnx file, a folder lighten wrote, or anything compress takes"
        )
    parser.add_argument("--data", required=True, metavar="D", help="as for compress")
    parser.add_argument("--weights", metavar="FILE", help="weights for A where it is package.module:callable, .safetensors")
    parser.add_argument("--metric", help="what is scored, e.g. f1 or top_5 (default: what suits the data)")
    parser.add_argument(
        "--threads", type=num_threads, default=default_threads(), help="(default: the cores there are, at most 4)"
    )
    parser.add_argument("--batch", type=batch_size, default=1, help="examples a call (default: 1)")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints scores, the drop with its interval, flips and latency."""
    from lighten.cli.progress import progress_for
    from lighten.compare import compare
    from lighten.core.cost import Target
    from lighten.evaluate.metrics import metric_named
    from lighten.read.source import load

    if arguments.metric is not None:
        metric_named(arguments.metric)  # a slip of the finger is told before large models and data are read
    target = Target(threads=arguments.threads, batch=arguments.batch)
    progress = progress_for(quiet=arguments.quiet or arguments.json)
    first = arguments.a if arguments.weights is None else load(arguments.a, weights=arguments.weights)
    compared = compare(first, arguments.b, arguments.data, metric=arguments.metric, target=target, progress=progress)
    show(as_json(compared) if arguments.json else _text(compared))
    return 0


def _text(compared: dict[str, Any]) -> str:
    low, high = compared["drop_interval"]
    latency = compared["latency"]
    rows = [
        f"{'':24} {'first':>14} {'second':>14}",
        f"{compared['metric']:24} {compared['first_score']:>14.6g} {compared['second_score']:>14.6g}",
        f"{'latency p50, ms':24} {latency['first']['p50_ms']:>14.4g} {latency['second']['p50_ms']:>14.4g}",
        f"{'latency p95, ms':24} {latency['first']['p95_ms']:>14.4g} {latency['second']['p95_ms']:>14.4g}",
        f"{'runs in':24} {compared['first']['runtime']:>14} {compared['second']['runtime']:>14}",
        "",
        f"Drop {100 * compared['drop']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})",
        f"on {compared['num_examples']} examples, {compared['drop_method']};",
        f"{compared['threads']} threads, batch {compared['batch']}.",
    ]
    changed = compared["flips"]["num_changed"]
    return "\n".join(rows + ([] if changed is None else [f"{changed} predictions changed."]))
