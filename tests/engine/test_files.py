"""Files are complete or absent."""

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lighten.core.errors import InputError
from lighten.engine.files import check_writable, make_folder, move, open_atomic, sha256_of, write_atomic


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_is_written_as_utf_8(tmp_path):
    write_atomic(tmp_path / "a.txt", "µ\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc2\xb5\n"


@pytest.mark.skipif(os.name != "posix", reason="a umask is a matter of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_for_the_users_umask_to_say(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_atomic(tmp_path / "a", b"a longer old content")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, step):
    write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match="the disk is full"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_inside_the_block_leaves_nothing(tmp_path):
    def write_half():
        with open_atomic(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert os.listdir(tmp_path) == []


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "folder"
    for attempt in (
        lambda: check_writable(below, 0),
        lambda: make_folder(below),
        lambda: write_atomic(below / "a", b""),
        lambda: move(tmp_path / "file", below / "a"),
    ):
        with pytest.raises(InputError, match="a part of the path is a file"):
            attempt()


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file of that name is in the way"):
        make_folder(tmp_path / "file")
    with pytest.raises(InputError, match="Cannot write"):
        check_writable(tmp_path / "file", 0)


def test_a_name_that_is_too_long_is_refused_before_work(tmp_path):
    for attempt in (
        lambda: check_writable(tmp_path / ("a" * 300), 0),
        lambda: make_folder(tmp_path / ("a" * 300)),
        lambda: write_atomic(tmp_path / ("a" * 300), b""),
    ):
        with pytest.raises(InputError, match="the name is too long"):
            attempt()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write")
def test_a_folder_that_takes_no_files_is_refused_before_work():
    with pytest.raises(InputError, match="Cannot write /proc/lighten"):
        check_writable(Path("/proc/lighten/out"), 0)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written"):
        check_writable(tmp_path / "out", 0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_the_reason_is_in_words(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(InputError) as caught:
            write_atomic(tmp_path / "a", b"")
    assert {errno.EACCES: "may not be written", errno.EROFS: "is read-only"}[number] in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_too_little_free_space_is_told_in_numbers_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3_000_000))
    check_writable(tmp_path / "out" / "deeper", 3_000_000)
    with pytest.raises(InputError, match="3 MB are free, about 50 MB are needed"):
        check_writable(tmp_path / "out" / "deeper", 50_000_000)
    assert os.listdir(tmp_path) == []


def test_a_moved_file_replaces_the_old_one_and_makes_its_folder(tmp_path):
    (tmp_path / "new").write_text("new")
    move(tmp_path / "new", tmp_path / "folder" / "a")
    assert (tmp_path / "folder" / "a").read_text() == "new"
    assert not (tmp_path / "new").exists()


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than one piece of reading
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="Cannot read"):
        sha256_of(tmp_path / "missing")
