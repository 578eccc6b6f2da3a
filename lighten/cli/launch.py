"""`--nproc N`: the same command in N processes on this machine, under torchrun's elastic agent.

The agent starts all of them anew, --restarts times at most, when one is killed or hangs; a training then goes on from its last
checkpoint. A command that ends with an exit code of its own has not failed for the agent.
"""

import argparse
import logging
import signal
import sys
from typing import Any

_SHUTDOWN_SECONDS = 10  # a rank that hangs does not hear SIGTERM


def launch(parsed: argparse.Namespace) -> int:
    """Runs the parsed command in `parsed.nproc` processes and returns its exit code: that of the first rank."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=parsed.nproc,
        run_id="lighten",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=parsed.restarts,
        start_method="spawn",
        signals_to_handle="SIGTERM,SIGHUP",  # Ctrl-C reaches the ranks themselves
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        codes: dict[int, int] = elastic_launch(config, rank)(vars(parsed))
    except ChildFailedError as error:
        print(f"lighten: error: {_said(error)}", file=sys.stderr)
        return 2
    except SignalException as stop:
        return 128 + int(stop.sigval)
    finally:
        signal.signal(signal.SIGINT, before)
    return codes[0]


def rank(values: dict[str, Any]) -> int:
    """One process of them."""
    from lighten.cli.main import perform

    return perform(argparse.Namespace(**values))


def _said(error: Any) -> str:
    """Which rank failed first, and how."""
    number, failure = error.get_first_failure()
    how = f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else f"ended with exit code {failure.exitcode}"
    return f"Rank {number} {how}, and no restart is left. The same command goes on from the last checkpoint."
