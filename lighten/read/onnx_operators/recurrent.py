"""LSTM, GRU and RNN: torch's own layers where they say the same, else the cell step by step.

ONNX stacks the gates of an LSTM as input, output, forget, cell, torch as input, forget, cell, output; of a GRU as update,
reset, new, torch as reset, update, new. ONNX gives T x D x B x H, torch T x B x (D H).
Dimension key: T steps, B batch, D directions, H hidden width, G gates times H, I inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.core.errors import UnfitError
from lighten.read.onnx_build import Build, Step, Value
from lighten.read.onnx_operators.numbers import to_tensor
from lighten.read.onnx_operators.shapes import parts_of

_ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_ON_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Affine": lambda x: x,
    "Softsign": nn.functional.softsign,
    "Softplus": nn.functional.softplus,
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


def before(x: Tensor, *, batch_first: bool, backwards: bool) -> Tensor:
    """As the layer takes it: T x B x I, the last step first where it runs backwards."""
    x = x.transpose(0, 1) if batch_first else x
    return x.flip(0) if backwards else x


def after(found: Any, *, num_directions: int, batch_first: bool, backwards: bool) -> tuple[Tensor, ...]:
    """The layer's results as ONNX lays them out."""
    y_TBH, states = found
    states = states if isinstance(states, tuple) else (states,)
    num_steps, batch, width = y_TBH.shape
    y_TBDH = y_TBH.reshape(num_steps, batch, num_directions, width // num_directions)
    y_TBDH = y_TBDH.flip(0) if backwards else y_TBDH
    if batch_first:
        return (y_TBDH.transpose(0, 1), *(state.transpose(0, 1) for state in states))
    return (y_TBDH.transpose(1, 2), *states)


def state_of(value: Tensor, *, batch_first: bool) -> Tensor:
    """D x B x H."""
    return value.transpose(0, 1).contiguous() if batch_first else value


def no_state(x_TBI: Tensor, num_directions: int, width: int) -> Tensor:
    """Zeros: D x B x H."""
    return torch.zeros(num_directions, x_TBI.shape[1], width, dtype=x_TBI.dtype)


def walk(kind: str, x_TBI: Tensor, weights: list[Any], **settings: Any) -> tuple[Tensor, ...]:
    """Step by step in each direction. weights: W, R, bias, initial state, initial cell, peepholes; None where there are none.

    settings: lengths, backwards (of each direction), activations (of each), reset_after, clip, couple. Gives Y, Y_h and Y_c.
    """
    weight_DGI, inner_DGH, bias_DG, *states = weights
    settings["lengths"] = None if settings["lengths"] is None else to_tensor(settings["lengths"])
    found = []
    for number, backwards in enumerate(settings["backwards"]):
        chosen = [None if value is None else value[number] for value in (weight_DGI, inner_DGH, bias_DG, *states)]
        found.append(_direction(kind, x_TBI, chosen, number, {**settings, "backwards": backwards}))
    y_TDBH = torch.stack([y for y, _, _ in found], 1)
    return y_TDBH, torch.stack([h for _, h, _ in found]), torch.stack([c for _, _, c in found])


def _direction(
    kind: str, x_TBI: Tensor, weights: list[Any], number: int, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    weight_GI, inner_GH, bias_G, first_BH, first_cell_BH, peephole = weights
    num_steps, batch, width = x_TBI.shape[0], x_TBI.shape[1], inner_GH.shape[1]
    zero_BH = torch.zeros(batch, width, dtype=x_TBI.dtype)
    state, cell = (zero_BH if value is None else value for value in (first_BH, first_cell_BH))
    num_gates = inner_GH.shape[0]
    outer_G, inner_G = (torch.zeros(2 * num_gates) if bias_G is None else bias_G).split(num_gates)
    outputs = []
    for place in reversed(range(num_steps)) if settings["backwards"] else range(num_steps):
        gates = (x_TBI[place] @ weight_GI.t() + outer_G, inner_GH, inner_G)
        new, new_cell = _CELLS[kind](gates, state, cell, peephole, _for_direction(kind, settings, number))
        if settings["lengths"] is not None:
            is_there_B1 = (place < settings["lengths"])[:, None]
            outputs.append(torch.where(is_there_B1, new, 0.0))
            state, cell = torch.where(is_there_B1, new, state), torch.where(is_there_B1, new_cell, cell)
        else:
            outputs.append(new)
            state, cell = new, new_cell
    return torch.stack(outputs[::-1] if settings["backwards"] else outputs), state, cell


def _for_direction(kind: str, settings: dict[str, Any], number: int) -> dict[str, Any]:
    count = len(_DEFAULTS[kind])
    names = settings["activations"] or list(_DEFAULTS[kind]) * len(settings["activations"] or [0, 0])
    return {**settings, "functions": [_ON_GATES[name] for name in names[number * count : (number + 1) * count]]}


def _lstm(gates: Any, state: Tensor, cell: Tensor, peephole: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    on_gate, on_cell, on_output = settings["functions"]
    outer, inner_GH, inner_G = gates
    i, o, f, c = _clipped(outer + state @ inner_GH.t() + inner_G, settings).chunk(4, 1)
    to_i, to_o, to_f = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)
    i = on_gate(i + to_i * cell)
    f = 1 - i if settings["couple"] else on_gate(f + to_f * cell)
    cell = f * cell + i * on_cell(c)
    return on_gate(o + to_o * cell) * on_output(cell), cell


def _gru(gates: Any, state: Tensor, cell: Tensor, peephole: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    on_gate, on_new = settings["functions"]
    outer, inner_GH, inner_G = gates
    (outer_z, outer_r, outer_n), (w_z, w_r, w_n), (b_z, b_r, b_n) = (
        value.chunk(3, dim) for value, dim in ((outer, 1), (inner_GH, 0), (inner_G, 0))
    )
    z, r = (on_gate(_clipped(o + state @ w.t() + b, settings)) for o, w, b in ((outer_z, w_z, b_z), (outer_r, w_r, b_r)))
    inside = r * (state @ w_n.t() + b_n) if settings["reset_after"] else (r * state) @ w_n.t() + b_n
    new = on_new(_clipped(outer_n + inside, settings))
    return (1 - z) * new + z * state, cell


def _rnn(gates: Any, state: Tensor, cell: Tensor, peephole: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    (on_new,) = settings["functions"]
    outer, inner_GH, inner_G = gates
    return on_new(_clipped(outer + state @ inner_GH.t() + inner_G, settings)), cell


def _clipped(x: Tensor, settings: dict[str, Any]) -> Tensor:
    return x if settings["clip"] is None else x.clamp(-settings["clip"], settings["clip"])


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _recurrent(step: Step, build: Build) -> tuple[Value, ...]:
    direction = step.get("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
    if backwards is None:
        raise UnfitError(f"the direction {direction!r} is not read.")
    if _is_like_torch(step, len(backwards)):
        return _layer(step, build, backwards)
    return _steps(step, build, backwards)


def _is_like_torch(step: Step, num_directions: int) -> bool:
    kind = step.op_type
    names = step.get("activations") or []
    is_plain = not names or list(names) == list(_DEFAULTS[kind]) * num_directions
    is_plain = is_plain and step.get("clip") is None and not step.get("input_forget", 0)
    constant = all(isinstance(value, Tensor) for value in step.inputs[1:3]) and not isinstance(step.input(3), fx.Node)
    in_order = kind != "GRU" or bool(step.get("linear_before_reset", 0))
    has_length = step.input(4) is not None and not _is_whole(step)
    return bool(is_plain and constant and in_order and not has_length and step.input(7) is None) and isinstance(
        step.input(0), fx.Node
    )


def _is_whole(step: Step) -> bool:
    """Whether the lengths are constants that say that every example is as long as the input."""
    lengths, example = step.input(4), step.input(0).meta.get("val")
    if isinstance(lengths, fx.Node) or example is None:
        return False
    flat = to_tensor(lengths).reshape(-1)
    return bool((flat == example.shape[1 if step.get("layout", 0) else 0]).all())


def _layer(step: Step, build: Build, backwards: list[bool]) -> tuple[Value, ...]:
    kind, batch_first, num_directions = step.op_type, bool(step.get("layout", 0)), len(backwards)
    weight_DGI, inner_DGH = step.inputs[1:3]
    is_reversed = backwards == [True]
    width = inner_DGH.shape[2]
    layer = _LAYERS[kind](weight_DGI.shape[2], width, bias=step.input(3) is not None, bidirectional=num_directions == 2)
    for number in range(num_directions):
        _set_weights(layer, step, build, number)
    x = build.emit(before, step.input(0), batch_first=batch_first, backwards=is_reversed)
    states = [_state(step, build, x, number) for number in ((5, 6) if kind == "LSTM" else (5,))]
    given: list[Value] = []
    if any(step.input(number) is not None for number in (5, 6)):
        given = [tuple(states)] if kind == "LSTM" else states
    found = build.layer(step.path, layer, x, *given)
    settings = {"num_directions": num_directions, "batch_first": batch_first, "backwards": is_reversed}
    return parts_of(build.emit(after, found, **settings), 3 if kind == "LSTM" else 2, build)


def _state(step: Step, build: Build, x: Value, number: int) -> Value:
    given = step.input(number)
    if given is None:
        return build.emit(no_state, x, step.inputs[2].shape[0], step.inputs[2].shape[2])
    return build.emit(state_of, given, batch_first=bool(step.get("layout", 0)))


def _set_weights(layer: Any, step: Step, build: Build, number: int) -> None:
    suffix = "_reverse" if number else ""
    order = _ORDERS[step.op_type]
    tensors = {"weight_ih": step.inputs[1][number], "weight_hh": step.inputs[2][number]}
    if step.input(3) is not None:
        tensors["bias_ih"], tensors["bias_hh"] = step.input(3)[number].chunk(2)
    for name, value in tensors.items():
        parts = value.chunk(len(order))
        setattr(layer, f"{name}_l0{suffix}", nn.Parameter(torch.cat([parts[part] for part in order]).float()))


def _steps(step: Step, build: Build, backwards: list[bool]) -> tuple[Value, ...]:
    kind, batch_first = step.op_type, bool(step.get("layout", 0))
    names = list(step.get("activations") or [])
    unknown = [name for name in names if name not in _ON_GATES]
    if unknown or step.get("activation_alpha") or step.get("activation_beta"):
        raise UnfitError(f"the activations {unknown or names} of {kind} are not read.")
    states = [step.input(5), step.input(6), step.input(7)]
    if batch_first:
        turn = {"batch_first": True}
        states[:2] = [None if value is None else build.emit(state_of, value, **turn) for value in states[:2]]
    x = build.emit(before, step.input(0), batch_first=batch_first, backwards=False)
    settings = {
        "backwards": backwards,
        "activations": names,
        "clip": step.get("clip"),
        "couple": bool(step.get("input_forget", 0)),
    }
    settings |= {"lengths": step.input(4), "reset_after": bool(step.get("linear_before_reset", 0))}
    found = build.emit(walk, kind, x, [step.input(1), step.input(2), step.input(3), *states], **settings)
    results = parts_of(found, 3 if kind == "LSTM" else 2, build)
    if not batch_first:
        return results
    return (build.emit(_batch_first, results[0]), *(build.emit(state_of, value, batch_first=True) for value in results[1:]))


def _batch_first(y_TDBH: Tensor) -> Tensor:
    """B x T x D x H."""
    return y_TDBH.permute(2, 0, 1, 3)


OPERATORS: dict[str, Callable[[Step, Build], Value]] = dict.fromkeys(_LAYERS, _recurrent)
