"""From a module to a graph of ATen operators, and the places in it that a plan can name.

The graph is what `torch.export` records, with inference-only simplifications that change no output beyond rounding: dropout
removed, batch normalization folded into the convolution before it (Jacob et al. 2018, arXiv:1712.05877, eq. 14).

Dimension key: O output channels, I input channels.
"""

import copy
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.core.errors import UnfitError
from lighten.core.graph import Graph, Site
from lighten.core.model import Model
from lighten.engine.quiet import quiet

aten = torch.ops.aten

KINDS: dict[Any, str] = {
    aten.conv1d.default: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv3d.default: "conv3d",
    aten.conv_transpose1d.default: "conv_transpose1d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.linear.default: "linear",
    aten.embedding.default: "embedding",
    aten.lstm.input: "lstm",
    aten.gru.input: "gru",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.scaled_dot_product_attention.default: "attention",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.cat.default: "concat",
    aten.adaptive_avg_pool2d.default: "average_pool",
    aten.avg_pool2d.default: "average_pool",
}
_RECURRENT = ("lstm", "gru")
# these hold I x O / groups
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, *_TRANSPOSED)


def trace(model: Model) -> Graph:
    """The model's graph. The model itself is not changed.

    Raises UnfitError when torch.export cannot trace it, naming the module and the source line that stopped it.
    """
    program = export_program(model.module, model.example, model.origin.dynamic)
    # ExportedProgram shares its tensors with the original; folding must not reach them
    with quiet():
        module = copy.deepcopy(program.module())
    simplify(module)
    return Graph(module, tuple(find_sites(module)))


def traced(model: Model) -> fx.GraphModule:
    """The graph as recorded, batch normalizations apart, on tensors of its own."""
    program = export_program(model.module, model.example, model.origin.dynamic)
    with quiet():
        return copy.deepcopy(program.module())


def export_program(
    module: nn.Module, example: tuple[Tensor, ...], dynamic: tuple[dict[int, str], ...]
) -> torch.export.ExportedProgram:
    """torch.export with the named dimensions dynamic where the network allows it, static where it does not.

    Raises UnfitError naming module and line when the network cannot be traced.
    """
    shapes = tuple(dict.fromkeys(dims, torch.export.Dim.AUTO) for dims in dynamic) if dynamic else None
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the traced code raises
        raise _untraceable(module, error) from error


def simplify(module: fx.GraphModule) -> None:
    """Removes guards and dropout and folds batch normalization, in place."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
        elif node.target in (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    if hasattr(module, "_guards_fn"):
        delattr(module, "_guards_fn")
    fold_batch_norms(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def find_sites(module: fx.GraphModule) -> Iterator[Site]:
    """Every node a plan can name, in execution order."""
    seen: set[str] = set()
    for node in module.graph.nodes:
        kind = KINDS.get(node.target) if node.op == "call_function" else None
        if kind is None or (kind in ("add", "mul") and not _two_tensors(node)):
            continue
        weights, bias = _parameters(node, kind)
        path = weights[0].rpartition(".")[0] if weights else ""
        # a bare parameter has no owner with a name of its own: the parameter is the site
        name = path or (weights[0] if weights else node.name)
        if name in seen:
            name = f"{name}@{node.name}"
        seen.add(name)
        yield Site(name, kind, node.name, weights, bias, _is_depthwise(node, kind))


def tensor_of(module: fx.GraphModule, name: str) -> Tensor:
    """The parameter or buffer behind a get_attr target such as `layers.0.weight`."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise UnfitError(f"{name} is a {type(value).__name__}, not a tensor.")
    return value


def set_tensor(module: fx.GraphModule, name: str, value: Tensor) -> None:
    """Stores `value` as a buffer under a dotted name, replacing what stood there; owners are made as needed."""
    path, _, leaf = name.rpartition(".")
    owner: nn.Module = module
    for part in path.split(".") if path else []:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_buffer(leaf, value)


def _two_tensors(node: fx.Node) -> bool:
    return all(isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), Tensor) for arg in node.args[:2])


def _parameters(node: fx.Node, kind: str) -> tuple[tuple[str, ...], str | None]:
    if kind in _RECURRENT:
        tensors = [arg for arg in node.args[2] if isinstance(arg, fx.Node)]  # type: ignore[union-attr]
        return tuple(str(arg.target) for arg in tensors if arg.op == "get_attr" and "bias" not in str(arg.target)), None
    if kind == "embedding":
        return _names(node.args[0]), None
    if kind.startswith("conv") or kind == "linear":
        bias = _names(node.args[2]) if len(node.args) > 2 else ()
        return _names(node.args[1]), bias[0] if bias else None
    return (), None


def _names(arg: Any) -> tuple[str, ...]:
    return (str(arg.target),) if isinstance(arg, fx.Node) and arg.op == "get_attr" else ()


def _is_depthwise(node: fx.Node, kind: str) -> bool:
    if kind not in ("conv1d", "conv2d", "conv3d"):
        return False
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    weight = node.args[1]
    shape = weight.meta["val"].shape if isinstance(weight, fx.Node) and "val" in weight.meta else (0, 0)
    return isinstance(groups, int) and groups > 1 and shape[1] == 1


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Into the convolutions that they alone read, in place; weights and biases of these become buffers."""
    for node in list(module.graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        conv = node.args[0]
        weight_is_shared = conv.target in _CONVOLUTIONS and len(conv.args[1].users) > 1
        if conv.target not in _CONVOLUTIONS or len(conv.users) > 1 or weight_is_shared:
            continue
        _fold_batch_norm(module, conv, node)


def _fold_batch_norm(module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    """w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta; arXiv:1712.05877, eq. 14."""
    weight_name = str(conv.args[1].target)  # type: ignore[union-attr]
    weight_OI = tensor_of(module, weight_name)
    scale_O, shift_O, mean_O, var_O = (_value(module, arg, weight_OI) for arg in norm.args[1:5])
    factor_O = (1.0 if scale_O is None else scale_O) * torch.rsqrt(var_O + float(norm.args[7]))  # type: ignore[operator, arg-type]
    old_bias_O = _value(module, conv.args[2], weight_OI) if len(conv.args) > 2 else None
    bias_O = ((0.0 if old_bias_O is None else old_bias_O) - mean_O) * factor_O + (0.0 if shift_O is None else shift_O)  # type: ignore[operator]
    bias_name = f"{weight_name.rpartition('.')[0] or weight_name.replace('.', '_')}.folded_bias"
    scaled = _scaled(weight_OI, factor_O, conv)
    set_tensor(module, weight_name, (scaled + 0.0).detach())  # no negative zeros
    set_tensor(module, bias_name, bias_O.detach())
    with module.graph.inserting_before(conv):
        bias = module.graph.get_attr(bias_name)
    bias.meta["val"] = norm.meta["val"].new_empty(len(bias_O))
    conv.args = (*conv.args[:2], bias, *conv.args[3:])
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)


def _scaled(weight: Tensor, factor_O: Tensor, conv: fx.Node) -> Tensor:
    """The weight with each output channel times its factor."""
    ones = [1] * (weight.dim() - 2)
    if conv.target not in _TRANSPOSED:
        return weight * factor_O.reshape(-1, 1, *ones)
    groups = int(conv.args[6]) if len(conv.args) > 6 else 1  # type: ignore[arg-type]
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    return (by_group * factor_O.reshape(groups, 1, -1, *ones)).reshape(weight.shape)


def _value(module: fx.GraphModule, arg: Any, like: Tensor) -> Tensor | None:
    return tensor_of(module, str(arg.target)).to(like.dtype) if isinstance(arg, fx.Node) else None


def _untraceable(module: nn.Module, error: Exception) -> UnfitError:
    """Names the innermost frame outside torch: that is the user's line that cannot be traced."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "/torch/" not in frame.filename and "/lighten/analyze/" not in frame.filename]
    where = f" at {theirs[-1].filename}:{theirs[-1].lineno} ({theirs[-1].line})" if theirs else ""
    first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UnfitError(
        f"{_module_path(module, error)} cannot be traced{where}: {first_line.strip()[:300]}",
        hint="Branches and loops on tensor values cannot be exported; use torch.where or fixed sizes.",
    )


def _module_path(module: nn.Module, error: Exception) -> str:
    """The innermost submodule whose forward was running, from the `self` of the traceback's frames."""
    names = {id(child): name for name, child in module.named_modules()}
    found = type(module).__name__
    trace_ = error.__traceback__
    while trace_ is not None:
        owner = trace_.tb_frame.f_locals.get("self")
        if id(owner) in names and names[id(owner)]:
            found = f"Module {names[id(owner)]!r} ({type(owner).__name__})"
        trace_ = trace_.tb_next
    return found
