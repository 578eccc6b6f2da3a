"""`python run_once.py FILE.onnx SHAPES`: loads a file, runs it once, exits. For measuring its peak memory alone.

SHAPES: a Python literal, [[shape, dtype], ...]; inputs are zeros, integer ones are ones. Nothing of lighten or torch is loaded.
"""

import ast
import sys


def main(path: str, shapes: str) -> None:
    """Runs the file once on one thread."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    values = [np.full(shape, 0 if dtype.startswith("float") else 1, dtype=dtype) for shape, dtype in ast.literal_eval(shapes)]
    session.run(None, dict(zip(names, values, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
