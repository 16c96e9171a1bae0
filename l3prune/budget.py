"""How much of each layer to prune for a budget: sparsity, filters, MACs or bytes. NumPy only.

A rule of `allocation` shares one overall level out among the layers; `meet` finds the level, and
then the whole weights or filters, with which the budget is met.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from l3prune.allocation import LayerCost, Rule, check_choice, checked, uniform
from l3prune.errors import ParameterError
from l3prune.filterwise import coupled, filters_kept
from l3prune.plan import check_fraction

#: What a budget can limit -> how it is compared.
RELATIONS = {"sparsity": "=", "filters": "=", "macs": "<=", "bytes": "<="}

MODES = ("layerwise", "filterwise")

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
_SYNTAX = re.compile(r"\s*(\w+)\s*(<=|>=|==|=|<|>)\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(\w*|%)\s*")
_EXAMPLES = "macs<=1G, bytes<=450k, sparsity=95.45 (percent) or filters=0.5 (fraction removed)"

#: So near to a limit, as a part of it, `meet` gives back no more than rounding took: to fill the
#: rest, layers of cheap weights would have to stay denser than the rule leaves them.
_NEAR = 1e-3

#: Halvings of [0, 1) until the level is exact in double precision.
_HALVINGS = 60

#: (weights, biases) -> bytes.
Size = Callable[[int, int], float]


def float32_bytes(weights: int, biases: int) -> int:
    """Bytes of weights that are not zero and of biases at four bytes each.

    EdgeL3's convention: where the weights are is not counted, and neither is BatchNorm.

    Examples
    --------
    >>> float32_bytes(213491 - 1920, 1920)
    853964
    """
    return 4 * (weights + biases)


@dataclass(frozen=True)
class Budget:
    """A wish for the whole network.

    Attributes
    ----------
    kind : str
        sparsity (fraction of weights that are zero or gone), filters (fraction of filters removed),
        macs or bytes.
    relation : str
        "=" for the first two, "<=" for the others.
    value : float
        A fraction in [0, 1), or the limit.

    Raises
    ------
    ParameterError
        Unknown kind, wrong relation, value out of range.

    Examples
    --------
    >>> print(Budget("sparsity", "=", 0.9545), Budget("macs", "<=", 2.5e9))
    sparsity=95.45% macs<=2.5G
    """

    kind: str
    relation: str
    value: float

    def __post_init__(self):
        if self.kind not in RELATIONS:
            raise ParameterError(
                f"budget of {self.kind!r} is unknown; known: {', '.join(RELATIONS)}; "
                f"write {_EXAMPLES}"
            )
        if self.relation != RELATIONS[self.kind]:
            raise ParameterError(
                f"budget {self.kind}{self.relation}: {self.kind} is compared by "
                f"{RELATIONS[self.kind]} only; write {_EXAMPLES}"
            )
        if self.relation == "=":
            check_fraction(self.value, self.kind)
        elif not 0 < self.value < np.inf:
            raise ParameterError(f"budget {self.kind}<={self.value:g} is not a positive number")

    def __str__(self) -> str:
        if self.kind == "sparsity":
            # With the sign, without which less than 1 % is not read back.
            return f"sparsity={100 * self.value:.10g}%"
        value = self.value
        for unit, factor in reversed(_UNITS.items()):
            if value >= factor and self.relation == "<=":
                return f"{self.kind}{self.relation}{value / factor:.10g}{unit}"
        return f"{self.kind}{self.relation}{value:.10g}"


def parse_budget(text: str) -> Budget:
    """A budget as command lines have it.

    Sparsity is in percent (a % sign may follow), filters is the fraction that is removed (percent
    with a % sign), MACs and bytes take k, M or G for thousands, millions, thousand millions.

    Raises
    ------
    ParameterError
        The text is no budget; a sparsity below 1 % without a % sign, which is most likely meant as
        a fraction.

    Examples
    --------
    >>> parse_budget("macs <= 1G")
    Budget(kind='macs', relation='<=', value=1000000000.0)
    >>> parse_budget("sparsity=95.45").value
    0.9545
    """
    match = _SYNTAX.fullmatch(text)
    if not match:
        raise ParameterError(f"budget {text!r} is not understood; write {_EXAMPLES}")
    kind, relation, digits, unit = match.groups()
    # Budget tells of an unknown kind or a wrong relation; both values pass its other check.
    Budget(kind, relation, 0 if relation == "=" else 1)
    # Decimal: 95.45 / 100 in binary is not 0.9545.
    number = Decimal(digits)
    if relation == "<=":
        factors = {"": 1, **_UNITS, "K": _UNITS["k"]}
        if unit not in factors:
            raise ParameterError(
                f"budget {text!r}: unit {unit!r} is unknown; known: {', '.join(_UNITS)}"
            )
        return Budget(kind, relation, float(number * factors[unit]))
    if unit not in ("", "%"):
        raise ParameterError(f"budget {text!r}: {kind} takes no unit {unit!r}; % is allowed")
    if kind == "sparsity":
        if not unit and 0 < number < 1:
            raise ParameterError(
                f"budget {text!r}: sparsity is in percent; give {float(100 * number):.10g}, "
                f"or {digits}% if that is meant"
            )
        if number >= 100:
            raise ParameterError(f"budget {text!r}: sparsity is in percent, below 100")
    percent = kind == "sparsity" or unit == "%"
    return Budget(kind, relation, float(number / 100 if percent else number))


def kept(costs: Sequence[LayerCost], amounts: Mapping[str, float], mode: str) -> dict[str, int]:
    """How many weights (layerwise) or filters (filterwise) of each layer stay.

    What `plan_layerwise` and `plan_filterwise(ratio=...)` make of the amounts, where no two weights
    score alike.

    Raises
    ------
    ParameterError
        An amount is missing, outside [0, 1) or takes all of a layer; the mode is unknown.

    Examples
    --------
    >>> layer = LayerCost("a", 90, 10, 1, 1, (3, 3))
    >>> kept([layer], {"a": 0.5}, "layerwise"), kept([layer], {"a": 0.5}, "filterwise")
    ({'a': 45}, {'a': 5})
    """
    check_choice("mode", mode, MODES)
    costs = checked(costs)
    amounts = _amounts(amounts, [each.name for each in costs])
    result = {}
    for each in costs:
        amount = amounts[each.name]
        if mode == "filterwise":
            result[each.name] = filters_kept(each.filters, amount)
            continue
        # The percentile rule: the score of this rank goes too.
        goes = round((each.weights - 1) * amount) + 1 if amount else 0
        if goes == each.weights:
            raise ParameterError(
                f"layer {each.name} would lose all its weights; ask for less sparsity there"
            )
        result[each.name] = each.weights - goes
    return result


def measure(
    kind: str,
    costs: Sequence[LayerCost],
    stay: Mapping[str, int],
    mode: str,
    size: Size = float32_bytes,
) -> float:
    """What a budget of this kind is compared with, for the weights or filters that `kept` gives.

    Parameters
    ----------
    kind : str
        As in `Budget`.
    costs : sequence of LayerCost
    stay : mapping of str to int
        Weights or filters of each layer that stay.
    mode : str
        layerwise: weights are zeroed; MACs and bytes are those of the others. filterwise: filters
        are removed and with them the channels of the layers that read them.
    size : callable (weights, biases) -> bytes

    Examples
    --------
    >>> layer = LayerCost("a", 90, 10, 7, 1, (3, 3))
    >>> [measure(kind, [layer], {"a": 5}, "filterwise") for kind in ("filters", "macs", "bytes")]
    [0.5, 315, 200]
    """
    check_choice("mode", mode, MODES)
    check_choice("kind", kind, RELATIONS)
    left = _left(kind, checked(costs), stay, mode, size)
    if kind == "sparsity":
        return 1 - left / sum(each.weights for each in costs)
    return 1 - left / sum(each.filters for each in costs) if kind == "filters" else left


def meet(
    budget: Budget,
    costs: Sequence[LayerCost],
    mode: str = "layerwise",
    rule: Rule = uniform,
    *,
    groups: Sequence[Sequence[str]] = (),
    size: Size = float32_bytes,
) -> dict[str, float]:
    """Amounts by a rule with which a budget is met, counted in whole weights or filters.

    Bisection finds the rule's lowest level at which what stays is within the budget. Then layers
    get back single weights or filters, those first that rounding has cost most, until no more than
    0.1 % of the limit is left over or nothing fits in any more.

    MACs and bytes are never above the limit, and a sparsity or fraction of filters not below the
    wish, taken to the nearest whole weight or filter. Layerwise, the sparsity is met to the weight.
    Filterwise, one filter may be more than what is left over; small networks then end further from
    the limit: `measure` tells where.

    Parameters
    ----------
    budget : Budget
    costs : sequence of LayerCost
        In the network's order.
    mode : str
        layerwise: amounts for `plan_layerwise`; filterwise: ratios for `plan_filterwise`.
    rule : callable (costs, level) -> mapping of str to float
        `uniform`, `erk`, or `by_sensitivity` with its curves filled in.
    groups : sequence of sequences of str
        Filterwise: layers that lose filters together. They get their mean amount.
    size : callable (weights, biases) -> bytes
        What a budget of bytes counts.

    Returns
    -------
    amounts : dict of str to float
        In [0, 1), such that `kept` gives exactly the numbers that were chosen. Where level 0 is
        within the budget: the rule's amounts for it, which are 0 for the rules here.

    Raises
    ------
    ParameterError
        The budget cannot be met by the rule; the error says how far it gets.

    Examples
    --------
    >>> first = LayerCost("a", 90, 10, 7, 1, (3, 3))
    >>> second = LayerCost("b", 40, 4, 7, 10, (1, 1), previous=("a",))
    >>> ratios = meet(parse_budget("macs<=500"), [first, second], "filterwise")
    >>> stay = kept([first, second], ratios, "filterwise")
    >>> ratios, measure("macs", [first, second], stay, "filterwise")
    ({'a': 0.4, 'b': 0.5}, 462)
    """
    costs = checked(costs)
    check_choice("mode", mode, MODES)
    if mode == "layerwise" and (groups or budget.kind == "filters"):
        raise ParameterError("filters and their groups are removed filterwise; mode is layerwise")
    sizes = {each.name: each.weights if mode == "layerwise" else each.filters for each in costs}
    units = coupled(sizes, groups)

    def wishes(level: float) -> np.ndarray:
        """What the rule leaves of each unit, in fractions of a weight or filter."""
        amounts = _amounts(rule(costs, level), sizes)
        return np.array(
            [np.mean([sizes[name] * (1 - amounts[name]) for name in unit]) for unit in units]
        )

    def whole(wish: np.ndarray) -> np.ndarray:
        return np.maximum(np.floor(wish + 1e-9), 1).astype(int)

    def stays(counts: np.ndarray) -> dict[str, int]:
        return {name: int(n) for unit, n in zip(units, counts, strict=True) for name in unit}

    def left(counts: np.ndarray) -> float:
        return _left(budget.kind, costs, stays(counts), mode, size)

    limit = _limit(budget, costs)
    level = _highest_level(rule, costs)
    wish = wishes(level)
    if left(whole(wish)) > limit:
        value = measure(budget.kind, costs, stays(whole(wish)), mode, size)
        best = f"{100 * value:.6g} %" if budget.relation == "=" else f"{value:.6g}"
        raise ParameterError(
            f"{budget} cannot be met {mode}: this rule gets to {best} at most; "
            "ask for less, or use another rule"
        )
    most = whole(wishes(0.0))
    counts = most
    if left(most) > limit:
        low = 0.0
        for _ in range(_HALVINGS):
            middle = (low + level) / 2
            if left(whole(wishes(middle))) <= limit:
                level = middle
            else:
                low = middle
        # A rule may jump at this level, as one on a grid of amounts does: go between its two sides.
        above, below = wishes(low), wishes(level)
        part, too_much = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (part + too_much) / 2
            if left(whole(below + middle * (above - below))) <= limit:
                part = middle
            else:
                too_much = middle
        counts = _give_back(below + part * (above - below), whole, left, limit, most)
    stay = stays(counts)
    return {name: _amount(sizes[name], sizes[name] - stay[name], mode) for name in sizes}


def _limit(budget: Budget, costs: Sequence[LayerCost]) -> float:
    """The budget as what may stay: weights, filters, MACs or bytes."""
    if budget.relation == "<=":
        return budget.value
    total = sum(each.weights if budget.kind == "sparsity" else each.filters for each in costs)
    # To the nearest whole one.
    return np.floor(total * (1 - budget.value) + 0.5)


def _give_back(
    wish: np.ndarray,
    whole: Callable[[np.ndarray], np.ndarray],
    left: Callable[[np.ndarray], float],
    limit: float,
    most: np.ndarray,
) -> np.ndarray:
    """Whole numbers for the wish, and ones added where they fit below the limit."""
    counts = whole(wish)
    amount = left(counts)
    fits = counts < most
    while fits.any() and amount < limit:
        missing = np.where(fits, (wish - counts) / most, -np.inf)
        chosen = int(missing.argmax())
        # What rounding took is given back in any case, more than that for a nearer limit only.
        if missing[chosen] <= 0 and limit - amount <= _NEAR * limit:
            break
        counts[chosen] += 1
        more = left(counts)
        if more > limit:
            # What does not fit now never will: everything only grows.
            counts[chosen] -= 1
            fits[chosen] = False
        else:
            amount = more
            fits[chosen] = counts[chosen] < most[chosen]
    return counts


def _amounts(amounts: Mapping[str, float], layers: Collection[str]) -> dict[str, float]:
    for layer in layers:
        if layer not in amounts:
            raise ParameterError(f"layer {layer} has no amount; give one for each layer")
    return {layer: check_fraction(amounts[layer], f"amount of {layer}") for layer in layers}


def _amount(size: int, goes: int, mode: str) -> float:
    if mode == "filterwise" or goes == 0:
        return goes / size
    # In the middle of what the percentile rule rounds to the rank goes - 1, and above 0, which
    # would keep all.
    return (goes - 0.75) / (size - 1)


def _highest_level(rule: Rule, costs: Sequence[LayerCost]) -> float:
    """The highest level that the rule takes: it may refuse what some layer could not give."""
    # At 0 no rule has a reason to refuse but a mistake in what it was given.
    rule(costs, 0.0)
    low, high = 0.0, 1 - 1e-9
    for attempt in range(_HALVINGS):
        middle = (low + high) / 2 if attempt else high
        try:
            rule(costs, middle)
        except ParameterError:
            high = middle
        else:
            low = middle
            if not attempt:
                break
    return low


def _left(
    kind: str, costs: Sequence[LayerCost], stay: Mapping[str, int], mode: str, size: Size
) -> float:
    """What stays of the network: weights, filters, MACs or bytes."""
    if kind == "filters":
        return sum(stay[each.name] for each in costs)
    weights = stay
    biases = sum(each.filters for each in costs)
    if mode == "filterwise":
        gone = {each.name: each.filters - stay[each.name] for each in costs}
        weights = {
            each.name: each.area
            * (each.in_channels - sum(gone[name] for name in each.previous))
            * stay[each.name]
            for each in costs
        }
        biases = sum(stay[each.name] for each in costs)
    if kind == "macs":
        return sum(weights[each.name] * each.positions for each in costs)
    total = sum(weights[each.name] for each in costs)
    return total if kind == "sparsity" else size(total, biases)
