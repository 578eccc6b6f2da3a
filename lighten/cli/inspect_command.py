"""lighten inspect MODEL"""

import argparse

from lighten.cli.output import Show, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and its weights."""
    parser.add_argument("model", help="a Hugging Face folder, a folder lighten wrote, or package.module:callable")
    parser.add_argument("--weights", metavar="FILE", help="weights for package.module:callable, .safetensors")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints parameters, MACs, weight bytes and activations by layer, largest first."""
    from lighten.analyze.cost import inspect
    from lighten.read.source import load

    inspection = inspect(load(arguments.model, weights=arguments.weights))
    show(as_json(inspection.to_dict()) if arguments.json else inspection.table())
    return 0
