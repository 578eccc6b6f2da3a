"""The command line. Exit codes: 0 done (contract met), 1 a fault of lighten, 2 bad input, 3 contract not met or a check failed,
130 interrupted with nothing to show.
"""

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from lighten.core.errors import LightenError

COMMANDS = {
    "inspect": "what a network costs, layer by layer",
    "compress": "make a network small and fast, and prove it on the exported file",
    "compare": "two networks on the same data: scores, drop, flips, latency",
    "verify": "check a folder that compress wrote: hashes, and the truth gate again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        parsed = _parser(arguments).parse_args(arguments)
        command = importlib.import_module(f"lighten.cli.{parsed.command}_command")
        return int(command.run(parsed))
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("lighten: interrupted; nothing was finished yet, the work so far is kept for a resumed run.", file=sys.stderr)
        return 130
    except LightenError as error:
        if debug:
            traceback.print_exc()
        print(f"lighten: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:  # a fault of ours: one line for the user, the traceback on request
        if debug:
            traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(f"lighten: internal error: {reason} (run again with --debug for the traceback)", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        options = [name for action in self._actions for name in action.option_strings]
        wrong = [word for word in message.split() if word.startswith("--")]
        near = difflib.get_close_matches(wrong[0].split("=")[0], options, n=1) if wrong else []
        hint = f" Did you mean {near[0]}?" if near and "unrecognized" in message else ""
        print(f"lighten: error: {message}.{hint} See {self.prog} --help.", file=sys.stderr)
        raise SystemExit(2)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    from lighten import __version__

    parser = _Parser(
        prog="lighten", description="Compresses trained neural networks and proves the result on the file that ships."
    )
    parser.add_argument("--version", action="version", version=f"lighten {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        importlib.import_module(f"lighten.cli.{name}_command").add_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON on standard output and nothing else")
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def default_threads() -> int:
    """The cores this process may use, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


if __name__ == "__main__":
    sys.exit(main())
