"""Value sharing: the weights of a layer become a few values, found by k-means and then trained.

With sparsify before it and `lighten pack` behind it, this is Deep Compression (Han et al. 2016, arXiv:1510.00149): prune,
share, code. The network stays one of floats that any runtime takes; its weights hold few different numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from lighten.analyze.trace import fold_batch_norms, tensor_of
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.method import Card
from lighten.core.model import Model
from lighten.core.pins import is_pinned, refuse_unknown_pins
from lighten.core.run import Run, Stopped
from lighten.engine.schedule import Training
from lighten.engine.sharing import num_values
from lighten.methods.sparsify.layers import Layer, find_layers
from lighten.methods.training import check_patience, check_validation, fit_kept, own_graph, task_loss, training_split
from lighten.ops.codebooks import cluster

_MOST_BITS = 8
_WORTH = 2  # weights a value from which on a table is smaller than the weights


@dataclass(frozen=True)
class Share(Training):
    """The knobs of `engine.schedule.Training`, and: codebook: bits, 1 to 8, so that a layer has 2^bits values with zero, or a
    mapping of names or patterns of layers to bits, of which the first that fits counts; other layers stay as they are. biases:
    bits for the tensors of one dimension (biases, norms), None to leave them. dense: layers that stay as they are. tune:
    whether the values are trained. validation: as methods.finetune.
    Batch norms that can be are folded first. Zeros of a layer stay zero.
    """

    epochs: float = 2
    codebook: int | Mapping[str, int] = 5
    biases: int | None = None
    dense: Sequence[str] = ()
    tune: bool = True
    validation: float = 0.1

    card: ClassVar[Card] = Card(
        name="share",
        title="Weights that share a few trained values",
        paper="Han et al. 2016, arXiv:1510.00149",
        needs_data=True,
        rewrites=True,
        trains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_validation("share", self.validation)
        books = self.codebook if isinstance(self.codebook, Mapping) else {"*": self.codebook}
        if not books:
            raise InputError("share: codebook names no layer.", hint='Give bits, e.g. 5, or {"conv*": 8, "*": 5}.')
        for name, bits in (*books.items(), *([("biases", self.biases)] if self.biases is not None else [])):
            if type(bits) is not int or not 1 <= bits <= _MOST_BITS:
                raise InputError(f"share: the bits of {name} must be an integer from 1 to {_MOST_BITS}. Got {bits!r}.")
        if isinstance(self.dense, str) or not all(isinstance(name, str) for name in self.dense):
            raise InputError(f"share: dense must be a list of names. Got {self.dense!r}.")
        if not isinstance(self.tune, bool):
            raise InputError(f"share: tune must be true or false. Got {self.tune!r}.")

    def check(self, model: Model, *, data: Data) -> None:
        """Raises InputError for a name that no layer has, or where the data cannot train; UnfitError without a layer."""
        if self.tune:
            split = training_split("share", data)
            check_patience("share", self, split, validation=self.validation)
            with torch.no_grad():
                task_loss(data)(model.module, next(iter(split.batches(min(self.batch_size, len(split))))))
        self._widths(own_graph(model), ())

    def rewrite(self, model: Model, *, data: Data, run: Run, pins: Sequence[str] = ()) -> Model:
        """The network with shared values; the given one is not changed. pins: layers that stay as they are. Ctrl-C is raised as
        core.run.Stopped with the best network so far once an epoch is done.
        """
        graph = own_graph(model)
        _fold(graph)
        widths = self._widths(graph, pins)
        for name, bits in widths.items():
            share(tensor_of(graph, name), bits)
        made = replace(model, module=graph, shared={**model.shared, **widths})
        facts = {}
        if self.tune:
            split, loss = training_split("share", data), task_loss(data)
            try:
                done = fit_kept(self, graph, split, losses=(loss, loss), model=made, run=run)
            except Stopped as stop:
                raise Stopped(replace(made, module=stop.result.module)) from stop
            facts = {"steps": done.num_steps, "kept_epoch": done.kept, "stopped_early": done.stopped_early}
        run.ledger.note("share", bits=widths, values=num_values(graph, widths), **facts)
        return made

    def _widths(self, graph: fx.GraphModule, pins: Sequence[str]) -> dict[str, int]:
        """Bits by the names of the tensors that are to share values. Raises InputError for a pattern that fits none."""
        layers = find_layers(graph, dense=self.dense, pins=pins)
        widths = {layer.name: bits for layer in layers if (bits := self._bits(layer)) is not None}
        if isinstance(self.codebook, Mapping):
            refuse_unknown_pins(self.codebook, [layer.site for layer in layers])
        for name in _flat_tensors(graph, pins) if self.biases is not None else ():
            # a tensor that a table would not make smaller keeps its values
            if tensor_of(graph, name).numel() >= _WORTH * 2**self.biases:  # type: ignore[operator]
                widths[name] = self.biases  # type: ignore[assignment]
        return widths

    def _bits(self, layer: Layer) -> int | None:
        if not isinstance(self.codebook, Mapping):
            return self.codebook
        return next((bits for name, bits in self.codebook.items() if is_pinned(layer.site, [name])), None)


@torch.no_grad()
def share(weight: Tensor, bits: int) -> None:
    """Each weight becomes the nearest of 2^bits values, in place; zeros stay, and are one of the values where there are any."""
    flat = weight.detach().flatten()
    places = flat.nonzero().flatten()
    if not len(places):
        return
    value_N = flat[places].float()
    value_V = cluster(value_N, 2**bits - (len(places) < len(flat)))
    code_N = torch.bucketize(value_N, (value_V[1:] + value_V[:-1]) / 2)
    shared = torch.zeros_like(flat)
    shared[places] = value_V[code_N].to(flat.dtype)
    weight.data.copy_(shared.reshape(weight.shape))


def _fold(graph: fx.GraphModule) -> None:
    """Batch norms into convolutions: their scales, put in at export, would make a weight of each value and channel again."""
    trained = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
    fold_batch_norms(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and (name in trained or name.endswith(".folded_bias")):
            _make_trainable(graph, name)


def _make_trainable(graph: fx.GraphModule, name: str) -> None:
    """Folding leaves buffers."""
    value = tensor_of(graph, name)
    if isinstance(value, nn.Parameter):
        return
    path, _, leaf = name.rpartition(".")
    owner = graph.get_submodule(path)
    delattr(owner, leaf)
    owner.register_parameter(leaf, nn.Parameter(value.clone()))


def _flat_tensors(graph: fx.GraphModule, pins: Sequence[str]) -> Iterator[str]:
    """Parameters of one dimension that the network reads."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, value in graph.named_parameters(remove_duplicate=True):
        if name in read and value.dim() == 1 and not is_pinned(name.rpartition(".")[0] or name, pins):
            yield name
