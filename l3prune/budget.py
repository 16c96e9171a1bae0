"""How much of each layer to prune for a budget: sparsity, filters, MACs or bytes. NumPy only.

A rule of `allocation` shares one overall level out among the layers; `meet` finds the level, and
then the whole weights or filters, with which the budget is met.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from l3prune.allocation import (
    LayerCost,
    Rule,
    Size,
    check_choice,
    float32_bytes,
    left_of,
    to_prune,
    total_of,
    uniform,
)
from l3prune.errors import ParameterError
from l3prune.filterwise import coupled, filters_kept
from l3prune.plan import check_fraction

#: What a budget can limit -> how it is compared. Milliseconds are not counted here: see `speed`.
RELATIONS = {"sparsity": "=", "filters": "=", "macs": "<=", "bytes": "<=", "ms": "<="}

#: What `measure` counts.
COUNTED = ("sparsity", "filters", "macs", "bytes")

MODES = ("layerwise", "filterwise")

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
_SYNTAX = re.compile(
    # An exponent of more digits is beyond the numbers that Decimal takes.
    r"\s*(\w+)\s*(<=|>=|==|=|<|>)\s*(\d+\.?\d*(?:e[+-]?\d{1,3}(?!\d))?|\.\d+)\s*(\w*|%)\s*"
)
_EXAMPLES = (
    "macs<=1G, bytes<=450k, ms<=20, sparsity=95.45 (percent) or filters=0.5 (fraction removed)"
)

#: How near a budget is met: of all weights or filters, and of the MACs or bytes.
_TOLERANCE = {"sparsity": 1e-3, "filters": 1e-3, "macs": 1e-2, "bytes": 1e-2}

#: So near to a limit, as a part of it, `meet` gives back no more than rounding took: to fill the
#: rest, layers of cheap weights would have to stay denser than the rule leaves them.
_NEAR = 1e-3

#: Halvings of [0, 1) until the level is exact in double precision.
_HALVINGS = 60


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
    score alike but those that are zero already, which go first.

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
    costs = to_prune(costs)
    amounts = _amounts(amounts, [each.name for each in costs])
    result = {}
    for each in costs:
        amount = amounts[each.name]
        if mode == "filterwise":
            result[each.name] = each.together * filters_kept(each.filters // each.together, amount)
            continue
        # The percentile rule: the score of this rank goes too.
        goes = round((each.weights - 1) * amount) + 1 if amount else 0
        if goes == each.weights:
            raise ParameterError(
                f"layer {each.name} would lose all its weights; ask for less sparsity there"
            )
        result[each.name] = min(each.weights - goes, each.present)
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
        are removed and with them the channels of the layers that read them. MACs and bytes are of
        all layers, sparsity and filters of those that can be pruned.
    size : callable (weights, biases) -> bytes

    Examples
    --------
    >>> layer = LayerCost("a", 90, 10, 7, 1, (3, 3))
    >>> [measure(kind, [layer], {"a": 5}, "filterwise") for kind in ("filters", "macs", "bytes")]
    [0.5, 315, 200]
    """
    check_choice("mode", mode, MODES)
    check_choice("kind", kind, COUNTED)
    left = left_of(kind, costs, stay, mode, size)
    return 1 - left / total_of(kind, costs) if kind in ("sparsity", "filters") else left


@dataclass(frozen=True)
class Outcome:
    """How near a pruned network is to its budget; `note` tells it in words where it is not near.

    Attributes
    ----------
    budget : str
    value : float
        What the budget is compared with, as `measure` gives it.
    met : bool
        At or below the limit; within 0.1 % of all weights or filters, or half a filter.
    near : bool
        Also no more than 1 % below the limit.
    note : str

    Examples
    --------
    >>> Outcome("macs<=1k", 1000.0, met=True, near=True, note="").near
    True
    """

    budget: str
    value: float
    met: bool
    near: bool
    note: str


def outcome(budget: Budget, value: float, costs: Sequence[LayerCost]) -> Outcome:
    """Compare what `measure` found with a budget.

    Examples
    --------
    >>> layer = LayerCost("a", 90, 10, 7, 1, (3, 3))
    >>> outcome(parse_budget("sparsity=17"), 0.1743, [layer]).note
    'sparsity is 17.43 % instead of 17 %'
    """
    tolerance = _TOLERANCE[budget.kind]
    if budget.relation == "<=":
        met = bool(value <= budget.value)
        near = met and bool(value >= (1 - tolerance) * budget.value)
        side = f"{100 * abs(1 - value / budget.value):.3g} % {'below' if met else 'above'}"
        text = f"{budget.kind} are {value:,.10g}, {side} the limit of {budget.value:,.10g}"
    else:
        if budget.kind == "filters":
            tolerance = max(tolerance, 0.5 / total_of("filters", costs) + 1e-9)
        met = near = bool(abs(value - budget.value) <= tolerance)
        verb = "is" if budget.kind == "sparsity" else "removed are"
        text = f"{budget.kind} {verb} {100 * value:.4g} % instead of {100 * budget.value:.10g} %"
    return Outcome(str(budget), float(value), met, near, "" if near else text)


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
    0.1 % of the limit is left over or nothing fits in any more. Where that is not near (`outcome`),
    layers exchange one or two filters for one or two of another, as long as that comes nearer.

    MACs and bytes are never above the limit, and a sparsity or fraction of filters not below the
    wish, taken to the nearest whole weight or filter. Layerwise, the sparsity is met to the weight.
    Filterwise, small networks may end further from the limit: `measure` tells where.

    Layerwise, weights that are zero already are of those that go: a layer is never denser than it
    was, and if it is sparser than the rule's level, it stays as it is.

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

    Returns
    -------
    amounts : dict of str to float
        In [0, 1), such that `kept` gives exactly the numbers that were chosen. Where level 0 is
        within the budget: the rule's amounts for it, 0 for the rules here, or what is zero already.

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
    ({'a': 0.3, 'b': 0.75}, 490)
    """
    pruned = to_prune(costs)
    check_choice("mode", mode, MODES)
    if budget.kind not in COUNTED:
        raise ParameterError(f"{budget} is measured, not counted: see speed.meet_milliseconds")
    if mode == "layerwise" and (groups or budget.kind == "filters"):
        raise ParameterError("filters and their groups are removed filterwise; mode is layerwise")
    by_filter = mode == "filterwise"
    # Weights, or filters that go together.
    sizes = {c.name: c.filters // c.together if by_filter else c.weights for c in pruned}
    together = {c.name: c.together if by_filter else 1 for c in pruned}
    present = {c.name: sizes[c.name] if by_filter else c.present for c in pruned}
    units = coupled(sizes, groups)
    there = np.array([present[unit[0]] for unit in units])

    def wishes(level: float) -> np.ndarray:
        """What the rule leaves of each unit, in fractions of a weight or filter."""
        amounts = _amounts(rule(costs, level), sizes)
        return np.array(
            [np.mean([sizes[name] * (1 - amounts[name]) for name in unit]) for unit in units]
        )

    def whole(wish: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(np.floor(wish + 1e-9), 1).astype(int), there)

    def stays(counts: np.ndarray) -> dict[str, Any]:
        each = zip(units, np.moveaxis(counts, -1, 0), strict=True)
        return {name: number * together[name] for unit, number in each for name in unit}

    def left(counts: np.ndarray) -> Any:
        return left_of(budget.kind, costs, stays(counts), mode, size)

    near, limit = _limits(budget, costs)
    level = _highest_level(rule, costs)
    least = whole(wishes(level))
    if left(least) > limit:
        value = measure(budget.kind, costs, stays(least), mode, size)
        best = f"{100 * value:.6g} %" if budget.relation == "=" else f"{value:.6g}"
        raise ParameterError(
            f"{budget} cannot be met {mode}: this rule gets to {best} at most; "
            "ask for less, or use another rule"
        )
    counts = most = whole(wishes(0.0))
    if left(most) > limit:
        level, low = _halve(lambda level: left(whole(wishes(level))) <= limit, level, 0.0)
        # A rule may jump at this level, as one on a grid of amounts does: go between its two sides.
        above, below = wishes(low), wishes(level)
        part, _ = _halve(lambda part: left(whole(below + part * (above - below))) <= limit, 0, 1)
        wish = below + part * (above - below)
        counts = _give_back(whole(wish), wish, left, limit, most)
        if by_filter:
            counts = _exchange(counts, wish, left, (near, limit), (least, most))
    stay = stays(counts)
    return {
        name: _amount(sizes[name], sizes[name] - int(stay[name]) // together[name], mode)
        for name in sizes
    }


def _limits(budget: Budget, costs: Sequence[LayerCost]) -> tuple[float, float]:
    """What must stay to be near the budget, and what may: weights, filters, MACs or bytes."""
    tolerance = _TOLERANCE[budget.kind]
    if budget.relation == "<=":
        return budget.value * (1 - tolerance), budget.value
    total = total_of(budget.kind, costs)
    # To the nearest whole one.
    return total * (1 - budget.value - tolerance), np.floor(total * (1 - budget.value) + 0.5)


def _give_back(
    counts: np.ndarray,
    wish: np.ndarray,
    left: Callable[[np.ndarray], float],
    limit: float,
    most: np.ndarray,
) -> np.ndarray:
    """The whole numbers, with ones added to them where they fit below the limit."""
    amount = left(counts)
    fits = counts < most
    while fits.any() and amount < limit:
        missing = np.where(fits, (wish - counts) / np.maximum(most, 1), -np.inf)
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


def _exchange(
    counts: np.ndarray,
    wish: np.ndarray,
    left: Callable[[np.ndarray], Any],
    goal: tuple[float, float],
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Whole numbers of which what is left comes into the goal, or as near below as exchanges of one
    or two for one or two take it. Of those alike the ones nearest to the wish."""
    (low, high), (least, most) = goal, bounds
    eye = np.eye(len(counts), dtype=int)
    while (amount := left(counts)) < low:
        best, chosen = (amount, 0.0), counts
        for giver, give, take in itertools.product(eye, (1, 2), (1, 2)):
            moved = counts - give * giver + take * eye
            moved = moved[((moved >= least) & (moved <= most)).all(axis=1)]
            for each, more in zip(moved, left(moved), strict=True):
                key = (min(more, low), -float((np.abs(each - wish) / most).sum()))
                if amount < more <= high and key > best:
                    best, chosen = key, each
        if chosen is counts:
            break
        counts = chosen
    return counts


def _amounts(amounts: Mapping[str, float], layers: Collection[str]) -> dict[str, float]:
    for layer in layers:
        if layer not in amounts:
            raise ParameterError(f"layer {layer} has no amount; give one for each layer")
    return {layer: check_fraction(amounts[layer], f"amount of {layer}") for layer in layers}


def _amount(size: int, goes: int, mode: str) -> float:
    if mode == "filterwise":
        return goes / size
    # Where all weights are zero already, none is left to be above a percentile.
    if goes in (0, size):
        return 0.0
    # In the middle of what the percentile rule rounds to the rank goes - 1, and above 0, which
    # would keep all.
    return (goes - 0.75) / (size - 1)


def _highest_level(rule: Rule, costs: Sequence[LayerCost]) -> float:
    """The highest level that the rule takes: it may refuse what some layer could not give."""
    # At 0 no rule has a reason to refuse but a mistake in what it was given.
    rule(costs, 0.0)

    def takes(level: float) -> bool:
        try:
            rule(costs, level)
        except ParameterError:
            return False
        return True

    highest = 1 - 1e-9
    return highest if takes(highest) else _halve(takes, 0.0, highest)[0]


def _halve(fits: Callable[[float], bool], inside: float, outside: float) -> tuple[float, float]:
    """The nearest two numbers between these of which one fits and the other does not."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if fits(middle):
            inside = middle
        else:
            outside = middle
    return inside, outside
