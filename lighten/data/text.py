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
from torch.nn import functional

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.labels import classes
from lighten.data.rows import Rows, divide

_FIRST = ("text_a", "text1", "sentence1", "text")
_SECOND = ("text_b", "text2", "sentence2")
_SHOWN = 200
Record = tuple[str, dict[str, Any]]
_ROBERTA = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm")  # positions start behind the padding's
_LONGEST = 512
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "spm.model", "sentencepiece")


def load_table(path: Path, *, model: Model, seed: int) -> Data:
    """Rows with `text` and `label`, or with two texts (`text_a`, `text_b`) and `score`.

    A sentence encoder given labels is scored by a linear probe. Raises InputError when a column is missing or nothing is
    usable.
    """
    records, bad = read_records(path)
    if not records:
        raise InputError(f"{path} holds no usable row{first_of(bad)}.")
    first, second = _columns({name for _, record in records for name in record}, path)
    _check_task(model, path, is_pairs=second is not None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if second is not None:
        rows = _pairs(records, (first, second), model, bad=bad)
        train, test = divide(_usable(rows, path, bad), seed)
        return Data(str(path), "sentence-similarity", "spearman", test, train, (), tuple(bad), digest)
    rows, labels = _labelled(records, first, model, bad=bad)
    train, test = divide(_usable(rows, path, bad), seed)
    metric = "probe" if model.origin.task == "sentence-similarity" else "accuracy"
    return Data(str(path), "text-classification", metric, test, train, labels, tuple(bad), digest)


def _columns(have: set[str], path: Path) -> tuple[str, str | None]:
    """The column of the texts, and that of the second texts, None where rows have a label instead."""
    first = next((name for name in _FIRST if name in have), None)
    second = next((name for name in _SECOND if name in have), None)
    if first is None or ("label" if second is None else "score") not in have:
        raise InputError(
            f"{path} has the columns {', '.join(sorted(have))}.", hint="Needed: text and label, or text_a, text_b and score."
        )
    return first, second


def _check_task(model: Model, path: Path, *, is_pairs: bool) -> None:
    task = model.origin.task
    if task == "language-model":
        raise InputError(f"{path} is a table, {model.origin.source} a language model.", hint="Give it a .txt file.")
    if is_pairs and task not in (None, "sentence-similarity"):
        raise InputError(f"{path} holds pairs of texts, {model.origin.source} is for {task}.", hint="Give it text and label.")


def load_plain_text(path: Path, *, model: Model) -> Data:
    """A text in windows of as many tokens as the model takes, at most 512; the first 30 % for calibration, scored by
    perplexity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable UTF-8 text: {error}.") from error
    if model.origin.task not in (None, "language-model"):
        raise InputError(
            f"{path} is plain text, {model.origin.source} is for {model.origin.task}.",
            hint="Give it a .csv with text and label.",
        )
    tokenizer = _tokenizer(model)
    window = _limit(tokenizer, model)
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


def read_records(path: Path) -> tuple[list[Record], list[BadRow]]:
    """The rows of a .csv or .jsonl, each with its line, and those that are none. Raises InputError for an unreadable file."""
    records: list[Record] = []
    bad: list[BadRow] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark in front
            if path.suffix.lower() == ".csv":
                _read_rows(csv.DictReader(file), records, bad)
            else:
                _read_lines(file, records, bad)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return records, bad


def _read_rows(reader: "csv.DictReader[str]", records: list[Record], bad: list[BadRow]) -> None:
    for row in reader:
        where = f"line {reader.line_num}"
        if None in row:  # where DictReader puts what goes beyond the header
            bad.append(BadRow(where, "more fields than the header has; a text with commas must be in quotes"))
        else:
            records.append((where, dict(row)))


def _read_lines(file: Iterable[str], records: list[Record], bad: list[BadRow]) -> None:
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


def _labelled(records: list[Record], column: str, model: Model, *, bad: list[BadRow]) -> tuple[Rows, tuple[str, ...]]:
    kept: list[tuple[tuple[str, ...], str]] = []
    for where, record in records:
        text, label = str(record.get(column) or "").strip(), record.get("label")
        why = _why_unusable(record.get(column), label)
        if why is None:
            kept.append(((where, text), str(label).strip()))
        else:
            bad.append(BadRow(where, why))
    labels, places = classes((label for _, label in kept), model.origin.labels)
    targets = torch.tensor([places[label] for _, label in kept], dtype=torch.int64)
    return _rows([row for row, _ in kept], targets, model), labels


def _why_unusable(text: Any, label: Any) -> str | None:
    if text is None or not str(text).strip():
        return "no text"
    if label is None or not str(label).strip():
        return "no label"
    if isinstance(text, dict | list):
        return f"the text is a {type(text).__name__}"
    return f"the label is a {type(label).__name__}" if isinstance(label, dict | list) else None


def _pairs(records: list[Record], columns: tuple[str, str], model: Model, *, bad: list[BadRow]) -> Rows:
    kept: list[tuple[str, ...]] = []
    scores: list[float] = []
    for where, record in records:
        texts = tuple(str(record.get(column) or "").strip() for column in columns)
        try:
            score = float(record.get("score", ""))
        except (TypeError, ValueError):
            bad.append(BadRow(where, f"score {record.get('score')!r} is not a number"))
            continue
        if all(texts) and math.isfinite(score):
            kept.append((where, *texts))
            scores.append(score)
        else:
            bad.append(BadRow(where, "no text" if not all(texts) else f"score is {score}"))
    return _rows(kept, torch.tensor(scores, dtype=torch.float64), model)


def _rows(rows: list[tuple[str, ...]], targets: Tensor, model: Model) -> Rows:
    """rows: (where, text) or (where, text, text). All first texts of a batch, then all second ones, padded to the longest."""
    tokenizer = _tokenizer(model)
    limit = _limit(tokenizer, model)

    def collate(rows: list[Any]) -> tuple[Tensor, ...]:
        flat = [row[place] for place in range(1, len(rows[0])) for row in rows]
        encoded = tokenizer(flat, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return _two_wide(encoded["input_ids"], tokenizer.pad_token_id or 0), _two_wide(encoded["attention_mask"], 0)

    return Rows(rows, collate, targets, lambda row, index: Example(row[0], text=" | ".join(row[1:])[:_SHOWN]))


def _two_wide(values_BT: Tensor, padding: int) -> Tensor:
    """At least two tokens: a traced graph whose number of tokens may vary takes no single one."""
    return functional.pad(values_BT.long(), (0, max(0, 2 - values_BT.shape[1])), value=padding)


def _tokenizer(model: Model) -> Any:
    """Texts of a batch are padded under the attention mask, so any token will do for those that have none of their own."""
    tokenizer = tokenizer_of(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def tokenizer_of(model: Model) -> Any:
    """The tokenizer of the model's folder. Raises InputError when there is none or it cannot be loaded."""
    if model.origin.folder is None:
        raise InputError(
            f"{model.origin.source} has no tokenizer.", hint="Text needs a Hugging Face folder, or batches from Python."
        )
    if not any(name.startswith(_TOKENIZERS) for name in model.origin.files):
        # some classes would make an empty tokenizer, to which every word is unknown
        raise InputError(f"{model.origin.folder} has no tokenizer file.", hint="tokenizer.json, as save_pretrained writes it.")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise InputError("Text needs transformers.", hint="pip install lighten[huggingface]") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model.origin.folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its classes make of the files
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"The tokenizer in {model.origin.folder} cannot be loaded: {first}") from error
    return tokenizer


def _limit(tokenizer: Any, model: Model) -> int:
    """The most tokens of a text: what tokenizer, sentence encoder and position table take, at most 512."""
    folder = model.origin.folder or Path()
    sentence, config = (_settings(folder / name) for name in ("sentence_bert_config.json", "config.json"))
    unused = config.get("pad_token_id", 1) + 1 if config.get("model_type") in _ROBERTA else 0
    positions = [config[name] - unused for name in ("max_position_embeddings", "n_positions") if config.get(name)]
    limits = (tokenizer.model_max_length, sentence.get("max_seq_length"), *positions)
    return int(min(_LONGEST, *(limit for limit in limits if limit)))


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is corrupt: {error}.") from error
    return settings if isinstance(settings, dict) else {}


def _usable(rows: Rows, path: Path, bad: list[BadRow]) -> Rows:
    if not len(rows):
        raise InputError(f"{path} holds no usable row{first_of(bad)}.")
    return rows


def first_of(bad: list[BadRow]) -> str:
    """How many rows are bad and why the first one is, to end an error's sentence."""
    return f"; {len(bad)} are bad, the first: {bad[0].where} ({bad[0].why})" if bad else ""
