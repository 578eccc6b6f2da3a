"""lighten verify DIR"""

import argparse

from lighten.cli.output import Show, as_json
from lighten.cli.quantities import num_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and data when the original's is elsewhere now."""
    parser.add_argument("folder", metavar="DIR", help="a folder that lighten compress wrote")
    parser.add_argument("--data", metavar="D", help="as for compress (default: the source named in the report)")
    parser.add_argument("--threads", type=num_threads, help="(default: as in the report)")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Exit code 0 when every check holds, 3 when one fails."""
    from lighten.verify import verify

    found = verify(arguments.folder, data=arguments.data, threads=arguments.threads)
    lines = [f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']:10} {check['detail']}" for check in found["checks"]]
    show(as_json(found) if arguments.json else "\n".join(lines))
    return 0 if found["ok"] else 3
