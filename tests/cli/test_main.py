"""The command line's frame: exit codes, one line an error, options, and what goes to which stream."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lighten.compress
import lighten.data.source
import lighten.read.source
from lighten.cli.main import COMMANDS, main
from lighten.cli.progress import Lines, progress_for
from lighten.core.data import Data
from lighten.core.errors import UnfitError

REPORT = {"verdict": "met", "metric": "accuracy"}


class Finished:
    """A Result as the command sees it."""

    def __init__(self, *, broken=(), interrupted=False, report=REPORT):
        self.broken, self.interrupted, self.report = list(broken), interrupted, report

    def table(self):
        return "before and after"

    def save(self, folder):
        return Path(folder)


@pytest.fixture
def compress(monkeypatch, tmp_path):
    """Runs `lighten compress` with the main job replaced; `outcome` is what the job gives or raises."""
    monkeypatch.setattr(lighten.read.source, "load", lambda source, **options: "model")
    data = Data("data", "classification", "accuracy", test=[])
    monkeypatch.setattr(lighten.data.source, "load_data", lambda source, **options: data)
    job = sys.modules["lighten.compress"]
    seen = {}

    def run(*options, outcome=None):
        def compressed(model, data, **given):
            seen.update(given)
            given["progress"] and given["progress"].say("news")
            print("the user's code talks") if outcome == "talk" else None
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome if isinstance(outcome, Finished) else Finished()

        monkeypatch.setattr(job, "compress", compressed)
        return main(["compress", "model", "--data", "data", "--out", str(tmp_path / "out"), *options])

    run.seen = seen
    return run


def test_a_met_contract_exits_0_and_says_where_the_report_is(compress, capsys, tmp_path):
    assert compress() == 0
    assert capsys.readouterr().out == f"before and after\n\nReport: {tmp_path / 'out' / 'report.html'}\n"


def test_the_limits_reach_the_job_in_its_units(compress):
    assert compress("--max-drop", "1%", "--max-size", "2MB", "--max-latency", "5ms", "--threads", "3", "--seed", "7") == 0
    budget, target = compress.seen["budget"], compress.seen["target"]
    assert (budget.max_drop, budget.size_bytes, budget.latency_ms) == (0.01, 2_000_000, 5.0)
    assert (target.runtime, target.threads, target.batch) == ("onnxruntime", 3, 1)
    assert compress.seen["recipe"].seed == 7


def test_a_broken_contract_exits_3_and_says_each_limit_on_its_line(compress, capsys):
    broken = [{"why": "The size is 3, above 2."}, {"why": "The drop is 0.5, above 0.1."}]
    assert compress("--quiet", outcome=Finished(broken=broken)) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["lighten: not met: The size is 3, above 2.", "lighten: not met: The drop is 0.5, above 0.1."]


def test_an_interrupted_search_with_a_result_exits_3(compress):
    assert compress(outcome=Finished(interrupted=True)) == 3


def test_an_interrupt_before_any_result_exits_130_in_one_line(compress, capsys):
    assert compress("--quiet", outcome=KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "lighten: interrupted; there is no result yet.\n"


def test_an_interrupt_says_where_unfinished_work_is_kept_when_there_is_some(compress, capsys, tmp_path):
    work = tmp_path / "out" / ".work"
    work.mkdir(parents=True)
    assert compress("--quiet", outcome=KeyboardInterrupt()) == 130
    line = f"lighten: interrupted; there is no result yet. The same command continues the work kept in {work}.\n"
    assert capsys.readouterr().err == line


def test_an_interrupt_of_another_command_promises_nothing(compress, capsys, monkeypatch):
    def interrupt(source, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lighten.read.source, "load", interrupt)
    assert main(["inspect", "model"]) == 130
    assert capsys.readouterr().err == "lighten: interrupted; there is no result.\n"


def test_bad_input_exits_2_in_one_line_with_the_hint(compress, capsys):
    assert compress("--quiet", outcome=UnfitError("It does\nnot fit.", hint="Try less.")) == 2
    assert capsys.readouterr().err == "lighten: error: It does not fit. Try less.\n"


def test_a_fault_of_ours_exits_1_in_one_line(compress, capsys):
    assert compress("--quiet", outcome=RuntimeError("two\nlines")) == 1
    line = "lighten: internal error: RuntimeError: two lines (run again with --debug for the traceback)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("code", ["no checkpoint here", 0, 1, None])
def test_code_of_the_user_that_ends_the_program_is_bad_input(compress, capsys, code):
    assert compress("--quiet", outcome=SystemExit(code)) == 2
    line = f"lighten: error: The code that was to give the model or the data ended the program: exit {code}.\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(36, "File name too long", "a/b"), "File name too long: a/b."),
        (OSError(28, "No space left on device"), "No space left on device."),
        (OSError("odd"), "odd."),
    ],
    ids=str,
)
def test_a_refusal_of_the_file_system_is_bad_input(compress, capsys, error, said):
    assert compress("--quiet", outcome=error) == 2
    assert capsys.readouterr().err == f"lighten: error: {said}\n"


@pytest.mark.parametrize(("error", "code"), [(UnfitError("no"), 2), (RuntimeError("no"), 1)])
def test_debug_shows_the_traceback_before_the_line(compress, capsys, error, code):
    assert compress("--quiet", "--debug", outcome=error) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.splitlines()[-1].startswith("lighten: ")


def test_json_prints_the_report_and_nothing_else(compress, capsys):
    assert compress("--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == REPORT
    assert shown.err == ""


def test_json_has_null_where_a_number_is_not_finite(compress, capsys):
    assert compress("--json", outcome=Finished(report={"drop": float("nan"), "low": -float("inf"), "name": "\u00e9"})) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"drop": None, "low": None, "name": "\u00e9"}
    assert shown.isascii()


def test_what_the_users_code_prints_is_not_the_result(compress, capsys):
    assert compress("--json", outcome="talk") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == REPORT
    assert shown.err == "the user's code talks\n"


def test_quiet_shows_no_progress_and_its_absence_does(compress, capsys):
    assert compress("--quiet") == 0
    assert capsys.readouterr().err == ""
    assert compress() == 0
    assert capsys.readouterr().err == "news\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["compress", "m", "--data", "d", "--out", "o", "--max-dorp", "1%"],
            "unknown option --max-dorp. Did you mean --max-drop?",
        ),
        (["compress", "m", "--dta", "d", "--out", "o"], "unknown option --dta. Did you mean --data?"),
        (["compress", "m", "--data", "d", "--out", "o", "--theads=2"], "unknown option --theads. Did you mean --threads?"),
        (["inspect", "m", "--jsno"], "unknown option --jsno. Did you mean --json?"),
        (["--verison"], "unknown option --verison. Did you mean --version?"),
        (["compres", "m"], "unknown command compres. Did you mean compress?"),
        (["x"], "unknown command x. Known: inspect, compress, compare, sensitivity, forecast, targets, verify, pack, unpack."),
        (["inspect", "m", "extra"], "unrecognized arguments: extra."),
        (["compress", "m"], "the following arguments are required: --data, --out."),
        (
            ["compress", "m", "--data", "d", "--out", "o", "--threads", "two"],
            "argument --threads: 'two' is not an integer from 1 to 1024.",
        ),
        (["verify", "d", "--threads", "0"], "argument --threads: '0' is not an integer from 1 to 1024."),
        (
            ["compare", "a", "b", "--data", "d", "--batch", "9" * 20],
            f"argument --batch: '{'9' * 20}' is not an integer from 1 to",
        ),
        ([], "the following arguments are required: COMMAND."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_exits_2_in_one_line_that_names_the_nearest(capsys, arguments, said):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"lighten: error: {said}")
    assert " See lighten" in shown.err


@pytest.mark.parametrize(
    "options", [["--threads", "0"], ["--batch", "0"], ["--max-size", "2XB"], ["--max-drop", "200%"], ["--seed", "-1"]]
)
def test_a_value_out_of_range_exits_2_before_anything_is_read(capsys, options, tmp_path):
    assert main(["compress", "missing", "--data", "missing", "--out", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "missing" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_out_does_not_mean_the_current_folder(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "missing", "--data", "missing", "--out", name]) == 2
    assert capsys.readouterr().err == "lighten: error: --out is empty. Name a folder; the current one is `.`.\n"


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lighten {lighten.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_begins_with_its_summary(capsys, command):
    assert main([command, "--help"]) == 0
    assert COMMANDS[command][1:20] in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["compress"], ["--version"]])
def test_help_and_wrong_options_do_not_wait_for_torch(arguments):
    code = f"""
import sys
from lighten.cli.main import main
main({arguments!r})
print([name for name in ("torch", "numpy") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_progress_in_a_log_says_what_was_done_and_gives_the_items_unchanged(capsys):
    assert list(Lines().track(iter("abc"), what="scoring", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("scoring: 3 in ")


def test_progress_in_a_log_says_the_time_left_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr("lighten.cli.progress.time.monotonic", lambda: next(clock))
    assert len(list(Lines().track(iter("abc"), what="scoring", total=3))) == 3
    # one of three items took 12 seconds, so two more take 24
    assert capsys.readouterr().err == "scoring: 1 of 3, 24 s left\nscoring: 3 in 14.0 s\n"


def test_no_progress_when_quiet():
    assert progress_for(quiet=True) is None
    assert type(progress_for(quiet=False)) is Lines
