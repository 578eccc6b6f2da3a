"""lighten pack DIR FILE"""

import argparse

from lighten.cli.output import Show, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder and the archive."""
    parser.add_argument("folder", metavar="DIR", help="a folder that lighten compress wrote")
    parser.add_argument("archive", metavar="FILE", help="the archive to write, e.g. model.lighten")
    parser.add_argument(
        "--all", action="store_true", help="also what a device does not need: the report, and what load and verify read"
    )


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints the sizes, and what was left out."""
    from lighten.pack import pack

    packed = pack(arguments.folder, arguments.archive, everything=arguments.all)
    sizes = f"{arguments.archive}: {packed['size_bytes']:,} bytes for {packed['unpacked_bytes']:,}"
    left_out = f"\nLeft out (--all keeps them): {', '.join(packed['left_out'])}" if packed["left_out"] else ""
    show(as_json(packed) if arguments.json else f"{sizes}{left_out}")
    return 0
