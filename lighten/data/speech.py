"""Recordings with what is said in them: a .csv or .jsonl with `audio` and `text`, or .wav files each with a .txt of its name.

The model folder's feature extractor prepares the sound and its tokenizer the transcript, so that both networks are scored on
the very tokens they were trained on.
Dimension key: N recordings, L tokens of the longest transcript.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lighten.core.data import BadRow, Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.audio import check_sound, extractor_of
from lighten.data.folders import files_of, splits
from lighten.data.rows import Alphabet, Rows, divide
from lighten.data.text import first_of, read_records, tokenizer_of
from lighten.data.wav import read_wav, wav_length
from lighten.engine.files import sha256_of

TASK = "speech-recognition"
HINT = "Give a .csv or .jsonl with audio and text, or a folder of .wav files, each beside a .txt of the same name."
_COLUMNS = ("audio", "text")
_SHOWN = 200
_PADDING = -1


@dataclass(frozen=True)
class _Clip:
    """title: for the report. ids: the transcript's tokens, without CTC's blanks."""

    title: str
    path: Path
    text: str
    ids: tuple[int, ...] = ()


def load_speech(source: Path, *, model: Model, seed: int) -> Data:
    """Recordings for a CTC model, scored by word error rate. `audio` is relative to the table; train/ and test/ in a folder are
    its splits.

    A missing recording, or one without a transcript, is a bad row. Raises InputError when a column is missing, nothing is
    usable, or the model's folder lacks its feature extractor or tokenizer.
    """
    bad: list[BadRow] = []
    train_clips, test_clips = _folder(source, bad) if source.is_dir() else (None, _table(source, bad))
    scribe = _Scribe(tokenizer_of(model), model)
    train, test = (scribe.rows(clips or [], bad) for clips in (train_clips, test_clips))
    if not len(test):
        raise InputError(f"{source} holds no usable recording{first_of(bad)}.", hint=HINT)
    digest = _digest(train, test)
    kept, test = (train, test) if len(train) else divide(test, seed)
    return Data(str(source), TASK, "word_error_rate", test, kept, (), tuple(bad), digest)


class _Scribe:
    """Makes clips into rows with the preprocessing of one model."""

    def __init__(self, tokenizer: Any, model: Model) -> None:
        extract = extractor_of(model)
        if extract is None:
            raise InputError(f"{model.origin.folder} has no feature extractor.", hint="It needs preprocessor_config.json.")
        if tokenizer.pad_token_id is None:
            raise InputError(f"The tokenizer in {model.origin.folder} has no padding token, which CTC takes for its blank.")
        self.extract, self.tokenizer = extract, tokenizer
        self.change_case = _case_of(tokenizer)
        self.alphabet = Alphabet(tokenizer.pad_token_id, self._spell)

    def rows(self, clips: Sequence[_Clip], bad: list[BadRow]) -> Rows:
        """Each file is decoded once to find the bad ones, then again batch by batch."""
        kept = [written for clip in clips if (written := self._written(clip, bad)) is not None]
        longest = max((len(clip.ids) for clip in kept), default=0)
        ids_NL = torch.full((len(kept), longest), _PADDING, dtype=torch.int64)
        for row_L, clip in zip(ids_NL, kept, strict=True):
            row_L[: len(clip.ids)] = torch.tensor(clip.ids)
        # padding would change what a network of raw samples says, so recordings of other lengths do not share a batch
        return Rows(kept, self._collate, ids_NL, _show, _length, self.alphabet)

    def _collate(self, clips: list[Any]) -> tuple[Tensor, ...]:
        return (self.extract([read_wav(clip.path) for clip in clips]),)

    def _written(self, clip: _Clip, bad: list[BadRow]) -> _Clip | None:
        ids = self.tokenizer(self.change_case(clip.text), add_special_tokens=False)["input_ids"]
        try:
            check_sound(clip.path)
        except FileNotFoundError:
            bad.append(BadRow(clip.title, f"{clip.path} does not exist"))
        except (OSError, ValueError) as error:
            bad.append(BadRow(clip.title, str(error)))
        else:
            if None not in ids and self._spell(ids).strip():
                return _Clip(clip.title, clip.path, clip.text, tuple(ids))
            bad.append(BadRow(clip.title, "the tokenizer has no token for what is said"))
        return None

    def _spell(self, ids: Sequence[int]) -> str:
        # a tokenizer made for CTC would merge the double letters of a word, which are not repeats any more
        merging = {"group_tokens": False} if hasattr(self.tokenizer, "word_delimiter_token") else {}
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False, **merging))


def _case_of(tokenizer: Any) -> Any:
    """What brings a transcript to the letters there are: a network that knows capitals only can write nothing else."""
    special = set(tokenizer.all_special_tokens)
    letters = "".join(token for token in tokenizer.get_vocab() if token not in special)
    if letters.upper() == letters != letters.lower():
        return str.upper
    return str.lower if letters.lower() == letters != letters.upper() else str


def _table(path: Path, bad: list[BadRow]) -> list[_Clip]:
    records, unread = read_records(path)
    bad.extend(unread)
    have = {name for _, record in records for name in record}
    if records and not have.issuperset(_COLUMNS):
        raise InputError(f"{path} has the columns {', '.join(sorted(have))}.", hint="Speech needs audio and text.")
    clips = []
    for where, record in records:
        name, text = record.get("audio"), record.get("text")
        if not isinstance(name, str) or not name.strip():
            bad.append(BadRow(where, "no audio"))
        elif not isinstance(text, str) or not text.strip():
            bad.append(BadRow(where, "no transcript"))
        else:
            clips.append(_Clip(f"{where}, {name.strip()}", path.parent / name.strip(), " ".join(text.split())))
    return clips


def _folder(folder: Path, bad: list[BadRow]) -> tuple[list[_Clip] | None, list[_Clip]]:
    """(train or None, test)."""
    train, test = splits(folder)
    return None if train is None else _recordings(train, bad), _recordings(test, bad)


def _recordings(folder: Path, bad: list[BadRow]) -> list[_Clip]:
    clips = []
    for path in files_of(folder, (".wav",)):
        beside = path.with_suffix(".txt")
        try:
            text = " ".join(beside.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            bad.append(BadRow(str(path), f"no transcript: {beside.name} is missing"))
        except (OSError, UnicodeDecodeError) as error:
            bad.append(BadRow(str(path), f"{beside.name} is not readable UTF-8 text: {error}"))
        else:
            clips.append(_Clip(path.relative_to(folder).as_posix(), path, text))
    return clips


def _length(clip: _Clip) -> tuple[int, int]:
    return wav_length(clip.path)


def _show(clip: _Clip, index: int) -> Example:
    return Example(clip.title, text=clip.text[:_SHOWN])


def _digest(*parts: Rows) -> str:
    """Of what was heard and what was said, wherever the files lie."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\0".encode())
        for clip in part.rows:
            digest.update(f"{sha256_of(clip.path)}\0{clip.text}\0".encode())
    return digest.hexdigest()
