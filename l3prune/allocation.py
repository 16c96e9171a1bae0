"""Sharing an overall sparsity out among the layers: what they cost, and rules. NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l3prune.checks import is_integer
from l3prune.errors import ParameterError
from l3prune.plan import check_fraction

#: EdgeL3's Table II: the overall sparsity it names, in percent, and how much of the weights of each
#: of mel256's eight convolutions goes, in percent.
EDGEL3_LISTS = {
    53.49: (0, 30, 40, 50, 30, 50, 50, 60),
    63.48: (0, 40, 50, 60, 40, 60, 60, 70),
    72.29: (0, 40, 50, 60, 40, 70, 70, 80),
    73.55: (0, 60, 60, 70, 50, 70, 70, 80),
    80.87: (0, 70, 70, 75, 60, 80, 80, 85),
    87.08: (0, 80, 80, 85, 40, 85, 85, 95),
    90.51: (30, 85, 85, 90, 60, 90, 90, 95),
    95.45: (0, 85, 85, 85, 75, 95, 98, 98),
    97.00: (0, 93, 94, 96, 97, 95.97, 98, 97),
    98.00: (0, 95, 96, 97, 97, 98, 98.65, 98),
    99.00: (0, 94, 96, 99, 99, 99, 99, 99.2),
}

#: What budgets do with a layer: convolutions are pruned; others only read what is pruned, for
#: outputs that all stay (reader) or with an output for each channel, which goes with it (follower).
ROLES = ("convolution", "reader", "follower")


@dataclass(frozen=True)
class LayerCost:
    """What a budget needs to know of a layer with weights.

    Attributes
    ----------
    name : str
    weights : int
        Of the kernel: kh * kw * in_channels * filters.
    filters : int
    positions : int
        Output positions, so that the layer's MACs are weights * positions.
    in_channels : int
        Channels that a filter reads.
    kernel_size : tuple of int
        (kh, kw).
    previous : tuple of str
        Layers whose filters are the input's channels: one in a chain, several behind a
        concatenation, any one of a group behind a residual sum. None where filters removed
        elsewhere do not change this layer's input, as for the first layer.
    channels : tuple of int
        How many of the input's channels are of each of `previous`: a flattened layer has one at
        each place, a grouped convolution reads a part. Empty: one for each filter, and no others.
    role : str
        One of `ROLES`. A follower reads one channel for each filter, and `channels` are of these.
    together : int
        Filters that only go together, one of each group: what is removed is a multiple of it.
    nonzero : int or None
        Weights that are not zero already; None for all.
    bias : bool
        There is one for each filter.

    Raises
    ------
    ParameterError
        A number is not whole and positive, or the weights are not the product.

    Examples
    --------
    >>> LayerCost("conv_2", 36864, 64, 50944, 64, (3, 3), ("conv_1",)).macs
    1877999616
    """

    name: str
    weights: int
    filters: int
    positions: int
    in_channels: int
    kernel_size: tuple[int, int]
    previous: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    role: str = "convolution"
    together: int = 1
    nonzero: int | None = None
    bias: bool = True

    def __post_init__(self):
        for what in ("weights", "filters", "positions", "in_channels", "together"):
            value = getattr(self, what)
            if not is_integer(value) or value < 1:
                raise ParameterError(
                    f"layer {self.name}: {what}={value!r} is not a whole number from 1 on"
                )
        if len(self.kernel_size) != 2 or self.weights != self.per_filter * self.filters:
            raise ParameterError(
                f"layer {self.name}: {self.weights} weights are not kernel {self.kernel_size} x "
                f"{self.in_channels} channels x {self.filters} filters; take the kernel's shape"
            )
        if isinstance(self.previous, str):
            raise ParameterError(
                f"layer {self.name}: previous={self.previous!r} is not a tuple of layer names; "
                f"give ({self.previous!r},)"
            )
        check_choice("role", self.role, ROLES)
        if self.filters % self.together:
            raise ParameterError(
                f"layer {self.name}: {self.filters} filters are not a multiple of the "
                f"{self.together} that go together"
            )
        if self.channels and len(self.channels) != len(self.previous):
            raise ParameterError(
                f"layer {self.name}: channels={self.channels} for previous={self.previous}; "
                "give one number for each of them, or none"
            )

    @property
    def pruned(self) -> bool:
        """Whether the layer itself can be pruned."""
        return self.role == "convolution"

    @property
    def present(self) -> int:
        """Weights that are not zero before anything is pruned."""
        return self.weights if self.nonzero is None else self.nonzero

    @property
    def area(self) -> int:
        """Positions of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def per_filter(self) -> int:
        """Weights of a filter."""
        return self.area * self.in_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the unpruned layer for one input."""
        return self.weights * self.positions


def uniform(costs: Sequence[LayerCost], sparsity: float) -> dict[str, float]:
    """The same amount of every layer; a layer of few weights keeps one.

    Raises
    ------
    ParameterError
        The sparsity is not in [0, 1).

    Examples
    --------
    >>> uniform([LayerCost("a", 9, 1, 1, 1, (3, 3)), LayerCost("b", 2, 2, 1, 1, (1, 1))], 0.75)
    {'a': 0.75, 'b': 0.5}
    """
    sparsity = check_fraction(sparsity)
    return {each.name: min(sparsity, 1 - 1 / each.weights) for each in to_prune(costs)}


def erk(costs: Sequence[LayerCost], sparsity: float) -> dict[str, float]:
    """Erdős-Rényi-Kernel amounts (Evci et al., ICML 2020): small layers stay denser.

    The density of a layer is in proportion to (in_channels + filters + kh + kw) / weights. Layers
    that this would make denser than they are stay whole, and the others make up for them.

    Parameters
    ----------
    costs : sequence of LayerCost
    sparsity : float
        Of all weights, in [0, 1).

    Raises
    ------
    ParameterError
        The sparsity is not in [0, 1), or a layer would keep less than one weight.

    Examples
    --------
    >>> first = LayerCost("a", 8, 4, 1, 2, (1, 1))
    >>> second = LayerCost("b", 64, 8, 1, 8, (1, 1))
    >>> {name: round(amount, 4) for name, amount in erk([first, second], 0.5).items()}
    {'a': 0.0, 'b': 0.5625}
    """
    sparsity = check_fraction(sparsity)
    costs = to_prune(costs)
    weights = {each.name: each.weights for each in costs}
    shares = {
        each.name: (each.in_channels + each.filters + sum(each.kernel_size)) for each in costs
    }
    left = (1 - sparsity) * sum(weights.values())
    amounts = dict.fromkeys(weights, 0.0)
    sparse = set(weights)
    while sparse:
        scale = left / sum(shares[name] for name in sparse)
        full = {name for name in sparse if scale * shares[name] >= weights[name]}
        if not full:
            break
        left -= sum(weights[name] for name in full)
        sparse -= full
    for name in sparse:
        if scale * shares[name] < 1:
            raise ParameterError(
                f"layer {name} would keep {scale * shares[name]:.2g} of its {weights[name]} "
                f"weights at sparsity={sparsity:g} by ERK; ask for less, or use uniform"
            )
        amounts[name] = 1 - scale * shares[name] / weights[name]
    return amounts


def by_sensitivity(
    costs: Sequence[LayerCost],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    target: float,
    per: str = "weights",
) -> dict[str, float]:
    """The amounts that lose least by measured curves, for a wanted part of all weights or MACs.

    Losses of layers are taken to add up. A curve is first made to rise (a loss that is smaller at a
    larger amount is noise) and then convex: the lines between its lower corners. On such curves the
    cheapest amounts are found exactly, by going along the flattest line that is left, measured in
    loss per weight (or MAC), until the target is reached. At most one layer ends between two
    corners, where its measured curve may lie above the line.

    Parameters
    ----------
    costs : sequence of LayerCost
    curves : mapping of str to sequence of (amount, loss)
        Of each layer: the loss with only this layer pruned by the amount, and with none (amount 0).
    target : float
        Fraction of all weights or MACs to remove, in [0, 1).
    per : str
        weights or macs: what the target is of. MACs of a layer count as its weights go, each layer
        by itself.

    Raises
    ------
    ParameterError
        A curve is missing or has no point at 0, an amount is outside [0, 1) or given twice, the
        target is beyond the largest amounts that were measured.

    Examples
    --------
    >>> layers = [LayerCost("a", 10, 10, 1, 1, (1, 1)), LayerCost("b", 10, 10, 1, 1, (1, 1))]
    >>> curves = {"a": [(0, 0), (0.5, 1), (0.9, 9)], "b": [(0, 0), (0.9, 9)]}
    >>> by_sensitivity(layers, curves, 0.5)
    {'a': 0.5, 'b': 0.5}
    """
    target = check_fraction(target, "target")
    check_choice("per", per, ("weights", "macs"))
    prices = {each.name: getattr(each, per) for each in to_prune(costs)}
    for wrong in (prices.keys() - curves.keys(), curves.keys() - prices.keys()):
        if wrong:
            raise ParameterError(
                f"curves and layers do not agree about {', '.join(sorted(wrong))}; "
                f"give one curve for each of {', '.join(prices)}"
            )
    lines = []
    for number, (name, price) in enumerate(prices.items()):
        corners = _lower_corners(name, curves[name])
        for (start, loss), (end, next_loss) in itertools.pairwise(corners):
            size = (end - start) * price
            lines.append(((next_loss - loss) / size, number, start, end, size, name))
    amounts = dict.fromkeys(prices, 0.0)
    total = sum(prices.values())
    left = target * total
    # Of lines alike the earlier layer's first; a layer's own get steeper, so they come in order.
    for _, _, start, end, size, name in sorted(lines):
        if left <= 0:
            break
        amounts[name] = end if size <= left else start + (end - start) * left / size
        left -= size
    if left > 1e-9 * total:
        raise ParameterError(
            f"target={target:g} is more than the curves reach, {target - left / total:.4g} of all "
            f"{per}; ask for less, or measure larger amounts"
        )
    return amounts


#: (costs, overall level in [0, 1)) -> amount of each layer; no amount falls when the level rises.
Rule = Callable[[Sequence[LayerCost], float], Mapping[str, float]]

#: How a budget can be shared out among the layers; the last by measured curves.
ALLOCATIONS = ("uniform", "erk", "sensitivity")


def share_out(
    allocation: str,
    kind: str,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Rule:
    """The rule by which an allocation shares out a budget.

    Parameters
    ----------
    allocation : {"uniform", "erk", "sensitivity"}
    kind : str
        What the budget is of; "sensitivity" spends its loss per MAC, per filter or per weight.
    curves : mapping, or None
        For "sensitivity"; see `by_sensitivity`.

    Raises
    ------
    ParameterError
        The allocation is unknown.

    Examples
    --------
    >>> layers = [LayerCost("a", 10, 10, 1, 1, (1, 1)), LayerCost("b", 10, 10, 1, 1, (1, 1))]
    >>> share_out("uniform", "sparsity")(layers, 0.25)
    {'a': 0.25, 'b': 0.25}
    """
    check_choice("allocation", allocation, ALLOCATIONS)

    def by_curves(costs: Sequence[LayerCost], level: float) -> dict[str, float]:
        if kind == "filters":
            pruned = to_prune(costs)
            costs = [LayerCost(c.name, c.filters, c.filters, 1, 1, (1, 1)) for c in pruned]
        return by_sensitivity(costs, curves or {}, level, "macs" if kind == "macs" else "weights")

    return {"uniform": uniform, "erk": erk, "sensitivity": by_curves}[allocation]


def checked(costs: Sequence[LayerCost]) -> list[LayerCost]:
    """The costs as a list, if they fit together.

    Raises
    ------
    ParameterError
        No convolutions, two layers of one name, or one that reads what those before do not give.

    Examples
    --------
    >>> layer = LayerCost("a", 90, 10, 1, 1, (3, 3))
    >>> checked([layer]) == [layer]
    True
    """
    filters = {each.name: each.filters for each in costs if each.pruned}
    if not filters:
        raise ParameterError("there are no convolutions to prune")
    if len({each.name for each in costs}) < len(costs):
        raise ParameterError("two layers have the same name; give each its own")
    for each in costs:
        for name in each.previous:
            if name not in filters:
                raise ParameterError(
                    f"layer {each.name} reads layer {name}, which is not among the layers: "
                    f"{', '.join(filters)}"
                )
        channels = sum(each.channels or [filters[name] for name in each.previous])
        read = each.filters if each.role == "follower" else each.in_channels
        if channels > read or (each.previous and not each.channels and channels < read):
            raise ParameterError(
                f"layer {each.name} has {read} input channels, but "
                f"{' + '.join(each.previous)} give {channels}; name all layers that it reads"
            )
    return list(costs)


def to_prune(costs: Sequence[LayerCost]) -> list[LayerCost]:
    """Those of the layers that can be pruned, if all fit together: see `checked`.

    Examples
    --------
    >>> first = LayerCost("a", 9, 1, 1, 1, (3, 3))
    >>> dense = LayerCost("b", 2, 2, 1, 1, (1, 1), ("a",), role="reader")
    >>> [each.name for each in to_prune([first, dense])]
    ['a']
    """
    return [each for each in checked(costs) if each.pruned]


#: (weights, biases) -> bytes; of whole numbers, or of arrays of them.
Size = Callable[[Any, Any], Any]


def float32_bytes(weights: int, biases: int) -> int:
    """Bytes of weights that are not zero and of biases at four bytes each.

    EdgeL3's convention: where the weights are is not counted, and neither is BatchNorm.

    Examples
    --------
    >>> float32_bytes(213491 - 1920, 1920)
    853964
    """
    return 4 * (weights + biases)


def total_of(kind: str, costs: Sequence[LayerCost]) -> int:
    """All weights, or for the kind "filters" all filters, of the layers that can be pruned.

    Examples
    --------
    >>> total_of("filters", [LayerCost("a", 9, 1, 1, 1, (3, 3))])
    1
    """
    return sum(each.filters if kind == "filters" else each.weights for each in to_prune(costs))


def left_of(
    kind: str,
    costs: Sequence[LayerCost],
    stay: Mapping[str, Any],
    mode: str,
    size: Size = float32_bytes,
) -> Any:
    """What stays of a network: weights (for the kind "sparsity"), filters, MACs or bytes.

    Parameters
    ----------
    kind, costs, mode, size
        As `budget.measure`.
    stay : mapping of str to int or array of int
        Weights or filters of each layer that stay; arrays are as many answers.

    Examples
    --------
    >>> first = LayerCost("a", 9, 3, 5, 3, (1, 1))
    >>> dense = LayerCost("b", 24, 2, 1, 12, (1, 1), ("a",), (12,), role="reader")
    >>> left_of("macs", [first, dense], {"a": 2}, "filterwise")  # 2 x 3 x 5 + 2 x 8
    46
    """
    checked(costs)
    before = {each.name: each.filters for each in costs}
    weights = {each.name: each.weights for each in costs}
    filters: dict[str, Any] = {**before, **(stay if mode == "filterwise" else {})}
    if kind == "filters":
        return sum(filters[each.name] for each in costs if each.pruned)
    if mode == "layerwise":
        weights |= stay
    else:
        for each in costs:
            read = each.channels or [before[name] for name in each.previous]
            # Filters go in such numbers that this leaves no remainder.
            lost = sum(
                (before[name] - stay[name]) * count // before[name]
                for name, count in zip(each.previous, read, strict=True)
            )
            if each.role == "follower":
                filters[each.name] = each.filters - lost
                lost = 0
            weights[each.name] = each.area * (each.in_channels - lost) * filters[each.name]
    if kind == "macs":
        return sum(weights[each.name] * each.positions for each in costs)
    if kind == "sparsity":
        return sum(weights[each.name] for each in costs if each.pruned)
    return size(sum(weights.values()), sum(filters[each.name] for each in costs if each.bias))


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raise a ParameterError that lists the `known` values if `value` is none of them.

    Examples
    --------
    >>> check_choice("mode", "filter", ("layerwise", "filterwise"))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: mode='filter' is unknown; known: layerwise, filterwise
    """
    if value not in known:
        raise ParameterError(f"{name}={value!r} is unknown; known: {', '.join(known)}")


def _lower_corners(layer: str, curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the largest convex curve below the points, once these are made to rise."""
    points = sorted((float(amount), float(loss)) for amount, loss in curve)
    amounts = [amount for amount, _ in points]
    for amount in amounts:
        check_fraction(amount, f"curve of layer {layer}: amount")
    if not np.isfinite(points).all():
        raise ParameterError(f"curve of layer {layer} has NaN or infinite losses; measure again")
    if len(set(amounts)) < len(amounts):
        raise ParameterError(f"curve of layer {layer} has an amount twice; give it once")
    if 0 not in amounts:
        raise ParameterError(
            f"curve of layer {layer} has no point at amount 0; add the unpruned network's loss"
        )
    risen = zip(amounts, np.maximum.accumulate([loss for _, loss in points]), strict=True)
    corners: list[tuple[float, float]] = []
    for amount, loss in risen:
        while len(corners) > 1:
            (first, first_loss), (second, second_loss) = corners[-2:]
            if (second_loss - first_loss) * (amount - first) < (loss - first_loss) * (
                second - first
            ):
                break
            corners.pop()
        corners.append((amount, float(loss)))
    return corners
