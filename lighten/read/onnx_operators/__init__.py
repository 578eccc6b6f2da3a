"""What is read of ONNX: an operator's name to the function that builds it, `com.microsoft::` in front of ONNX Runtime's own."""

from collections.abc import Callable, Mapping

from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators import (
    elementwise,
    indexing,
    integers,
    layers,
    pooling,
    recurrent,
    reductions,
    resampling,
    shapes,
)

OPERATORS: Mapping[str, Callable[[Step, Build], Value]] = {
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **integers.OPERATORS,
    **layers.OPERATORS,
    **pooling.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resampling.OPERATORS,
    **shapes.OPERATORS,
}
