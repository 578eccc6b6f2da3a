"""Progress on a terminal and in a log file."""

import re

from lighten.cli import progress
from lighten.cli.progress import Bar, Lines, progress_for


def test_a_text_that_changes_is_asked_for_anew_at_each_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_SECONDS", -1.0)
    done = []
    for item in Lines().track(range(3), what=lambda: f"training, epoch {len(done)}", total=3):
        done.append(item)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training, epoch 1: 1 of 3, \d+ s left", lines[0])
    assert re.fullmatch(r"training, epoch 2: 2 of 3, \d+ s left", lines[1])
    assert re.fullmatch(r"training, epoch 3: 3 in \d+\.\d s", lines[2])


def test_a_bar_yields_every_item_and_asks_for_its_text_after_each():
    asked = []

    def what() -> str:
        asked.append(1)
        return f"step {len(asked)}"

    assert list(Bar().track(iter("abc"), what=what, total=3)) == ["a", "b", "c"]
    assert len(asked) == 4
    assert list(Bar().track(iter("ab"), what="calibrating", total=2)) == ["a", "b"]


def test_quiet_shows_nothing():
    assert progress_for(quiet=True) is None
