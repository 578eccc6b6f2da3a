"""What a run gives: the verdict, every figure, and the folder to ship."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.core.method import Compressed
from lighten.core.recipe import Recipe
from lighten.engine.files import check_writable, sha256_of, write_atomic
from lighten.export.archive import write_archive
from lighten.report.table import table
from lighten.report.write import write

MODEL_FILE = "model.onnx"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Result:
    """report: plain data, the content of report.json. compressed: the network in torch. model_bytes: the exported file.
    recipe: resolved, replays the run.
    """

    report: dict[str, Any]
    compressed: Compressed
    recipe: Recipe
    model_bytes: bytes

    @property
    def verdict(self) -> str:
        """ "met" or "infeasible"."""
        return str(self.report["verdict"])

    @property
    def broken(self) -> list[dict[str, Any]]:
        """The limits that do not hold: constraint, limit, measured, why."""
        return list(self.report["broken"])

    @property
    def interrupted(self) -> bool:
        """True when the user ended the search early."""
        return bool(self.report["interrupted"])

    def table(self) -> str:
        """Before and after, for a terminal."""
        return table(self.report)

    def save(self, folder: str | Path) -> Path:
        """Writes the folder and returns its path: the file, what `lighten.load` reads, recipe, report, page, and the
        manifest last.

        Raises InputError when the folder cannot be written; each file is complete or absent.
        """
        folder = Path(folder)
        check_writable(folder, 3 * len(self.model_bytes) + 8_000_000)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MODEL_FILE, self.model_bytes)
        names = [MODEL_FILE, *write_archive(self.compressed, folder)]
        write_atomic(folder / "recipe.yaml", self.recipe.to_yaml())
        write(self.report, folder)
        names += ["recipe.yaml", "report.json", "report.html"]
        write_atomic(folder / MANIFEST, json.dumps(self._manifest(folder, names), indent=2) + "\n")
        return folder

    def _manifest(self, folder: Path, names: list[str]) -> dict[str, Any]:
        files = {name: {"sha256": sha256_of(folder / name), "size_bytes": (folder / name).stat().st_size} for name in names}
        facts = {key: self.report[key] for key in ("versions", "seed", "runtime", "threads", "batch", "metric", "device")}
        return {"format": 1, "files": files, **facts, "data": self.report["data"]}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `Result.save` wrote. Raises InputError when there is none or it is malformed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no readable {MANIFEST}: {error}.", hint="Name a folder that lighten wrote.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{folder / MANIFEST} is malformed.", hint="Name a folder that lighten wrote.")
    return manifest


def damaged_files(folder: Path, manifest: dict[str, Any], digest: Callable[[Path], str] = sha256_of) -> list[str]:
    """Names of the files that are missing or whose sha256 is not the manifest's."""
    expected = manifest["files"]
    return [name for name in expected if not (folder / name).is_file() or digest(folder / name) != expected[name]["sha256"]]
