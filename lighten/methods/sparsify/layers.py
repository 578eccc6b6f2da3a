"""The layers whose weights become sparse: linear layers and convolutions, each as a matrix of outputs by inputs.

Dimension key: O outputs (rows), I input channels of a group, Q kernel positions, K = Q I columns with neighbouring input
channels side by side; G groups, T outputs and J = I Q inputs of each, N rows of data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx

from lighten.analyze.rows import View, view_of
from lighten.analyze.trace import tensor_of
from lighten.core.errors import UnfitError
from lighten.core.pins import is_pinned
from lighten.core.recipe import refuse_unknown
from lighten.ops.masks import Pattern


@dataclass(frozen=True)
class Layer:
    """name: of the weight. view: where it is used first. num_inputs: I."""

    name: str
    view: View
    num_inputs: int
    shape: tuple[int, ...]

    @property
    def site(self) -> str:
        """The name that people and pins give it."""
        return self.name.removesuffix(".weight")

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def num_outputs(self) -> int:
        """Rows."""
        return self.size // (self.num_inputs * prod(self.shape[2:]))

    @property
    def num_columns(self) -> int:
        """K."""
        return self.size // self.num_outputs

    def rows(self, weight: Tensor) -> Tensor:
        """w_OK of a tensor of the weight's shape: the weight, its gradient, its mask."""
        w_OJ = self.view.layer(weight.detach(), None, has_bias=False).w_GTJ.flatten(0, 1)
        return w_OJ.reshape(len(w_OJ), self.num_inputs, -1).mT.flatten(1)

    def weight(self, w_OK: Tensor, like: Tensor) -> Tensor:
        """The inverse of `rows`."""
        w_OJ = w_OK.reshape(len(w_OK), -1, self.num_inputs).mT.flatten(1)
        return self.view.weight_from(w_OJ.reshape(self.view.groups, -1, w_OJ.shape[1]), like).to(like.dtype)

    def columns(self, x_GNJ: Tensor) -> Tensor:
        """Rows of data in the order of the columns, shape G x N x K."""
        return x_GNJ.reshape(*x_GNJ.shape[:2], self.num_inputs, -1).mT.flatten(2)


def find_layers(graph: fx.GraphModule, *, dense: Sequence[str] | None, pins: Sequence[str]) -> list[Layer]:
    """In execution order. dense: names or patterns of layers that are left as they are; None for the first convolution and
    the depthwise ones. Weights that anything else reads too, such as an embedding, are left dense.

    Raises UnfitError when none is left, InputError for a name in `dense` that no layer has.
    """
    layers = _every_layer(graph)
    for name in dense or ():
        if not any(is_pinned(layer.site, [name]) for layer in layers):
            refuse_unknown("layer in `dense`", name, [layer.site for layer in layers])
    chosen = [layer for layer in layers if not _is_dense(layer, layers[0], dense) and not is_pinned(layer.site, pins)]
    if not chosen:
        raise UnfitError(
            "The network has no linear layer or convolution to make sparse.",
            hint="The first convolution and depthwise ones stay dense unless `dense` is a list.",
        )
    return chosen


def refuse_misfits(layers: Sequence[Layer], pattern: Pattern, text: str) -> None:
    """Raises UnfitError naming the first layer whose sizes the pattern does not divide."""
    for layer in layers:
        why = pattern.misfit(layer.num_outputs, layer.num_inputs)
        if why is not None:
            raise UnfitError(
                f"{layer.site} cannot take pattern {text}: {why}.", hint=f"List it in `dense`: [{layer.site}, ...]."
            )


def _every_layer(graph: fx.GraphModule) -> list[Layer]:
    """One for each weight that nothing but linear layers and convolutions read, whatever its names."""
    readers: dict[int, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor):
            readers.setdefault(tensor_of(graph, str(node.target)).data_ptr(), []).extend(node.users)
    found: dict[int, Layer] = {}
    for node in graph.graph.nodes:
        view = view_of(node)
        if view is None or tensor_of(graph, view.weight).dim() < 2:
            continue
        memory = tensor_of(graph, view.weight).data_ptr()
        if memory not in found and all(_reads_as_weight(graph, user, memory) for user in readers[memory]):
            found[memory] = _layer(graph, view)
    return list(found.values())


def _reads_as_weight(graph: fx.GraphModule, node: fx.Node, memory: int) -> bool:
    view = view_of(node)
    return view is not None and tensor_of(graph, view.weight).data_ptr() == memory


def _layer(graph: fx.GraphModule, view: View) -> Layer:
    weight = tensor_of(graph, view.weight)
    w_GTJ = view.layer(weight.detach(), None, has_bias=False).w_GTJ
    return Layer(view.weight, view, w_GTJ.shape[2] // prod(weight.shape[2:]), tuple(weight.shape))


def _is_dense(layer: Layer, first: Layer, dense: Sequence[str] | None) -> bool:
    if dense is not None:
        return any(is_pinned(layer.site, [name]) for name in dense)
    is_convolution = len(layer.shape) > 2
    is_depthwise = layer.view.groups > 1 and layer.num_inputs == 1
    return is_convolution and (layer is first or is_depthwise)
