"""PyTorch .pt2 files, which `torch.export.save` writes.

torch's own reader trusts such a file: it unpickles what lies in it, evaluates the formulas of sizes as Python, and takes any
name below `torch` for an operator. So the archive is taken apart here, everything that could run code is refused, and torch is
given a clean copy of what is left.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file it refuses; nothing is unpickled here
from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError, LightenError, UnfitError
from lighten.core.model import Model, Origin
from lighten.engine.quiet import quiet
from lighten.engine.structure import from_structure, to_structure

MAX_TEXT_BYTES = 1 << 28  # of the description of the network
MAX_MEMBERS = 100_000
MAX_FORMULA = 4000  # characters
_TARGET = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?|_operator\.\w+|torch\.sym_\w+|math\.\w+")
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=!&|~]*")
_QUOTED = re.compile(r"'([suz]\d+|zuf\d+|-?\d+(\.\d+)?)'")  # Symbol('s0'), Float('2.0')
_POWER_OF_NUMBER = re.compile(r"\*\*|Pow\((?!Symbol\()")  # which could take all memory
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[suz]\d+|zuf\d+")
_FUNCTIONS = {"FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"}
_FUNCTIONS |= {"IntTrueDiv", "FloatTrueDiv", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "oo"}
_FUNCTIONS |= {"ToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "Identity", "True", "False", "Add", "Mul", "Pow"}
_FUNCTIONS |= {"Symbol", "Integer", "Rational", "Float", "precision", "positive", "nonnegative", "integer", "real", "zero"}
_SAVE_ANEW = "Save it anew by torch.export.save(torch.export.export(module, example), 'x.pt2') with this version of torch."


def read_exported(path: Path) -> Model:
    """The network in `path`: a graph of ATen operators whose parameters train; its batch normalization keeps its statistics.

    Sizes that were exported as dynamic stay so. Raises InputError when the archive is damaged, compressed, or holds anything
    that would run code; UnfitError when the network takes or gives something other than tensors.
    """
    clean = _clean_copy(path)
    try:
        with quiet():
            program = torch.export.load(clean)
            inner = program.module(check_guards=False)
    except Exception as error:  # torch's reader goes wrong in as many ways as a file can
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path} cannot be loaded: {first.strip()[:200]}", hint=_SAVE_ANEW) from error
    return _model(program, inner, path)


def _model(program: Any, inner: nn.Module, path: Path) -> Model:
    example, keywords = program.example_inputs or ((), {})
    if keywords or not example or not all(isinstance(value, Tensor) for value in example):
        raise UnfitError(
            f"{path} was not exported with tensors as its positional inputs.", hint="export(module, (tensor, ...))."
        )
    structure, tensors = to_structure(inner)  # type: ignore[arg-type]
    learned = dict(inner.named_parameters())
    values = {
        name: nn.Parameter(value.clone()) if name in learned and value.is_floating_point() else value.clone()
        for name, value in tensors.items()
    }
    placeholders = [node for node in inner.graph.nodes if node.op == "placeholder"]  # type: ignore[union-attr]
    dynamic = tuple(
        {dim: str(size) for dim, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)}
        for node in placeholders
    )
    doubled = tuple(
        value.repeat(2, *[1] * (value.dim() - 1)) if 0 in dims and value.shape[0] == 1 else value
        for value, dims in zip(example, dynamic, strict=True)
    )
    names = tuple(str(node.target) for node in placeholders)
    outputs = len(structure["nodes"][-1]["args"])
    named = ("output",) if outputs == 1 else tuple(f"output_{number}" for number in range(outputs))
    return Model(from_structure(structure, values), doubled, Origin("exported", str(path), dynamic=dynamic), names, named)


def _clean_copy(path: Path) -> io.BytesIO:
    """An archive in memory with the description, the weights and the example, all checked."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
            for name, info in _entries(archive, path).items():
                clean.writestr(name, _checked(name.partition("/")[2], archive.read(info), path))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path} is not a .pt2 archive, or is damaged: {error}.", hint=_SAVE_ANEW) from error
    copy.seek(0)
    return copy


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """By name. torch stores its files as they are: a compressed one may be a bomb."""
    found = archive.infolist()
    if len(found) > MAX_MEMBERS:
        raise InputError(f"{path} holds {len(found):,} files.", hint=_SAVE_ANEW)
    packed = [
        info.filename for info in found if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size
    ]
    if packed:
        raise InputError(f"{path} is compressed ({packed[0]}), which torch.export.save never does.", hint=_SAVE_ANEW)
    found = [info for info in found if not info.filename.partition("/")[2].startswith(("data/aotinductor/", "extra/"))]
    entries = {info.filename: info for info in found}
    total = sum(info.file_size for info in found)
    if len(entries) < len(found) or total > path.stat().st_size or any(".." in name.split("/") for name in entries):
        raise InputError(f"{path} is damaged: its files overlap or lie outside.", hint=_SAVE_ANEW)
    if not any(re.fullmatch(r"[^/]*/models/\w+\.json", name) for name in entries):
        what = "a TorchScript file" if any("/code/" in name for name in entries) else "an archive of something else"
        raise InputError(f"{path} is {what}, whose code lighten never runs.", hint=_SAVE_ANEW)
    return entries


def _checked(name: str, data: bytes, path: Path) -> bytes:
    """The content of a file in the archive, if it cannot run code."""
    if name.endswith(".json"):
        return _checked_text(name, data, path)
    if name.startswith("data/sample_inputs/"):
        _refuse_objects(name, data, path)
    elif name.startswith(("data/weights/", "data/constants/")) and (name.endswith(".pt") or "custom_obj" in name):
        raise InputError(f"{path} is refused: {name} is a pickle, and loading that would run its code.", hint=_SAVE_ANEW)
    return data


def _checked_text(name: str, data: bytes, path: Path) -> bytes:
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{path}: {name} has {len(data):,} bytes.", hint=_SAVE_ANEW)
    try:
        text = json.loads(data)
        for key, value in _strings(text):
            _check_word(key, value, path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is damaged: {error}.", hint=_SAVE_ANEW) from error
    if isinstance(text, dict) and text.get("guards_code"):
        text["guards_code"] = []  # Python text that torch would compile
    return json.dumps(text).encode()


def _strings(text: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its key."""
    waiting = [("", text)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        else:
            yield key, value


def _check_word(key: str, value: Any, path: Path) -> None:
    if key == "use_pickle" and value:
        raise InputError(f"{path} is refused: it holds a pickle, and loading that would run its code.", hint=_SAVE_ANEW)
    if key == "target" and isinstance(value, str) and value and not _TARGET.fullmatch(value):
        raise InputError(f"{path} names {value[:80]!r}, which is not an operator that is run.", hint=_SAVE_ANEW)
    if key == "expr_str" and not (isinstance(value, str) and _is_formula(value)):
        raise InputError(f"{path} has {str(value)[:80]!r} for a size, which is refused.", hint=_SAVE_ANEW)


def _is_formula(text: str) -> bool:
    """Whether it is arithmetic on the names of sizes, and nothing else."""
    if len(text) > MAX_FORMULA or _POWER_OF_NUMBER.search(text):
        return False
    bare = _QUOTED.sub("", text)
    return bool(_EXPRESSION.fullmatch(bare)) and all(
        _SYMBOL.fullmatch(word) or word in _FUNCTIONS for word in _WORD.findall(bare)
    )


def _refuse_objects(name: str, data: bytes, path: Path) -> None:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(f"{path} is refused: {name} holds objects whose loading runs code.", hint=_SAVE_ANEW) from error
    except LightenError:
        raise
    except Exception as error:  # a damaged file takes torch's reader anywhere
        raise InputError(f"{path}: {name} is damaged: {str(error)[:120]}.", hint=_SAVE_ANEW) from error
