"""Which width for each layer: the choice of least total loss within a budget, exactly.

The multiple-choice knapsack problem: one option a layer, losses and costs added up (HAWQ-V3, Yao et al. 2021,
arXiv:2011.10680, solves the same with an integer program). Layers are taken up one by one; of the partial choices only those
stay that no other one beats in both cost and loss (Nemhauser and Ullmann 1969) and whose Lagrangian bound can still beat the
best whole choice known (Pisinger 1995). Sums of losses are not a network's loss: check the answer on data.

Dimension key: L layers, N options of a layer, S partial choices. Layers with fewer options than others have further ones of
infinite loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

_BISECTIONS = 100
_SLACK = 1e-9  # of the largest loss, and
_PRICE_SLACK = 1e-13  # of what all options together would cost at the price: what float64 sums may differ by


@dataclass(frozen=True)
class Allocation:
    """choice: each layer's option. loss, cost: their sums. is_within: whether cost is within the budget; if not, this is the
    cheapest choice there is. bound: no choice within the budget has a smaller loss, by Lagrangian duality. price: the loss
    that one more unit of budget saves, by the same.
    """

    choice: tuple[int, ...]
    loss: float
    cost: int
    is_within: bool
    bound: float
    price: float


def allocate(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> Allocation:
    """The options of least total loss among those that cost no more than the budget.

    losses, costs: of every option of every layer. costs and budget: whole numbers (bytes, bit operations, nanoseconds)
    that sum to less than 2^53.
    Exact up to the rounding of sums, a billionth of the largest loss. Worst case exponential, like every exact method.
    Raises ValueError when layers and options do not match, or a loss is not a finite number.
    """
    loss_LN, cost_LN = _table(losses, costs)
    cheapest_L = _cheapest(loss_LN, cost_LN)
    if _total(cost_LN, cheapest_L) > budget:
        return _allocation(loss_LN, cost_LN, cheapest_L, is_within=False, bound=inf, price=inf)
    price = _price(loss_LN, cost_LN, budget)
    bound = float((loss_LN + price * cost_LN).amin(1).sum()) - price * budget
    known_L = _filled(loss_LN, cost_LN, budget, price=price)
    choice_L = _search(loss_LN, cost_LN, budget, price=price, known_loss=float(_total(loss_LN, known_L)))
    return _allocation(loss_LN, cost_LN, choice_L, is_within=True, bound=bound, price=price)


def _table(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    widths = [len(options) for options in losses]
    if widths != [len(options) for options in costs] or not widths or min(widths) == 0:
        raise ValueError("Every layer needs as many losses as costs, and one at least; there must be a layer.")
    if not all(isfinite(loss) for options in losses for loss in options):
        raise ValueError("Every loss must be a finite number.")
    most = max(widths)
    loss_LN = [[*options, *[inf] * (most - len(options))] for options in losses]
    cost_LN = [[*options, *[max(options)] * (most - len(options))] for options in costs]
    return torch.tensor(loss_LN, dtype=torch.float64), torch.tensor(cost_LN, dtype=torch.float64)


def _cheapest(loss_LN: Tensor, cost_LN: Tensor) -> Tensor:
    """Each layer's option of least cost, and of least loss among those."""
    is_least_LN = (cost_LN == cost_LN.amin(1, keepdim=True)) & loss_LN.isfinite()
    return loss_LN.masked_fill(~is_least_LN, inf).argmin(1)


def _total(value_LN: Tensor, choice_L: Tensor) -> Tensor:
    return value_LN.gather(1, choice_L[:, None]).sum()


def _allocation(
    loss_LN: Tensor, cost_LN: Tensor, choice_L: Tensor, *, is_within: bool, bound: float, price: float
) -> Allocation:
    loss, cost = float(_total(loss_LN, choice_L)), int(_total(cost_LN, choice_L))
    return Allocation(tuple(choice_L.tolist()), loss, cost, is_within, bound, price)


def _at_price(loss_LN: Tensor, cost_LN: Tensor, price: float) -> Tensor:
    """Each layer's best option when a unit of cost is worth `price` of loss."""
    return (loss_LN + price * cost_LN).argmin(1)


def _price(loss_LN: Tensor, cost_LN: Tensor, budget: int) -> float:
    """The price that makes the Lagrangian bound, sum of min(loss + price cost) - price budget, largest.

    Bisection: the bound's slope in the price is the cost of the choice at that price less the budget.
    """
    if _total(cost_LN, _at_price(loss_LN, cost_LN, 0.0)) <= budget:
        return 0.0
    # where one unit of cost outweighs all loss there is, each layer takes a cheapest option
    low, high = 0.0, float(loss_LN.masked_fill(loss_LN.isinf(), 0).abs().sum()) * 2 + 1
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_above = bool(_total(cost_LN, _at_price(loss_LN, cost_LN, middle)) > budget)
        low, high = (middle, high) if is_above else (low, middle)
    return high


def _filled(loss_LN: Tensor, cost_LN: Tensor, budget: int, *, price: float) -> Tensor:
    """The choice at that price, and what is left of the budget spent where it saves most for its cost."""
    choice_L = _at_price(loss_LN, cost_LN, price)
    left = budget - int(_total(cost_LN, choice_L))
    saved_LN = loss_LN.gather(1, choice_L[:, None]) - loss_LN
    extra_LN = cost_LN - cost_LN.gather(1, choice_L[:, None])
    rate_LN = saved_LN / extra_LN.clamp_min(1)
    for place in rate_LN.flatten().argsort(descending=True)[: int((saved_LN > 0).sum())].tolist():
        layer, option = divmod(place, loss_LN.shape[1])
        extra = int(cost_LN[layer, option] - cost_LN[layer, choice_L[layer]])
        if extra <= left and loss_LN[layer, option] < loss_LN[layer, choice_L[layer]]:
            choice_L[layer], left = option, left - extra
    return choice_L


def _search(loss_LN: Tensor, cost_LN: Tensor, budget: int, *, price: float, known_loss: float) -> Tensor:
    """The best choice: partial ones grow a layer at a time, and those stay that might still do as well as `known_loss`."""
    finite_LN = loss_LN.masked_fill(loss_LN.isinf(), 0)
    slack = _SLACK * float(finite_LN.abs().max()) + _PRICE_SLACK * price * float(cost_LN.abs().sum())
    # what the layers still to come cost and lose at least
    rest_bound_L, rest_cost_L = _sums_after((loss_LN + price * cost_LN).amin(1)), _sums_after(cost_LN.amin(1))
    loss_S, cost_S = loss_LN.new_zeros(1), cost_LN.new_zeros(1)
    history = []
    for layer, (rest_bound, rest_cost) in enumerate(zip(rest_bound_L, rest_cost_L, strict=True)):
        loss_S = (loss_S[:, None] + loss_LN[layer]).flatten()
        cost_S = (cost_S[:, None] + cost_LN[layer]).flatten()
        bound_S = loss_S + rest_bound + price * (cost_S - budget)
        is_hopeful_S = (bound_S <= known_loss + slack) & (cost_S + rest_cost <= budget)
        kept_S = is_hopeful_S.nonzero()[:, 0]
        kept_S = kept_S[_undominated(loss_S[kept_S], cost_S[kept_S])]
        history.append(kept_S)
        loss_S, cost_S = loss_S[kept_S], cost_S[kept_S]
    place, choice = int(loss_S.argmin()), []
    for kept_S in reversed(history):
        place, option = divmod(int(kept_S[place]), loss_LN.shape[1])
        choice.append(option)
    return torch.tensor(choice[::-1])


def _sums_after(value_L: Tensor) -> list[float]:
    """For each layer the sum over the layers behind it."""
    return [*value_L.flip(0).cumsum(0).flip(0).tolist()[1:], 0.0]


def _undominated(loss_S: Tensor, cost_S: Tensor) -> Tensor:
    """Which partial choices cost less than all that are as good, by rising cost and falling loss."""
    by_loss_S = loss_S.argsort(stable=True)
    order_S = by_loss_S[cost_S[by_loss_S].argsort(stable=True)]
    best_S = loss_S[order_S].cummin(0).values
    is_first_S = torch.ones_like(best_S, dtype=torch.bool)
    is_first_S[1:] = best_S[1:] < best_S[:-1]
    return order_S[is_first_S]
