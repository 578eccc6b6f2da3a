"""lighten unpack FILE DIR"""

import argparse

from lighten.cli.output import Show, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The archive and the folder."""
    parser.add_argument("archive", metavar="FILE", help="what lighten pack wrote")
    parser.add_argument("folder", metavar="DIR", help="where the files go; those of the same names are replaced")
    parser.add_argument("--max-size", metavar="S", help="refuse an archive whose files are larger together (default: 4GB)")


def run(arguments: argparse.Namespace, show: Show) -> int:
    """Prints the names of the files."""
    from lighten.cli.quantities import size_bytes
    from lighten.export.pack.reading import MAX_SIZE
    from lighten.pack import unpack

    limit = MAX_SIZE if arguments.max_size is None else size_bytes(arguments.max_size)
    names = unpack(arguments.archive, arguments.folder, max_size=limit)
    show(as_json({"files": names}) if arguments.json else "\n".join(names))
    return 0
