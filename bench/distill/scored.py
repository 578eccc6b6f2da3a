"""Scores of exported files, and what was done before."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import lighten
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.engine.files import write_atomic
from lighten.export.onnx import OnnxExporter


def hits(model: Model, data: Data, *, limit: int | None = None) -> str:
    """For each test example 1 where the exported file is right, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        exporter = OnnxExporter()
        session = exporter.open(exporter.write_float(model, Path(folder) / "scored.onnx").path, lighten.Target())
        found = [(session(*batch.inputs).argmax(1) == batch.target).int().tolist() for batch in data.test.batches(500, limit)]
    return "".join(str(value) for part in found for value in part)


def spearman(model: Model, data: Data) -> float:
    """Rank correlation of the cosine with people's ratings, through the exported file."""
    with tempfile.TemporaryDirectory() as folder:
        exporter = OnnxExporter()
        session = exporter.open(exporter.write_float(model, Path(folder) / "scored.onnx").path, lighten.Target())
        cosines, ratings = [], []
        for batch in data.test.batches(32):
            first, second = session(*batch.inputs).chunk(2)
            cosines += torch.cosine_similarity(first, second).tolist()
            ratings += batch.target.tolist()
    return float(np.round(spearmanr(cosines, ratings).statistic, 4))


def remembered(place: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, or gave in an earlier run."""
    path = place.with_name(f"{place.name}.json")
    if not path.is_file():
        write_atomic(path, json.dumps(make()))
    return json.loads(path.read_text())
