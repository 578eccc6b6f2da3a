import json

import pytest
from report.samples import small

from lighten.core.errors import InputError
from lighten.report.write import encode, write


def test_both_files_are_written_and_the_json_reads_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    write(small(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == small()
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_writing_again_gives_the_same_bytes(tmp_path):
    write(small(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(small(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_json_cannot_hold_is_refused_and_the_old_report_stays(tmp_path):
    write(small(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(InputError, match="JSON cannot"):
        write(small() | {"notes": {"a set"}}, tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken"):
        write(small(), tmp_path / "taken")


def test_numbers_that_are_not_finite_become_null():
    report = {"parity": {"sqnr_db": float("inf")}, "drop_interval": [float("nan"), 0.5], "seed": 0}
    assert json.loads(encode(report)) == {"parity": {"sqnr_db": None}, "drop_interval": [None, 0.5], "seed": 0}


def test_file_names_that_are_not_utf_8_survive(tmp_path):
    name = "caf\udce9.png"  # what os.fsdecode makes of a Latin-1 name
    report = {"data": {"bad_rows": [{"where": name, "why": "unreadable"}]}}
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert "caf?.png" in (tmp_path / "report.html").read_text(encoding="utf-8")
