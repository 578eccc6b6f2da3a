"""Windows that slide over an input: kernels of convolutions and pools, and the padding that files ask for.

Dimension key: Q places of a kernel, a dimension each.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from lighten.core.errors import InputError
from lighten.read.onnx_build import Step

_KINDS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


class Windows(NamedTuple):
    """A tuple, which fx can write into its code. A number a dimension each.

    auto: "SAME_UPPER" and "SAME_LOWER" pad so that the result has 1 / stride of the size, the odd one behind or in front.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    auto: str = "NOTSET"

    def symmetric(self) -> tuple[int, ...] | None:
        """The padding, where it is the same on both sides and does not depend on the size."""
        if self.auto == "VALID":
            return (0,) * len(self.kernel)
        if self.auto == "NOTSET":
            return self.before if self.before == self.after and min(self.before, default=0) >= 0 else None
        spans = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        is_even = all(span % 2 == 0 for span in spans)
        return tuple(span // 2 for span in spans) if is_even and set(self.stride) == {1} else None

    def amounts(self, shape: Any) -> list[tuple[Any, Any]]:
        """The padding in front and behind, for an input of that shape."""
        if not self.auto.startswith("SAME"):
            return list(zip(self.before, self.after, strict=True))
        found = []
        sized = list(shape)[-len(self.kernel) :]
        for size, k, s, d in zip(sized, self.kernel, self.stride, self.dilation, strict=True):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            half = total // 2 if self.auto == "SAME_UPPER" else total - total // 2
            found.append((half, total - half))
        return found


def windows_of(step: Step, *, kernel: tuple[int, ...]) -> Windows:
    """Of a node with attributes kernel_shape, strides, dilations, pads and auto_pad. Raises InputError where they cannot be."""
    rank = len(kernel)
    auto = step.get("auto_pad", "NOTSET")
    pads = list(step.get("pads") or [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
    stride, dilation = step.get("strides") or [1] * rank, step.get("dilations") or [1] * rank
    given = step.get("kernel_shape")
    if auto not in _KINDS or {len(stride), len(dilation)} != {rank} or len(pads) != 2 * rank:
        raise InputError(f"strides {stride}, dilations {dilation} and pads {pads} do not fit a kernel {list(kernel)}.")
    if (given is not None and tuple(given) != kernel) or min([*kernel, *stride, *dilation], default=1) < 1:
        raise InputError(f"a kernel {list(kernel)} with strides {stride} and dilations {dilation} cannot be.")
    return Windows(kernel, tuple(stride), tuple(dilation), tuple(pads[:rank]), tuple(pads[rank:]), auto)


def padded(x: Tensor, windows: Windows, *, always: bool = False, value: float = 0.0) -> tuple[Tensor, tuple[int, ...]]:
    """The input with the padding that a convolution cannot add itself, and the padding that is left to it.

    always: with all of it.
    """
    symmetric = windows.symmetric()
    nothing = (0,) * len(windows.kernel)
    if symmetric is not None and not always:
        return x, symmetric
    amounts = windows.amounts(x.shape)
    flat = [amount for pair in reversed(amounts) for amount in pair]
    if all(isinstance(amount, int) and amount == 0 for amount in flat):
        return x, nothing
    return functional.pad(x, flat, value=value), nothing
