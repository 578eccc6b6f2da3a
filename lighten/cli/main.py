"""The command line. Exit codes: 0 done (contract met), 1 a fault of lighten, 2 bad input, 3 contract not met or a check failed,
130 interrupted with nothing to show.
"""

import argparse
import difflib
import importlib
import io
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import NoReturn

from lighten.cli.output import show
from lighten.cli.speaker import is_first, is_rank, may_start_again, speaks
from lighten.core.errors import InputError, LightenError, RankError

COMMANDS = {
    "inspect": "what a network costs, layer by layer",
    "compress": "make a network small and fast, and prove it on the exported file",
    "compare": "two networks on the same data: scores, drop, flips, latency",
    "sensitivity": "which layer hurts when it is quantized, at every width, and what each costs in float",
    "forecast": "memory and time of training on many GPUs, on paper",
    "targets": "the runtimes, their versions, and what each really executes in integers",
    "verify": "check a folder that compress wrote: hashes, and the truth gate again",
    "pack": "the folder that compress wrote in one small file, to store or to send",
    "unpack": "the files of an archive again, bit for bit",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Of the ranks that torchrun started one speaks, and all return the same."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with redirect_stderr(sys.stderr if is_first() else io.StringIO()):
            parsed = _parse(arguments)
    except SystemExit as stop:  # argparse has said what is wrong, or has shown the help
        return int(stop.code or 0)
    return perform(parsed)


def perform(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code. Raises RankError where a rank is lost and torchrun starts all anew."""
    debug: bool = parsed.debug
    try:
        return _run(parsed)
    except KeyboardInterrupt:
        _say("interrupted; there is no result.", is_spoken=is_first())
        return 130
    except (LightenError, OSError) as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {' '.join(_sentence(error).split())}", is_spoken=speaks(error))
        if isinstance(error, RankError) and error.is_lost and may_start_again():
            raise  # torchrun's agent starts all ranks anew when one of them fails
        return 2
    except Exception as error:  # a fault of ours: one line for the user, the traceback on request
        if debug:
            traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        _say(f"internal error: {reason} (run again with --debug for the traceback)", is_spoken=is_first())
        return 1


def _say(line: str, *, is_spoken: bool) -> None:
    if is_spoken:
        print(f"lighten: {line}", file=sys.stderr)


def _run(parsed: argparse.Namespace) -> int:
    """What the user's own code prints goes to standard error: standard output is for the result alone."""
    if getattr(parsed, "nproc", None) is not None and not is_rank():
        from lighten.cli.launch import launch

        return launch(parsed)
    command = importlib.import_module(f"lighten.cli.{parsed.command}_command")
    result_stream = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            return int(command.run(parsed, partial(show, stream=result_stream) if is_first() else lambda text: None))
    except SystemExit as stop:
        raise InputError(f"The code that was to give the model or the data ended the program: exit {stop.code}.") from stop


def _sentence(error: LightenError | OSError) -> str:
    """A file system's refusal that no one has put into words yet: a path too long, no permission, a full disk."""
    if isinstance(error, LightenError):
        return str(error)
    return f"{error.strerror or error}: {error.filename}." if error.filename else f"{error.strerror or error}."


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        print(f"lighten: error: {message if message.endswith('?') else f'{message}.'} See {self.prog} --help.", file=sys.stderr)
        raise SystemExit(2)

    def refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """Before anything is missed: a mistyped option that is required would otherwise only be called missing."""
        options = [name for action in self._actions for name in action.option_strings]
        for word in itertools.takewhile(lambda word: word != "--", arguments):
            name = word.partition("=")[0]
            if name.startswith("--") and name not in options:
                near = difflib.get_close_matches(name, options, n=1)
                self.error(f"unknown option {name}{f'. Did you mean {near[0]}?' if near else ''}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    place = next((place for place, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    parser.refuse_unknown_options(arguments[:place])
    if place < len(arguments):
        name = arguments[place]
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(commands)}"
            parser.error(f"unknown command {name}. {hint}")
        commands[name].refuse_unknown_options(arguments[place + 1 :])
    return parser.parse_args(arguments)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The whole parser, and that of each command."""
    from lighten import __version__

    about = "Compresses trained neural networks and proves the result on the file that ships."
    parser = _Parser(prog="lighten", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lighten {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    commands = {}
    for name, summary in COMMANDS.items():
        about = f"{summary[0].upper()}{summary[1:]}."
        command = subparsers.add_parser(name, help=summary, description=about, allow_abbrev=False)
        importlib.import_module(f"lighten.cli.{name}_command").add_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON on standard output and nothing else")
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        commands[name] = command
    return parser, commands


def default_threads() -> int:
    """The cores this process may use, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


if __name__ == "__main__":
    sys.exit(main())
