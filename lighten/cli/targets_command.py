"""lighten targets"""

import argparse

from lighten.cli.output import Show, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runtimes, and whether to ask them anew."""
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME", help="default: every one that lighten knows")
    parser.add_argument("--probe", action="store_true", help="ask the runtimes that are installed here, on this machine")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints what each runtime executes."""
    from lighten.targets import table, targets

    found = targets(arguments.runtimes, probed=arguments.probe)
    show(as_json(found) if arguments.json else table(found))
    return 0
