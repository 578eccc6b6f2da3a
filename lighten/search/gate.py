"""The truth gate: the chosen file, loaded anew in its runtime, must do what the compressed torch graph does, and really be
what it is called.
"""

import sys
from dataclasses import dataclass

from lighten.core.errors import ParityError
from lighten.evaluate.layers import layer_sqnr_db
from lighten.evaluate.memory import subprocess_peak_bytes
from lighten.evaluate.parity import Parity, parity
from lighten.evaluate.predictions import Pass
from lighten.export import run_once
from lighten.search.trials import Trial, Trials

PARITY_EXAMPLES = 64
_SLACK_DB = 3.0
_EXACT_DB = 40.0


@dataclass(frozen=True)
class Gate:
    """parity: the file against the compressed torch graph. operators: what the runtime executes, counted. layers: SQNR of
    each site's output in decibels. peaks: peak memory in bytes of a fresh process that runs the original's and the
    compressed file once.
    """

    parity: Parity
    operators: dict[str, int]
    layers: dict[str, float]
    peaks: tuple[int, int]


def pass_gate(trials: Trials, trial: Trial) -> Gate:
    """Raises ParityError when the file departs from the torch graph by more than quantization itself explains.

    Integer kernels round at other places than the torch graph, so single codes may differ by one; that noise must stay below
    the noise of quantization (within 3 dB), or below 1 % of the signal's amplitude (40 dB).
    """
    session = trials.exporter.open(trial.export.path, trials.target)
    how = Pass(trials.data.task, batch_size=trials.target.batch, limit=PARITY_EXAMPLES, progress=trials.run.progress)
    same = parity(trial.compressed.graph, session, trials.data.test, how=how, what="comparing the file with torch")
    # in torch alone: what the runtime adds must not excuse itself
    own = parity(
        trials.prepared.graph.module, trial.compressed.graph, trials.data.test, how=how, what="noise of quantization alone"
    )
    if same.sqnr_db < min(own.sqnr_db - _SLACK_DB, _EXACT_DB):
        raise ParityError(
            f"The exported file departs from the torch graph: signal to noise {same.sqnr_db:.1f} dB, "
            f"while quantization itself leaves {own.sqnr_db:.1f} dB.",
            hint="Please report this network.",
        )
    batch = next(iter(trials.data.test.batches(4, 4)))
    layers = layer_sqnr_db(
        trials.prepared.graph.module, trial.compressed.graph, trials.prepared.graph.sites, inputs=batch.inputs
    )
    peaks = (_peak(trials, trials.original.path), _peak(trials, trial.export.path))
    return Gate(same, trials.exporter.operators(trial.export.path), layers, peaks)


def _peak(trials: Trials, path: object) -> int:
    inputs = [[list(value.shape), str(value.dtype).removeprefix("torch.")] for value in trials.timed_on.inputs]
    # -P: without it the folder of the script, which has an openvino.py of its own, would come before the packages
    return subprocess_peak_bytes([sys.executable, "-P", run_once.__file__, str(path), repr(inputs)])
