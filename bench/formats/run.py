"""What becomes of real ONNX files, and of onnx's own tests of operators: the table in docs/formats.md.

    python bench/formats/run.py FOLDER [--targets onnxruntime,openvino] [--only NAME] [--table]

Each file is loaded and compared with ONNX Runtime on random numbers, trained for a step, pruned, quantized to int8 and run
again, and written for each target. Finished files are kept in results.json beside this script;
--table writes only the table anew.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import node_tests  # noqa: E402
from sources import SOURCES, Source  # noqa: E402

import lighten  # noqa: E402
from lighten import catalog  # noqa: E402
from lighten.analyze.trace import trace  # noqa: E402
from lighten.core.cost import Target  # noqa: E402
from lighten.core.data import Batch, Data, Example  # noqa: E402
from lighten.core.recipe import Step  # noqa: E402
from lighten.core.run import Run  # noqa: E402
from lighten.engine.files import write_atomic  # noqa: E402
from lighten.engine.onnx_session import OnnxSession  # noqa: E402
from lighten.export.onnx import OnnxExporter  # noqa: E402

RESULTS, PAGE = HERE / "results.json", HERE.parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- written by bench/formats/run.py -->", "<!-- end of what it writes -->"
NUM_BATCHES = 8


class Random:
    """Batches of random inputs for a model, as a split of data."""

    def __init__(self, model: lighten.Model, highest: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch_size = len(model.example[0])
        self.inputs = [tuple(_random(value, highest, generator) for value in model.example) for _ in range(NUM_BATCHES)]

    def __len__(self) -> int:
        return self.batch_size * NUM_BATCHES

    def batches(self, size: int, limit: int | None = None) -> Any:
        """All of them, whatever size is asked for: a file may fix it."""
        for number, inputs in enumerate(self.inputs):
            if limit is None or number * self.batch_size < limit:
                start = number * self.batch_size
                yield Batch(inputs, None, tuple(range(start, start + self.batch_size)))

    def describe(self, index: int) -> Example:
        """A row."""
        return Example(f"row {index}")


def _random(value: Tensor, highest: int, generator: torch.Generator) -> Tensor:
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator)
    return torch.randint(min(1, highest - 1), highest, value.shape, generator=generator).to(value.dtype)


def measure(source: Source, folder: Path, targets: list[str]) -> dict[str, Any]:
    """One row of the table."""
    path = source.path(folder)
    started = time.perf_counter()
    model = lighten.load(path, example=source.example)
    found: dict[str, Any] = {"what": source.what, "bytes": path.stat().st_size, "load_s": time.perf_counter() - started}
    split = Random(model, source.highest)
    data = Data("random", "regression", "agreement", split, split, digest="random")
    expected = reference(path, model, source, split.inputs[0])
    with torch.no_grad():
        given = first(model.module(*split.inputs[0]))
    found["parity"] = float((given - expected).abs().max())
    found["params"] = sum(value.numel() for value in model.module.parameters())
    for name, job in (("trains", _trains), ("prunes", _prunes), ("quantizes", _quantizes)):
        found[name] = _tried(lambda job=job: job(path, source, data, folder))
    found["exports"] = {name: _tried(lambda name=name: _exports(name, model, split, folder)) for name in targets}
    return found


def reference(path: Path, model: lighten.Model, source: Source, inputs: tuple[Tensor, ...]) -> Tensor:
    """What ONNX Runtime gives; inputs that were fixed are those of the example."""
    session = OnnxSession(path, 1)
    feed = dict(zip(model.input_names, inputs, strict=True))
    fixed = dict(zip(session.input_names, source.example or (), strict=False))
    return first(session(*(feed[name] if name in feed else fixed[name] for name in session.input_names)))


def first(outputs: Any) -> Tensor:
    """Of several outputs, the one that is scored."""
    found: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return found


def _tried(job: Callable[[], Any]) -> Any:
    try:
        return job()
    except Exception as error:  # a row must say why, whatever went wrong
        return {"why": f"{type(error).__name__}: {str(error)[:300]}"}


def _trains(path: Path, source: Source, data: Data, folder: Path) -> dict[str, Any]:
    """A step of gradient descent: how many tensors it changes."""
    model = lighten.load(path, example=source.example)
    before = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    first(model.module(*data.test.inputs[0])).square().sum().backward()
    optimizer.step()
    changed = [not torch.equal(value, before[name]) for name, value in model.module.named_parameters()]
    return {"changed": sum(changed), "of": len(changed)}


def _prunes(path: Path, source: Source, data: Data, folder: Path) -> dict[str, Any]:
    """A tenth of the channels cut: the parameters that are left, and that ONNX Runtime gives the cut network's numbers."""
    model = lighten.load(path, example=source.example)
    step: Any = catalog.build_method(Step("prune", {"ratio": 0.1, "only_faster": False, "repair": False, "round_to": 1}))
    smaller = step.rewrite(model, data=data, run=Run())
    file = OnnxExporter().write_float(smaller, folder / "pruned.onnx").path
    inputs = data.test.inputs[0]
    difference = (first(OnnxSession(file, 1)(*inputs)) - first(smaller.module(*inputs)).detach()).abs().max()
    count = sum(value.numel() for value in smaller.module.parameters())
    return {"params": count, "difference": float(difference)}


def _quantizes(path: Path, source: Source, data: Data, folder: Path) -> dict[str, Any]:
    """int8: the size, the operators in integers, and the error in decibels below the output."""
    model = lighten.load(path, example=source.example)
    step: Any = catalog.build_method(Step("quantize"))
    prepared = step.prepare(model, trace(model), data=data, run=Run())
    exporter = OnnxExporter()
    export = exporter.write(prepared.realize(prepared.proposals()[0]), folder / "int8.onnx")
    inputs = data.test.inputs[0]
    with torch.no_grad():
        expected = first(model.module(*inputs)).double()
    noise = first(exporter.open(export.path, Target())(*inputs)).double() - expected
    counted = exporter.operators(export.path)
    names = ("Conv", "Gemm", "MatMul", "DynamicQuantizeLSTM", "LSTM")
    return {
        "bytes": export.size_bytes,
        "int8": sum(count for name, count in counted.items() if name.endswith("int8") and name.startswith(names)),
        "fp32": sum(count for name, count in counted.items() if name.endswith("fp32") and name.startswith(names)),
        "decibels": float(10 * torch.log10(expected.square().mean() / noise.square().mean().clamp_min(1e-30))),
    }


def _exports(name: str, model: lighten.Model, split: Random, folder: Path) -> dict[str, Any]:
    """Written again in float32 and run."""
    exporter = catalog.exporter(name)
    export = exporter.write_float(model, folder / f"again{getattr(exporter, 'suffix', '.onnx')}")
    with torch.no_grad():
        expected = first(model.module(*split.inputs[0]))
    return {"difference": float((first(exporter.open(export.path, Target())(*split.inputs[0])) - expected).abs().max())}


def table(results: dict[str, Any]) -> str:
    """Markdown: the files, then the tests of operators."""
    targets = sorted({name for row in results["files"].values() for name in row.get("exports", {})})
    head = ["file", "what", "MB", "parameters", "parity", "trains", "prunes", "int8", *targets]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [_row(name, row, targets) for name, row in results["files"].items()]
    notes = [f"* {name}, {key}: {why}" for name, row in results["files"].items() for key, why in _reasons(row)]
    return "\n".join([*lines, "", *notes, "", _operators(results.get("operators", {}))])


def _row(name: str, row: dict[str, Any], targets: list[str]) -> str:
    if "why" in row:
        return f"| {name} | not loaded |" + " |" * (6 + len(targets))
    trains, prunes, int8 = (row[key] for key in ("trains", "prunes", "quantizes"))
    cells = [name, row["what"], f"{row['bytes'] / 1e6:.1f}", f"{row['params']:,}", f"{row['parity']:.0e}"]
    cells.append("no" if "why" in trains else f"{trains['changed']} of {trains['of']} tensors")
    cells.append("no" if "why" in prunes else f"to {prunes['params'] / row['params']:.0%}, {prunes['difference']:.0e}")
    in_int8 = "" if "why" in int8 else f"{int8['int8']} of {int8['int8'] + int8['fp32']}, {int8['decibels']:.0f} dB"
    cells.append("no" if "why" in int8 else f"{int8['bytes'] / row['bytes']:.0%}, {in_int8}")
    exports = [row["exports"].get(target, {}) for target in targets]
    cells += ["no" if "why" in entry else f"{entry['difference']:.0e}" if entry else "" for entry in exports]
    return f"| {' | '.join(cells)} |"


def _reasons(row: dict[str, Any]) -> list[tuple[str, str]]:
    parts = {"load": row, **{key: row.get(key, {}) for key in ("trains", "prunes", "quantizes")}, **row.get("exports", {})}
    return [(key, " ".join(part["why"].split())) for key, part in parts.items() if "why" in part]


def _operators(found: dict[str, Any]) -> str:
    if not found:
        return ""
    passed, failed, aside = len(found["passed"]), found["failed"], len(found["set_aside"])
    groups: dict[str, list[str]] = {}
    for name, why in failed.items():
        groups.setdefault(_short(why), []).append(name.removeprefix("test_"))
    lines = [
        f"**onnx's own tests of operators** (onnx {found['version']}): {passed} of {passed + len(failed)} pass "
        f"({passed / (passed + len(failed)):.1%}); {aside} are set aside, which are about other types (float16 and narrower, "
        "strings, unsigned integers above 8 bits), sequences, optional values, random numbers, other domains. Those that fail:",
        "",
    ]
    return "\n".join(
        lines + [f"* {why}: {', '.join(names)}" for why, names in sorted(groups.items(), key=lambda item: -len(item[1]))]
    )


def _short(why: str) -> str:
    """Reasons that differ in numbers alone are one."""
    if "operators that are not read" in why:
        return why.partition("uses ")[2].rstrip(".")
    return "other numbers" if why.startswith("off by") else why.partition(": ")[2].rstrip(".")[:90] or why[:90]


def write_table(results: dict[str, Any]) -> None:
    """Between the marks in docs/formats.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    write_atomic(PAGE, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def main() -> None:
    """Runs what is not yet in the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for files of the run")
    parser.add_argument("--targets", default="onnxruntime")
    parser.add_argument("--only", choices=[*SOURCES, "operators"], action="append")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"files": {}}
    for name in [] if given.table else given.only or [name for name in SOURCES if name not in results["files"]]:
        if name != "operators":
            results["files"][name] = _tried(lambda name=name: measure(SOURCES[name], given.folder, given.targets.split(",")))
            print(name, json.dumps(results["files"][name], indent=1)[:1500], flush=True)
        write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    if not given.table and ("operators" in (given.only or []) or "operators" not in results):
        results["operators"] = node_tests.run()
        write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    write_table(results)


if __name__ == "__main__":
    main()
