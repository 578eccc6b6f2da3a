"""`lighten.load_data`: every data source becomes Data."""

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lighten.core.data import Data, Split
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.core.run import Progress, Run, Silent
from lighten.data.synthetic import load_synthetic, synthetic_count

_READ = (
    "a folder of images or .wav files by class, recordings with transcripts, .npz, .csv, .jsonl, .txt, "
    "package.module:callable, synthetic, or batches in Python"
)


def load_data(
    source: str | Path | Data | Iterable[Any], *, model: Model, seed: int = 0, progress: Progress | None = None
) -> Data:
    """The examples behind `source`, prepared for `model`.

    Of a file or folder with one split only, 30 % (of each class) become the training split by `seed`; below ten examples there
    is none, and calibration uses the test inputs. So it is with batches from Python, which are never divided: give a tuple
    (train, test). "synthetic" and "synthetic:N" are made from the network itself, half to calibrate on, half to score on; that
    takes long enough to show `progress`. Raises InputError when nothing usable is there.
    """
    if type(source) is Data:
        return source
    if not isinstance(source, str | Path):
        from lighten.data.iterable import load_iterable

        return load_iterable(source, model=model)  # type: ignore[arg-type]
    count = synthetic_count(source)
    if count is not None:
        return load_synthetic(model, count, run=Run(seed, progress=progress or Silent()))
    path = Path(source)
    if model.origin.task == "speech-recognition" and path.exists():
        return _speech(path, model, seed)
    if not path.exists() and ":" in str(source):
        return _from_callable(str(source), model)
    if not path.exists():
        raise _missing(path)
    return _from_folder(path, model, seed) if path.is_dir() else _from_file(path, model, seed)


def calibrated_on(
    data: Data, source: str | Path | Data | Iterable[Any], *, model: Model, seed: int = 0, progress: Progress | None = None
) -> Data:
    """The data with a training split from elsewhere: that of `source`, or all of it where it has one split or is synthetic.

    Raises InputError as `load_data` does, and where a probe, which is fitted to the training split's labels, would have none.
    """
    if data.metric == "probe":
        raise InputError("A probe is fitted to the training examples' labels; it cannot be calibrated on other data.")
    count = synthetic_count(source)
    if count is not None:
        other = load_synthetic(model, count, run=Run(seed, progress=progress or Silent()), is_divided=False)
    else:
        other = load_data(source, model=model, seed=seed)
    digest = other.digest or hashlib.sha256(other.source.encode()).hexdigest()
    notes = other.notes if count is not None else (f"Calibrated on {other.source}.",)
    return replace(data, train=other.calibration, calibration_digest=digest, notes=(*data.notes, *notes))


def require_labels(data: Data, source: object) -> Data:
    """The data itself; raises InputError when it comes from files without labels, which could only be scored by agreement
    with the original. Batches made in Python may lack labels.
    """
    if data.metric == "agreement" and isinstance(source, str | Path) and Path(source).exists():
        raise InputError(f"{source} has no labels.", hint="--metric agreement scores agreement with the original instead.")
    return data


def check_labels(data: Data, *, num_outputs: int | None) -> None:
    """Raises InputError naming the first label that no output of the model stands for."""
    if num_outputs is None or not data.task.endswith("classification") or data.metric != "accuracy":
        return
    for targets, index in _targets(data.test):
        wrong = (targets < 0) | (targets >= num_outputs)
        if bool(wrong.any()):
            place = int(wrong.int().argmax())
            raise InputError(
                f"Label {int(targets[place])} of {data.test.describe(index[place]).title} is out of range: "
                f"the model has {num_outputs} outputs.",
                hint=f"Labels are 0 to {num_outputs - 1}.",
            )


def _targets(split: Split) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """The targets and their positions. Splits of lighten know them all; from others they come batch by batch."""
    known = getattr(split, "targets", None)
    if isinstance(known, Tensor):
        yield known, range(len(known))
        return
    for batch in split.batches(256):
        if batch.target is not None:
            yield batch.target, batch.index


def _missing(path: Path) -> InputError:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"Did you mean {path.parent / near[0]}?" if near else f"Data is {_READ}."
    return InputError(f"The data {path} does not exist.", hint=hint)


def _speech(path: Path, model: Model, seed: int) -> Data:
    from lighten.data.speech import HINT, load_speech

    if path.is_dir() or path.suffix.lower() in (".csv", ".jsonl"):
        return load_speech(path, model=model, seed=seed)
    raise InputError(f"{path} holds no transcripts, and {model.origin.source} is for speech recognition.", hint=HINT)


def _from_folder(folder: Path, model: Model, seed: int) -> Data:
    from lighten.data import audio, images

    names = [path.suffix.lower() for path in folder.rglob("*") if path.is_file()]
    num_images, num_sounds = sum(name in images.SUFFIXES for name in names), names.count(".wav")
    if not num_images and not num_sounds:
        raise InputError(f"{folder} holds no image and no .wav file.", hint=f"Data is {_READ}.")
    if num_images >= num_sounds:
        return images.load_images(folder, model=model, seed=seed)
    return audio.load_audio(folder, model=model, seed=seed)


def _from_file(path: Path, model: Model, seed: int) -> Data:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from lighten.data.arrays import load_arrays

        return load_arrays(path, model=model, seed=seed)
    if suffix in (".csv", ".jsonl"):
        from lighten.data.text import load_table

        return load_table(path, model=model, seed=seed)
    if suffix == ".txt":
        from lighten.data.text import load_plain_text

        return load_plain_text(path, model=model)
    raise InputError(f"{path}: {suffix or 'this kind of'} file is not read.", hint=f"Data is {_READ}.")


def _from_callable(target: str, model: Model) -> Data:
    from lighten.data.iterable import load_iterable
    from lighten.engine.importing import call

    made = call(target)
    return made if type(made) is Data else load_iterable(made, model=model, source=target)
