"""The main job on small networks, from the model to the folder and back: compress, save, replay, resume, verify, compare."""

import errno
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from networks import encoder, residual, sentences
from safetensors.torch import load_file, save_file
from workplace import make_workplace

import lighten
from lighten import InputError, Recipe, Target, UnfitError, finish
from lighten.cli.main import main
from lighten.core.plan import Plan
from lighten.core.spec import Quant
from lighten.search import faster

FILES = ["manifest.json", "model.onnx", "recipe.yaml", "report.html", "report.json", "structure.json", "weights.safetensors"]
ONE = Target(threads=1)


class Recorder:
    """Progress that records what it was asked to show, and raises KeyboardInterrupt at `stop`."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.shown, self.said = stop, [], []

    def track(self, items, *, what, total):
        if what == self.stop:
            raise KeyboardInterrupt
        self.shown.append(what)
        yield from items

    def say(self, line):
        self.said.append(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's working folder; `nets`, `data.npz` and `weights.safetensors` are in it."""
    before, folder = os.getcwd(), make_workplace(tmp_path_factory.mktemp("place"))
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("nets", None)


@pytest.fixture(scope="module")
def result(place):
    model = lighten.load("nets:build", weights="weights.safetensors")
    return lighten.compress(model, "data.npz", target=ONE, out="out")


@pytest.fixture(scope="module")
def saved(place, result):
    return place / result.save("out")


@pytest.fixture(scope="module")
def integers(place):
    """A folder whose layers compute in integers, whatever is faster on a busy machine."""
    model = lighten.load("nets:build", weights="weights.safetensors")
    plan = Plan({"0": Quant(), "2": Quant(), "6": Quant()})
    return place / lighten.compress(model, "data.npz", recipe=Recipe(plan=plan), target=ONE).save("integers")


@pytest.fixture
def copy(saved, tmp_path):
    """The finished folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A transformer's search, stopped in its second candidate: result, folder, progress."""
    out, progress = tmp_path_factory.mktemp("stopped") / "out", Recorder(stop="scoring int8")
    return lighten.compress(encoder(), rated(), out=out, progress=progress), out, progress


@pytest.fixture
def interrupted(stopped, tmp_path):
    """The same with a folder of its own."""
    result, out, progress = stopped
    return result, shutil.copytree(out, tmp_path / "out"), progress


def rated():
    """Sentences and what a regression should say about each."""
    target = torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
    split = replace(sentences().test, target=target)
    return replace(sentences(), test=split, train=split)


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(os.listdir(folder))}


def checks(folder, **options):
    found = lighten.verify(folder, **options)
    assert found["ok"] == all(check["ok"] for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def test_the_report_has_every_key_that_is_promised(saved):
    report = json.loads((saved / "report.json").read_text())
    keys = "verdict metric baseline compressed drop drop_interval num_examples flips runtime threads operators parity_max_abs"
    assert {*keys.split(), "seconds", "peak_memory_bytes", "steps"} <= report.keys()
    side = {"score", "size_bytes", "latency_ms_p50", "latency_ms_p95", "params", "macs"}
    assert side <= report["baseline"].keys()
    assert side <= report["compressed"].keys()
    low, high = report["drop_interval"]
    assert low <= report["drop"] <= high
    assert (report["verdict"], report["broken"], report["interrupted"]) == ("met", [], False)
    assert (report["runtime"], report["threads"], report["metric"], report["num_examples"]) == (
        "onnxruntime",
        1,
        "accuracy",
        42,
    )
    assert all(name.rpartition(":")[2] in ("int8", "fp32") or ":" not in name for name in report["operators"])


def test_the_figures_are_those_of_the_file_that_ships(saved):
    report = json.loads((saved / "report.json").read_text())
    assert report["compressed"]["size_bytes"] == (saved / "model.onnx").stat().st_size
    data = lighten.load_data("data.npz", model=lighten.load("nets:build"))
    (batch,) = data.test.batches(42)
    session = onnxruntime.InferenceSession(str(saved / "model.onnx"), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"input": row[None]})[0][0] for row in batch.inputs[0].numpy()]
    accuracy = float((np.stack(rows).argmax(1) == batch.target.numpy()).mean())
    assert report["compressed"]["score"] == pytest.approx(accuracy, abs=1e-12)
    # 3x32x9 + 32x32x9 + 32x4 weights and 32 + 32 + 4 biases; the convolutions work at 16x16 places
    assert report["baseline"]["params"] == 864 + 9216 + 128 + 68
    assert report["baseline"]["macs"] == (864 + 9216) * 256 + 128


def test_the_folder_holds_the_seven_files_and_no_unfinished_work(saved):
    assert sorted(os.listdir(saved)) == FILES


def test_the_manifest_holds_the_hash_of_every_other_file(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    expected = {name: digest for name, digest in hashes(saved).items() if name != "manifest.json"}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == expected
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__


def test_the_recipe_replays_the_run_to_the_same_bytes(saved, tmp_path):
    model = lighten.load("nets:build", weights="weights.safetensors")
    progress = Recorder()
    recipe = Recipe.from_file(saved / "recipe.yaml")
    again = lighten.compress(model, "data.npz", target=ONE, recipe=recipe, progress=progress).save(tmp_path / "again")
    for name in ("model.onnx", "weights.safetensors", "structure.json", "recipe.yaml"):
        assert hashes(again)[name] == hashes(saved)[name], name
    assert [what for what in progress.shown if what.startswith("scoring")] == [
        "scoring the original",
        "scoring the recipe's plan",
    ]


def test_the_saved_network_is_the_compressed_one_in_torch(result, saved):
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(lighten.load(saved).module(x), result.compressed.graph(x))


def test_saving_again_replaces_the_folder(result, copy):
    (copy / "model.onnx").write_bytes(b"old")
    result.save(copy)
    assert sorted(os.listdir(copy)) == FILES
    assert lighten.verify(copy)["ok"]


def test_a_disk_that_fills_while_saving_leaves_the_old_folder_whole(result, copy, monkeypatch):
    before, written = hashes(copy), []

    def fills_at_the_third_file(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fills_at_the_third_file)
    with pytest.raises(InputError, match="the disk is full"):
        result.save(copy)
    shutil.rmtree(copy / ".work")  # empty: it held the files until all were there
    assert hashes(copy) == before


def test_a_limit_that_cannot_hold_exits_3_and_is_named_with_its_number(place, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--max-size", "10", "--threads", "1", "--quiet"]
    assert main(["compress", "nets:build", "--data", "data.npz", "--out", str(out), *options]) == 3
    assert sorted(os.listdir(out)) == FILES
    size = (out / "model.onnx").stat().st_size
    report = json.loads((out / "report.json").read_text())
    (limit,) = report["broken"]
    assert report["verdict"] == "infeasible"
    assert (limit["constraint"], limit["limit"], limit["measured"]) == ("size_bytes", 10, size)
    assert capsys.readouterr().err.startswith(f"lighten: not met: The size in bytes is {size}, above the limit of 10; ")


def test_an_interrupt_after_a_candidate_returns_the_best_so_far(interrupted):
    result, out, progress = interrupted
    assert result.interrupted
    assert progress.said == ["Interrupted: keeping the best result so far."]
    tried = [candidate["name"] for candidate in result.report["candidates"]]
    assert tried[0] == "int8 dynamic"
    assert all(name.startswith("int8 dynamic") for name in tried)  # a second one in 7 bits where this machine needs it
    assert result.save(out) == out
    assert sorted(os.listdir(out)) == [".work", *FILES]
    assert lighten.verify(out, data=rated())["ok"]


def test_an_interrupt_during_the_check_keeps_the_result_and_still_checks_it(place, tmp_path):
    class Once(Recorder):
        def track(self, items, *, what, total):
            if what == "comparing the file with torch" and not self.said:
                raise KeyboardInterrupt
            return super().track(items, what=what, total=total)

    progress = Once()
    model = lighten.load("nets:build", weights="weights.safetensors")
    result = lighten.compress(model, "data.npz", target=ONE, out=tmp_path / "out", progress=progress)
    assert progress.said == ["Interrupted: the best result is being checked and kept. Once more stops at once."]
    assert "comparing the file with torch" in progress.shown
    assert (result.interrupted, result.verdict) == (True, "met")
    assert lighten.verify(result.save(tmp_path / "out"), data="data.npz")["ok"]


def test_an_interrupt_during_the_last_timing_keeps_the_result_with_the_timing_of_the_search(place, monkeypatch):
    timed = []

    def time_trial(trials, trial, *, rounds=60):
        timed.append(search_time(trials, trial))
        return timed[-1]

    def race(contenders, *, rounds):
        raise KeyboardInterrupt

    search_time = faster.time_trial
    monkeypatch.setattr(
        importlib.import_module("lighten.compress"), "time_trial", time_trial
    )  # the package has a function of that name
    monkeypatch.setattr(finish, "race", race)
    progress = Recorder()
    model = lighten.load("nets:build", weights="weights.safetensors")
    result = lighten.compress(model, "data.npz", target=ONE, progress=progress)
    assert progress.said == ["Interrupted: keeping the best result so far."]
    assert result.interrupted
    medians = [one.timing.latencies["compressed"].p50_ms for one in timed]
    assert result.report["compressed"]["latency_ms_p50"] in medians


def test_pruning_fine_tuning_and_int8_compose(place, tmp_path):
    cut = "prune: {macs: 0.5, round_to: 1, only_faster: false}"  # a call is too short for a cut to show
    text = f"steps: [{{{cut}}}, {{finetune: {{epochs: 1, lr: 0.001}}}}, {{quantize: {{bits: 8}}}}]"
    model = lighten.load("nets:build", weights="weights.safetensors")
    result = lighten.compress(model, "data.npz", recipe=Recipe.from_yaml(text), target=ONE)
    before, after = result.report["baseline"], result.report["compressed"]
    assert after["macs"] <= 0.5 * before["macs"]
    assert after["params"] < before["params"]
    assert after["size_bytes"] < 0.5 * before["size_bytes"]
    assert result.report["operators"]["Conv:int8"] == 2
    assert [entry["group"] for entry in result.report["widths"]] == ["0", "2"]
    assert all(entry["after"] < entry["before"] for entry in result.report["widths"])
    folder = result.save(tmp_path / "out")
    assert lighten.verify(folder, data="data.npz")["ok"]
    assert lighten.Recipe.from_file(folder / "recipe.yaml").steps == result.recipe.steps


def test_a_recipe_that_only_prunes_gives_a_float_file(place):
    result = lighten.compress(
        lighten.load("nets:build", weights="weights.safetensors"),
        "data.npz",
        recipe=Recipe.from_yaml("steps: [{prune: {ratio: 0.5, only_faster: false}}]"),
        target=ONE,
    )
    assert result.report["compressed"]["params"] < 0.5 * result.report["baseline"]["params"]
    assert not any(name.endswith(":int8") for name in result.report["operators"])


def test_an_interrupt_before_any_candidate_goes_on_and_leaves_only_unfinished_work(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        lighten.compress(encoder(), rated(), out=tmp_path / "out", progress=Recorder(stop="scoring the original"))
    assert os.listdir(tmp_path / "out") == [".work"]


def test_a_second_run_takes_up_what_the_first_finished(interrupted):
    _, out, first = interrupted
    assert {"calibrating", "scoring the original", "scoring int8 dynamic"} <= set(first.shown)
    second = Recorder()
    result = lighten.compress(encoder(), rated(), out=out, progress=second)
    assert {"calibrating", "scoring the original", "scoring int8 dynamic"}.isdisjoint(second.shown)
    assert "scoring int8" in second.shown
    assert not result.interrupted
    result.save(out)
    assert sorted(os.listdir(out)) == FILES


@pytest.mark.parametrize("what", ["seed", "weights", "data", "threads", "knobs"])
def test_a_run_of_something_else_takes_up_nothing(interrupted, what):
    _, out, _ = interrupted
    model, data = encoder(seed=1 if what == "weights" else 0), rated()
    knobs = "ranges: mse" if what == "knobs" else "bits: 8"
    recipe = Recipe.from_yaml(f"steps: [{{quantize: {{{knobs}}}}}]\nseed: {1 if what == 'seed' else 0}")
    data = replace(data, digest="other") if what == "data" else data
    target = Target(threads=2) if what == "threads" else Target()
    with pytest.raises(KeyboardInterrupt):  # what was taken up would not be shown, and would not stop the run
        lighten.compress(model, data, recipe=recipe, target=target, out=out, progress=Recorder(stop="calibrating"))


def test_work_on_data_without_a_digest_is_never_taken_up(tmp_path):
    for stop in ("scoring the original", "calibrating"):
        with pytest.raises(KeyboardInterrupt):
            lighten.compress(encoder(), replace(rated(), digest=""), out=tmp_path / "out", progress=Recorder(stop=stop))


def test_the_number_of_threads_of_torch_is_as_before(place):
    before = torch.get_num_threads()
    with pytest.raises(InputError):
        lighten.compress(residual(), "gone.npz", target=Target(threads=before + 1))
    with pytest.raises(KeyboardInterrupt):
        lighten.compress(
            encoder(), sentences(), target=Target(threads=before + 1), progress=Recorder(stop="scoring the original")
        )
    assert torch.get_num_threads() == before


def test_a_folder_that_lighten_wrote_is_not_compressed_again_nor_written_over(saved, tmp_path):
    before = hashes(saved)
    with pytest.raises(InputError, match="own folder"):
        lighten.compress(saved, "data.npz", out=saved)
    with pytest.raises(UnfitError, match="quantized already"):
        lighten.compress(saved, "data.npz", out=tmp_path / "out")
    assert hashes(saved) == before


def test_a_finished_folder_passes_every_check(saved):
    found = checks(saved)
    assert list(found) == ["hashes", "operators", "parity", "score"]
    assert all(check["ok"] for check in found.values())
    report = json.loads((saved / "report.json").read_text())
    assert (
        found["score"]["detail"]
        == f"accuracy {report['compressed']['score']:.6g}, reported {report['compressed']['score']:.6g}"
    )


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_one_flipped_bit_in_any_file_is_found(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    found = checks(copy)
    assert list(found) == ["hashes"]
    assert found["hashes"]["detail"] == f"changed: {name}"


def test_a_missing_file_is_found_and_the_command_exits_3(copy, capsys):
    (copy / "weights.safetensors").unlink()
    assert main(["verify", str(copy)]) == 3
    assert capsys.readouterr().out == "FAILED  hashes     changed: weights.safetensors\n"


@pytest.mark.parametrize("claim", ["score", "operators", "parity"])
def test_a_report_that_claims_too_much_is_found_although_its_hash_is_right(integers, tmp_path, claim):
    copy = shutil.copytree(integers, tmp_path / "copy")
    report = json.loads((copy / "report.json").read_text())
    if claim == "score":
        report["compressed"]["score"] += 0.02
    elif claim == "operators":
        report["operators"]["Conv:int8"] += 1
    else:
        # 5 % of the signal are 26 dB; whatever was reported, 40 dB would be asked for
        weights = load_file(copy / "weights.safetensors")
        worse = {name: 1.05 * value if value.is_floating_point() else value for name, value in weights.items()}
        save_file(worse, copy / "weights.safetensors")
    sign(copy, report)
    assert [name for name, check in checks(copy).items() if not check["ok"]] == [claim]


def test_on_another_processor_the_score_may_move_within_the_reports_interval(copy):
    report = json.loads((copy / "report.json").read_text())
    low, high = report["drop_interval"]
    honest = report["compressed"]["score"]
    for moved, holds in ((0.4 * (high - low), True), (0.6 * (high - low), False)):
        report["device"], report["compressed"]["score"] = "another", honest + moved
        sign(copy, report)
        assert checks(copy)["score"]["ok"] == holds


def sign(folder, report):
    """Puts the report into the folder with the hashes that its manifest needs."""
    (folder / "report.json").write_text(json.dumps(report))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("report.json", "weights.safetensors"):
        manifest["files"][name]["sha256"] = hashes(folder)[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_without_the_data_the_score_is_not_repeated_and_the_check_says_so(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = checks(saved)
    assert found["score"]["detail"].startswith("not repeated: the data data.npz cannot be read here")
    np.savez("data.npz", x=np.zeros((20, 3, 16, 16), np.float32), y=np.zeros(20, np.int64))
    assert checks(saved)["score"]["detail"] == "not repeated: the data data.npz has changed; name it with --data"


def test_on_other_examples_the_score_is_told_and_not_judged(saved, tmp_path):
    arrays = dict(np.load("data.npz"))
    np.savez(tmp_path / "other.npz", x=arrays["x"][:20], y=(arrays["y"][:20] + 1) % 4)
    found = checks(saved, data=tmp_path / "other.npz")
    assert found["parity"]["ok"]
    assert found["score"]["ok"]
    assert "on these 14 examples; reported" in found["score"]["detail"]


def test_agreement_needs_the_original_and_is_not_repeated(place, tmp_path):
    np.savez("unlabelled.npz", x=np.load("data.npz")["x"][:20])
    model = lighten.load("nets:build")
    result = lighten.compress(model, lighten.load_data("unlabelled.npz", model=model), target=ONE)
    assert result.report["metric"] == "agreement"
    found = checks(result.save(tmp_path / "out"))
    assert found["score"]["detail"] == "not repeated: agreement needs the original; use lighten compare"
    assert found["parity"]["detail"].startswith("largest difference")


def test_compare_finds_what_the_report_says(saved):
    report = json.loads((saved / "report.json").read_text())
    original = lighten.load("nets:build", weights="weights.safetensors")
    compared = lighten.compare(original, saved, "data.npz", target=ONE)
    assert (compared["metric"], compared["num_examples"]) == ("accuracy", 42)
    assert compared["first_score"] == report["baseline"]["score"]
    assert compared["second_score"] == report["compressed"]["score"]
    assert compared["drop"] == pytest.approx(report["drop"], abs=1e-12)
    assert compared["drop_interval"] == pytest.approx(report["drop_interval"], abs=1e-12)
    assert compared["flips"]["num_changed"] == report["flips"]["count"]
    assert (compared["first"]["runtime"], compared["second"]["runtime"]) == ("torch", "onnxruntime")
    assert compared["second"]["size_bytes"] == (saved / "model.onnx").stat().st_size
    assert compared["latency"]["first"]["p50_ms"] > 0


def test_compare_turned_around_changes_the_sign(saved, capsys):
    options = ["--data", "data.npz", "--threads", "1", "--json"]
    assert main(["compare", "nets:build", str(saved), "--weights", "weights.safetensors", *options]) == 0
    forth = json.loads(capsys.readouterr().out)
    assert main(["compare", str(saved), str(saved / "model.onnx"), *options]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["drop"] == 0.0
    assert same["flips"]["num_changed"] == 0
    assert forth["drop"] == pytest.approx(forth["first_score"] - forth["second_score"], abs=1e-12)


def test_two_onnx_files_alone_cannot_prepare_data(saved):
    with pytest.raises(InputError, match="say nothing about how to prepare the data"):
        lighten.compare(saved / "model.onnx", saved / "model.onnx", "data.npz")


@pytest.mark.slow  # two processes that each import torch and export two files
def test_ctrl_c_exits_130_and_the_same_command_goes_on(place, tmp_path):
    out = tmp_path / "out"
    options = ["--data", "data.npz", "--out", str(out), "--threads", "1"]
    command = [sys.executable, "-m", "lighten.cli.main", "compress", "nets:build", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("scoring the original"):  # by then the ranges are remembered
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1].startswith("lighten: interrupted")
    assert "Traceback" not in rest
    assert os.listdir(out) == [".work"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "calibrating" not in again.stderr
    assert sorted(os.listdir(out)) == FILES
