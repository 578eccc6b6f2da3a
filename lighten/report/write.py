"""Writes the report into its folder, all or nothing a file: a reader never sees half of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.core.errors import InputError
from lighten.engine.files import unwritable, write_atomic
from lighten.report.page import page

JSON_NAME = "report.json"
PAGE_NAME = "report.html"


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json and report.html, replacing what is there; the folder is made when missing.

    Numbers that are not finite become null, since JSON has no word for them. Raises InputError when the report holds something
    that is no JSON data, before anything is written, or when the folder cannot be written.
    """
    data, shown = encode(report), page(report).encode("utf-8", "replace")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_atomic(folder / JSON_NAME, data)
    write_atomic(folder / PAGE_NAME, shown)


def encode(report: Mapping[str, Any]) -> bytes:
    """The report as indented JSON in UTF-8; the same report gives the same bytes. Raises InputError when it is no JSON data."""
    try:
        content = json.dumps(_finite(report), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The report holds something that JSON cannot: {error}.") from error
    # A file name that is not UTF-8 holds half surrogates; as \udcXX they are valid JSON and read back unchanged.
    return f"{content}\n".encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    is_lost = isinstance(value, float) and value - value != 0  # infinity or NaN
    return None if is_lost else value
