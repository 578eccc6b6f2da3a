"""A folder as `Result.save` writes it, without a run: a small ONNX file that is built here, and what lies beside it."""

import hashlib
import json

import numpy as np
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper


def tensors():
    """Name to array, among them a pruned weight, narrow codes, scalars and nothing at all."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 50)).astype(np.float32)
    int4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    return {
        "dense": weight,
        "pruned": weight * (np.abs(weight) > 1.6),
        "codes": np.clip(np.round(weight * 30), -127, 127).astype(np.int8),
        "narrow": np.clip(np.round(weight * 3), -8, 7).astype(int4),
        "kernel": (random.normal(size=(16, 8, 3, 3)) > 1).astype(np.int8),
        "bias": weight[0],
        "scale": np.float32(0.1),
        "zero_point": np.uint8(128),
        "shape": np.array([2, 3], np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def onnx_bytes():
    """A model that holds the tensors, and one more in a Constant node."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors().items()]
    constant = helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(tensors()["bias"], "inside"))
    add = helper.make_node("Add", ["input", "constant"], ["output"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 50]) for name in ("input", "output")]
    graph = helper.make_graph([constant, add], "main", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def files():
    """What the folder holds beside its manifest."""
    plain = {name: array for name, array in tensors().items() if name not in ("narrow", "scale", "zero_point")}
    structure = {"graph": [], "origin": {"labels": ["cat", "dög"], "files": ["vocab/words.txt"]}}
    return {
        "model.onnx": onnx_bytes(),
        "structure.json": json.dumps(structure).encode(),
        "weights.safetensors": safetensors.numpy.save(plain),
        "vocab/words.txt": "\n".join(f"word{number}" for number in range(12_000)).encode(),
        "recipe.yaml": b"steps: []\n",
        "report.json": b"{}",
        "report.html": b"<html></html>",
    }


def write_folder(folder):
    """The folder, with its manifest."""
    for name, data in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in files().items()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))
    return folder
