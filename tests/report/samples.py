"""Made-up reports: small, large, infeasible and nearly empty. Run as a program, it writes their pages for looking at:
python tests/report/samples.py FOLDER
"""

import base64
import random
import struct
import sys
import zlib
from pathlib import Path


def small() -> dict:
    """5 layers, 3 classes, contract met."""
    return {
        "verdict": "met",
        "interrupted": False,
        "contract": {
            "max_drop": {"limit": 0.01, "measured": 0.0022, "holds": True},
            "size_bytes": {"limit": 400_000, "measured": 342_118, "holds": True},
            "latency_ms": {"limit": 1.0, "measured": 0.657, "holds": True},
        },
        "broken": [],
        "model": {"source": "demo.digits:residual", "kind": "callable", "task": "image-classification"},
        "data": {
            "source": "digits.npz",
            "digest": "0f" * 32,
            "num_test": 449,
            "num_calibration": 256,
            "labels": ["zero", "one", "two"],
            "bad_rows": [{"where": "digits.npz, row 17", "why": "The image holds NaN."}],
        },
        "metric": "accuracy",
        "baseline": side(0.9722, 1_243_872, p50=1.21, p95=1.38),
        "compressed": side(0.97, 342_118, p50=0.657, p95=0.702),
        "drop": 0.0022,
        "drop_interval": [-0.001, 0.0054],
        "drop_method": "paired score interval (Tango 1998)",
        "mean_kl": 0.00213,
        "num_examples": 449,
        "decision": {"answer": "holds", "needed_examples": 449, "sentence": decided("0.22", "-0.10", "0.54", "holds")},
        "flips": {
            "count": 3,
            "per_class": {
                "zero": {"num_examples": 150, "changed": 0, "right_to_wrong": 0, "wrong_to_right": 0},
                "one": {"num_examples": 149, "changed": 2, "right_to_wrong": 2, "wrong_to_right": 0},
                "two": {"num_examples": 150, "changed": 1, "right_to_wrong": 0, "wrong_to_right": 1},
            },
            "examples": [image_flip(number, classes=["zero", "one", "two"]) for number in range(3)],
        },
        **setting(),
        "operators": {"Conv:int8": 4, "MatMul:int8": 1, "Add:int8": 2, "Softmax:fp32": 1, "QuantizeLinear:int8": 1},
        "parity_max_abs": 0.0312,
        "parity": {"max_abs": 0.0312, "mean_abs": 0.0021, "sqnr_db": 41.7, "num_examples": 449, "argmax_agreement": 1.0},
        "speedup": 1.842,
        "speedup_interval": [1.79, 1.9],
        "latency_noise_ratio": 1.004,
        "faster": True,
        "notes": ["Residual additions compute in float: int8 was slower there."],
        "layers": [layer(number, num_layers=5) for number in range(5)],
        "widths": [{"group": "stem", "before": 32, "after": 24}, {"group": "stages.0.conv1", "before": 1_280, "after": 640}],
        "candidates": [
            {"name": "int8 everywhere", "score": 0.9633, "drop": 0.0089, "size_bytes": 335_020, "chosen": False},
            {"name": "int8, head in float", "score": 0.97, "drop": 0.0022, "size_bytes": 342_118, "chosen": True},
        ],
        "plan": {"conv0": {"kind": "quant", "weights": 8, "activations": 8, "dynamic": False}},
        "steps": steps(),
        "seconds": 14.2,
        "peak_memory_bytes": 612_000_000,
        "versions": {"lighten": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.24.1"},
    }


def large(num_layers: int = 180, num_classes: int = 100, num_flips: int = 50) -> dict:
    """As many layers and classes as a big network has."""
    draw = random.Random(1)
    classes = [
        f"{draw.choice(['great', 'lesser', 'common', 'northern'])} {BIRDS[n % len(BIRDS)]} {n}" for n in range(num_classes)
    ]
    report = small()
    report["model"]["source"] = "/models/google/efficientnet-very-long-name/checkpoint-120000"
    report["metric"] = "accuracy"
    report["num_examples"] = 10_000
    report["data"]["labels"] = classes
    report["layers"] = [layer(number, num_layers=num_layers) for number in range(num_layers)]
    per_class = {name: class_flips(draw) for name in classes}
    report["flips"] = {
        "count": sum(one["changed"] for one in per_class.values()),
        "per_class": per_class,
        "examples": [image_flip(number, classes=classes) for number in range(num_flips)],
    }
    report["steps"] = steps() * 4
    report["candidates"] = [
        {
            "name": f"{number} layers in float",
            "score": 0.78 + 0.001 * number,
            "drop": 0.012 - 0.001 * number,
            "size_bytes": 5_200_000 + 81_000 * number,
            "latency_ms_p50": 11.2 + 0.31 * number,
            "chosen": number == 6,
            "why": "The first that keeps the tolerance." if number == 6 else "",
        }
        for number in range(9)
    ]
    report["operators"] = {f"{name}:{kind}": draw.randint(1, 90) for name in OPERATORS for kind in ("int8", "fp32")}
    return report


def infeasible() -> dict:
    """Text, two of three limits broken, undecided, not faster, with relative figures."""
    report = small()
    report["verdict"] = "infeasible"
    report["model"] = {"source": "sentiment-encoder", "kind": "huggingface", "task": "text-classification"}
    report["contract"] = {
        "max_drop": {"limit": 0.005, "measured": 0.004, "holds": True},
        "size_bytes": {"limit": 20_000_000, "measured": 23_412_000, "holds": False},
        "latency_ms": {"limit": 4.0, "measured": 5.81, "holds": False},
    }
    report["broken"] = [
        {
            "constraint": "size_bytes",
            "limit": 20_000_000,
            "measured": 23_412_000,
            "why": "Every layer is in int8 already; the embedding alone holds 11.9 MB.",
        },
        {"constraint": "latency_ms", "limit": 4.0, "measured": 5.81, "why": "No part is faster in int8 than measured."},
    ]
    report["baseline"] = side(0.742, 90_900_000, p50=5.6, p95=6.4)
    report["compressed"] = side(0.738, 23_412_000, p50=5.81, p95=6.9)
    report |= {"drop": 0.004, "drop_interval": [-0.006, 0.0142], "speedup": 0.964, "speedup_interval": [0.94, 0.99]}
    report["faster"] = False
    sentence = decided("0.40", "-0.60", "1.42", "").replace(
        "so the tolerance of 1.00 % .", "too few to decide 0.50 %: about 9,800 would be needed."
    )
    report["decision"] = {"answer": "undecided", "needed_examples": 9_800, "sentence": sentence}
    report["notes"] = ["Not faster than float32 in the same runtime: time ratio 1.04 (1.01 to 1.06)."]
    report["flips"]["per_class"] = {
        "negative": {"num_examples": 1500, "changed": 31, "right_to_wrong": 19, "wrong_to_right": 12},
        "positive": {"num_examples": 1500, "changed": 24, "right_to_wrong": 13, "wrong_to_right": 8},
    }
    report["flips"] |= {"count": 55, "examples": [text_flip(number) for number in range(8)]}
    return report


def nearly_empty() -> dict:
    """What an interrupted run may leave."""
    return {"verdict": None, "model": {"source": "net.onnx"}, "contract": None, "baseline": {"score": None}, "layers": None}


def side(score: float, size_bytes: int, *, p50: float, p95: float) -> dict:
    return {
        "score": score,
        "size_bytes": size_bytes,
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "latency_count": 200,
        "params": 307_562,
        "macs": 4_183_040,
        "peak_memory_bytes": 48_000_000,
    }


def setting() -> dict:
    device = "Intel(R) Xeon(R) Processor @ 2.80GHz, 2 cores"
    return {"runtime": "onnxruntime", "threads": 2, "batch": 1, "seed": 0, "device": device, "input_shapes": [[1, 1, 8, 8]]}


def layer(number: int, *, num_layers: int) -> dict:
    draw = random.Random(number)
    params = int(2_000 * 1.03 ** (number % 90) * draw.uniform(0.5, 6))
    in_float = number in (0, num_layers - 1)
    after = 4 * params if in_float else params
    return {
        "site": "stem.conv" if number == 0 else f"blocks.{number // 6}.{number % 6}.depthwise_conv",
        "kind": "conv2d" if number % 3 else "linear",
        "spec": "float" if in_float else ("int8 dynamic" if number % 7 == 3 else "int8"),
        "params": params,
        "macs": params * draw.randint(16, 900),
        "weight_bytes_before": 4 * params,
        "weight_bytes_after": after,
        "error_sqnr_db": None if in_float else draw.uniform(12, 44),
        "keep_cost_bytes": 4 * params - after,
        "why": "Kept: int8 alone cost 0.61 % accuracy." if in_float else None,
    }


def class_flips(draw: random.Random) -> dict:
    harmed, healed = max(draw.randint(-8, 9), 0), max(draw.randint(-8, 5), 0)
    return {"num_examples": 100, "changed": harmed + healed, "right_to_wrong": harmed, "wrong_to_right": healed}


def image_flip(number: int, *, classes: list[str]) -> dict:
    draw = random.Random(number)
    target, other = draw.sample(classes, 2)
    before, after = (target, other) if number % 3 else (other, target)
    return {
        "index": 40 * number,
        "title": f"test/{target}/{number:05d}.png",
        "text": "",
        "image_png_base64": thumbnail(number),
        "target": target,
        "before": before,
        "after": after,
        "confidence_before": draw.uniform(0.4, 0.7),
        "confidence_after": draw.uniform(0.4, 0.7),
    }


def text_flip(number: int) -> dict:
    before, after = ("positive", "negative") if number % 2 else ("negative", "positive")
    return {
        "index": number,
        "title": f"reviews.csv, row {number * 37}",
        "text": "It is not without charm, though the second hour asks for more patience than it repays. " * (1 + number % 3),
        "image_png_base64": "",
        "target": "positive",
        "before": before,
        "after": after,
        "confidence_before": 0.53,
        "confidence_after": 0.551,
    }


def thumbnail(seed: int, side: int = 24) -> str:
    """A grey PNG of a diagonal stroke, base64."""
    draw = random.Random(seed)
    slope, offset = draw.uniform(-1.5, 1.5), draw.uniform(4, side - 4)
    rows = [
        bytes([0, *(max(0, 255 - int(70 * abs(y - offset - slope * (x - side / 2)))) for x in range(side))])
        for y in range(side)
    ]
    parts = [
        (b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def steps() -> list[dict]:
    return [
        {"what": "read the model", "seconds": 0.412},
        {"what": "score the original", "seconds": 1.93, "examples": 449, "accuracy": 0.9722},
        {"what": "calibrate activation ranges", "seconds": 5.17, "observer": "mse", "examples": 256},
        *(trained(epoch) for epoch in range(7)),
        {"what": "finetune", "seconds": 7.1, "steps": 72, "kept_epoch": 5, "stopped_early": False},
        {"what": "export", "seconds": 7.9, "format": "onnx", "opset": 21},
        {"what": "time both files", "seconds": 12.6, "rounds": 200},
        {"what": "verify", "seconds": 14.1, "parity_max_abs": 0.03124},
    ]


def trained(epoch: int) -> dict:
    """A loss that falls, and a validation that rises again at the end."""
    loss = None if epoch == 0 else 0.9 * 0.7**epoch
    validation = 1.1 * 0.75**epoch + 0.15 + (0.12 if epoch == 6 else 0.0)
    facts = {"epoch": epoch, "epoch_seconds": 0.2, "loss": loss, "validation": validation, "lr": 0.01 if epoch else 0.0}
    return {"what": "trained an epoch", "seconds": 5.5 + 0.2 * epoch, **facts}


def decided(drop: str, low: str, high: str, state: str) -> str:
    seen = f"The drop in accuracy is {drop} % (95 % interval {low} % to {high} %) on 449 examples"
    return f"{seen}, so the tolerance of 1.00 % {state}."


BIRDS = ["crane", "heron", "black-throated diver", "wren", "kingfisher", "nuthatch", "shrike"]
OPERATORS = [
    "Conv",
    "Add",
    "Mul",
    "Gemm",
    "Clip",
    "GlobalAveragePool",
    "QuantizeLinear",
    "DequantizeLinear",
    "Softmax",
    "Reshape",
]
SAMPLES = {"small": small, "large": large, "infeasible": infeasible, "empty": nearly_empty}

if __name__ == "__main__":
    from lighten.report.page import page

    for name, make in SAMPLES.items():
        Path(sys.argv[1], f"{name}.html").write_text(page(make()), encoding="utf-8")
