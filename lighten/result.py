"""What a run gives: the verdict, every figure, and the folder to ship."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from lighten.core.errors import InputError, UnfitError
from lighten.core.export import STEM
from lighten.core.method import Compressed, Prepared
from lighten.core.plan import Plan
from lighten.core.recipe import Recipe
from lighten.core.run import Ranks
from lighten.engine.files import check_writable, make_folder, move, sha256_of, unwritable, write_atomic
from lighten.export.archive import PRETRAINED, write_archive, write_pretrained
from lighten.report.table import table
from lighten.report.write import JSON_NAME, PAGE_NAME, encode, write

if TYPE_CHECKING:
    from lighten.analyze.reclass import Reclassed

MODEL_FILE = f"{STEM}.onnx"
RECIPE_FILE = "recipe.yaml"
MANIFEST = "manifest.json"
WORK = ".work"


@dataclass(frozen=True)
class Result:
    """report: plain data, the content of report.json. compressed: the network in torch. model_bytes: the exported file.
    recipe: resolved, replays the run. reclassed: the network before quantization in its own class, None where no step changed
    it. others: by name, the files that go with the exported one, and those for other runtimes.
    """

    report: dict[str, Any]
    compressed: Compressed
    recipe: Recipe
    model_bytes: bytes
    reclassed: "Reclassed | None" = None
    others: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def model_file(self) -> str:
        """The exported file's name in the folder."""
        return str(self.report.get("file", MODEL_FILE))

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

    def module(self) -> nn.Module:
        """The network in float, before quantization, as an instance of its own class with all its methods: of a Hugging Face
        folder, what `from_pretrained` gives. Where the report's notes say so, no config.json describes it: it runs and trains,
        but `save_pretrained` would write a folder that cannot be loaded.

        Raises UnfitError where the class cannot have the sizes that the steps made, saying why.
        """
        model, found = self.compressed.model, self.reclassed
        module = model.module if found is None else found.module
        if module is None or isinstance(module, fx.GraphModule):
            reason = "It was read as a graph." if found is None else found.reason
            raise UnfitError(f"The network has no class any more. {reason}", hint="compressed.model.module runs and trains it.")
        from lighten.analyze.reclass import configured

        path = configured(module) if model.origin.kind == "huggingface" else None
        return module if path is None else module.get_submodule(path)

    def save(self, folder: str | Path) -> Path:
        """Writes the folder and returns its path: the file, what `lighten.load` reads, recipe, report, page, and the manifest
        last; and `pretrained`, what `from_pretrained` reads, where a step changed a network that came from such a folder and
        its config can say how. The unfinished work that `compress` left there is removed, unless the search was interrupted.

        Raises InputError when the folder cannot be written; then the files that were there before still are.
        """
        folder = Path(folder)
        check_writable(
            folder, 3 * sum(map(len, (self.model_bytes, *self.others.values()))) + self._pretrained_bytes() + 8_000_000
        )
        try:
            self._write(make_folder(folder))
        except OSError as error:
            raise unwritable(Path(error.filename or folder), error) from error
        if not self.interrupted:
            shutil.rmtree(folder / WORK, ignore_errors=True)
        return folder

    def _write(self, folder: Path) -> None:
        """All files are written beside their places first, so that a full disk leaves what was there before."""
        with tempfile.TemporaryDirectory(dir=make_folder(folder / WORK)) as place:
            new = Path(place)
            exported = {self.model_file: self.model_bytes, **self.others}
            for name, data in exported.items():
                write_atomic(new / name, data)
            names = [*exported, *write_archive(self.compressed, new)]
            write_atomic(new / RECIPE_FILE, self.recipe.to_yaml())
            write(self.report, new)
            names += [RECIPE_FILE, JSON_NAME, PAGE_NAME]
            if network := self._pretrained():
                names += write_pretrained(network, self.compressed.model, new)
            stale = _stale(folder, names)
            write_atomic(new / MANIFEST, json.dumps(self._manifest(new, names), indent=2) + "\n")
            for name in (*names, MANIFEST):
                move(new / name, folder / name)
            for name in stale:
                (folder / name).unlink(missing_ok=True)

    def _pretrained(self) -> nn.Module | None:
        if self.reclassed is None or self.compressed.model.origin.kind != "huggingface":
            return None
        return self.reclassed.network

    def _pretrained_bytes(self) -> int:
        network = self._pretrained()
        return sum(value.numel() * value.element_size() for value in network.state_dict().values()) if network else 0

    def _manifest(self, folder: Path, names: list[str]) -> dict[str, Any]:
        files = {name: {"sha256": sha256_of(folder / name), "size_bytes": (folder / name).stat().st_size} for name in names}
        facts = {key: self.report[key] for key in ("versions", "seed", "runtime", "threads", "batch", "metric", "device")}
        return {"format": 1, "files": files, "model": self.model_file, **facts, "data": self.report["data"]}


def shared(
    ranks: Ranks, search: Callable[[], Result], prepared: Prepared, *, reclassed: "Callable[[], Reclassed | None]"
) -> Result:
    """What the first rank's `search` finds, on every rank: the others wait, then carry out the plan that it has chosen."""
    if ranks.world == 1:
        return search()
    result = search() if ranks.number == 0 else None
    texts = ranks.share(result and [encode(result.report).decode(), result.recipe.to_yaml()], is_patient=True)
    files = {} if result is None else {"": result.model_bytes, **result.others}
    content = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()}
    others = {name: value.numpy().tobytes() for name, value in ranks.share_tensors(content).items()}
    if result is not None:
        return result
    recipe = Recipe.from_yaml(texts[1])
    compressed = prepared.realize(recipe.plan or Plan())
    return Result(json.loads(texts[0]), compressed, recipe, others.pop(""), reclassed(), others)


def is_exported(name: str) -> bool:
    """True for the files that runtimes open, and for what belongs to them."""
    return Path(name).stem == STEM and name == Path(name).name


def exported_file(folder: Path, manifest: dict[str, Any]) -> Path:
    """The file for the runtime that was chosen."""
    return folder / str(manifest.get("model", MODEL_FILE))


def _stale(folder: Path, names: list[str]) -> list[str]:
    """Files that an earlier result wrote for `from_pretrained` and this one does not: they would be another network's."""
    if not (folder / MANIFEST).is_file():
        return []
    return [name for name in read_manifest(folder)["files"] if name.startswith(f"{PRETRAINED}/") and name not in names]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `Result.save` wrote. Raises InputError when there is none or it is malformed."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _ = [entry["sha256"] for entry in manifest["files"].values()]
    except OSError as error:
        raise InputError(f"{folder} has no {MANIFEST}: {error.strerror}.", hint="Name a folder that lighten wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST} is malformed.", hint="Name a folder that lighten wrote.") from error
    return manifest


def damaged_files(folder: Path, manifest: dict[str, Any], digest: Callable[[Path], str] = sha256_of) -> list[str]:
    """Names of the files that are missing or whose sha256 is not the manifest's."""
    expected = manifest["files"]
    return [name for name in expected if not (folder / name).is_file() or digest(folder / name) != expected[name]["sha256"]]
