"""Texts: .csv and .jsonl with text and label, or two texts and a score; .txt for language models. The model folder's
tokenizer is used.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.rows import Rows, divide

_FIRST = ("text_a", "text1", "sentence1", "text")
_SECOND = ("text_b", "text2", "sentence2")
_SHOWN = 200
_LONGEST = 512


def load_table(path: Path, *, model: Model, seed: int) -> Data:
    """Rows with `text` and `label`, or with two texts (`text_a`, `text_b`) and `score`.

    A sentence encoder given labels is scored by a linear probe. Raises InputError when a column is missing or nothing is
    usable.
    """
    records, bad = _read(path)
    if not records:
        raise InputError(f"{path} holds no usable row{_first(bad)}.")
    columns = set(records[0][1])
    first = next((name for name in _FIRST if name in columns), None)
    second = next((name for name in _SECOND if name in columns), None)
    if first is None or ("label" not in columns and second is None):
        have = ", ".join(sorted(columns))
        raise InputError(f"{path} has the columns {have}.", hint="Needed: text and label, or two texts and a score.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if second is not None:
        rows = _pairs(records, (first, second), model, bad=bad)
        train, test = divide(_usable(rows, path, bad), seed)
        return Data(str(path), "sentence-similarity", "spearman", test, train, (), tuple(bad), digest)
    rows, labels = _labelled(records, first, model, bad=bad)
    train, test = divide(_usable(rows, path, bad), seed)
    metric = "probe" if model.origin.task == "sentence-similarity" else "accuracy"
    return Data(str(path), "text-classification", metric, test, train, labels, tuple(bad), digest)


def load_plain_text(path: Path, *, model: Model) -> Data:
    """A text in windows of as many tokens as the model takes, at most 512; the first 30 % for calibration, scored by
    perplexity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable UTF-8 text: {error}.") from error
    tokenizer = _tokenizer(model)
    window = min(_LONGEST, _limit(tokenizer))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"][0]
    rows = [part for part in ids.split(window) if len(part) >= 2]
    if not rows:
        raise InputError(f"{path} holds fewer than two tokens.")
    if len(rows) > 1 and len(rows[-1]) < window:
        rows = rows[:-1]

    def collate(parts: list[Any]) -> tuple[Tensor, ...]:
        stacked = torch.stack(parts)
        return stacked, torch.ones_like(stacked)

    def show(part: Any, index: int) -> Example:
        return Example(f"window {index}", text=str(tokenizer.decode(part))[:_SHOWN])

    num_train = int(0.3 * len(rows)) if len(rows) >= 10 else 0
    train = Rows(rows[:num_train], collate, None, show) if num_train else None
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Data(str(path), "language-model", "perplexity", Rows(rows[num_train:], collate, None, show), train, digest=digest)


def _read(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[BadRow]]:
    records: list[tuple[str, dict[str, Any]]] = []
    bad: list[BadRow] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                records = [(f"row {number}", dict(row)) for number, row in enumerate(csv.DictReader(file), 2)]
            else:
                _read_lines(file, records, bad)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return records, bad


def _read_lines(file: Iterable[str], records: list[tuple[str, dict[str, Any]]], bad: list[BadRow]) -> None:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            bad.append(BadRow(f"line {number}", f"not JSON: {error}"))
            continue
        if isinstance(record, dict):
            records.append((f"line {number}", record))
        else:
            bad.append(BadRow(f"line {number}", "not a JSON object"))


def _labelled(
    records: list[tuple[str, dict[str, Any]]], column: str, model: Model, *, bad: list[BadRow]
) -> tuple[Rows, tuple[str, ...]]:
    kept: list[tuple[str, str]] = []
    for where, record in records:
        text, label = str(record.get(column) or "").strip(), record.get("label")
        if not text or label is None or not str(label).strip():
            bad.append(BadRow(where, "no text" if not text else "no label"))
        else:
            kept.append((text, str(label).strip()))
    labels = _label_names({label for _, label in kept}, model)
    position = {label.lower(): index for index, label in enumerate(labels)}
    targets = torch.tensor([position[label.lower()] for _, label in kept], dtype=torch.int64)
    return _rows([(text,) for text, _ in kept], targets, model), labels


def _label_names(found: set[str], model: Model) -> tuple[str, ...]:
    """The model's labels where all found ones are among them; numbers are positions; else the names in order."""
    known = {label.lower() for label in model.origin.labels}
    if all(label.lower() in known for label in found):
        return model.origin.labels
    if all(label.isdigit() for label in found) and found:
        count = max(int(label) for label in found) + 1
        if count > 10_000:
            raise InputError(f"A label is {count - 1}; classes are numbered from 0.")
        own = model.origin.labels
        return own if len(own) >= count and not known & found else tuple(str(index) for index in range(count))
    return tuple(sorted(found))


def _pairs(records: list[tuple[str, dict[str, Any]]], columns: tuple[str, str], model: Model, *, bad: list[BadRow]) -> Rows:
    kept: list[tuple[str, ...]] = []
    scores: list[float] = []
    for where, record in records:
        texts = tuple(str(record.get(column) or "").strip() for column in columns)
        try:
            score = float(record.get("score", ""))
        except (TypeError, ValueError):
            bad.append(BadRow(where, f"score {record.get('score')!r} is not a number"))
            continue
        if all(texts) and not math.isnan(score):
            kept.append(texts)
            scores.append(score)
        else:
            bad.append(BadRow(where, "no text" if not all(texts) else "score is NaN"))
    return _rows(kept, torch.tensor(scores, dtype=torch.float64), model)


def _rows(texts: list[tuple[str, ...]], targets: Tensor, model: Model) -> Rows:
    """All first texts of a batch, then all second ones, padded to the longest."""
    tokenizer = _tokenizer(model)
    limit = min(_LONGEST, _limit(tokenizer))

    def collate(rows: list[Any]) -> tuple[Tensor, ...]:
        flat = [row[place] for place in range(len(rows[0])) for row in rows]
        encoded = tokenizer(flat, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    return Rows(texts, collate, targets, lambda row, index: Example(f"row {index}", text=" | ".join(row)[:_SHOWN]))


def _tokenizer(model: Model) -> Any:
    if model.origin.folder is None:
        raise InputError(
            f"{model.origin.source} has no tokenizer.", hint="Text needs a Hugging Face folder, or batches from Python."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise InputError("Text needs transformers.", hint="pip install lighten[huggingface]") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.origin.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"The tokenizer in {model.origin.folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _limit(tokenizer: Any) -> int:
    return int(min(tokenizer.model_max_length, 1_000_000))


def _usable(rows: Rows, path: Path, bad: list[BadRow]) -> Rows:
    if not len(rows):
        raise InputError(f"{path} holds no usable row{_first(bad)}.")
    return rows


def _first(bad: list[BadRow]) -> str:
    return f"; {len(bad)} are bad, the first: {bad[0].where} ({bad[0].why})" if bad else ""
