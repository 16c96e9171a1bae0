"""Pruning plans of whole filters: counts, ratios, one threshold, chains. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from l3prune.checks import is_integer
from l3prune.criteria import ConvWeights, distinct_filters
from l3prune.errors import ParameterError
from l3prune.plan import PruningPlan, check_fraction, each_layer, score


def plan_filterwise(
    scores: Mapping[str, np.ndarray],
    *,
    counts: Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    global_ratio: float | None = None,
    threshold_ratio: float | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    places: Mapping[str, np.ndarray] | None = None,
    round_to: int = 1,
) -> PruningPlan:
    """Remove whole filters: those of the lowest scores, the later one of two that score alike.

    Give exactly one of `counts`, `ratio`, `global_ratio` and `threshold_ratio`. A layer never loses
    its last filter.

    Parameters
    ----------
    scores : mapping of str to np.ndarray, (filters,)
        Higher = keep. From weights (`score` with a criterion of filters) or from data.
    counts : sequence of int
        How many filters of each layer stay, in the order of `scores` (EdgeL3's --num_filters).
    ratio : float or sequence of float
        In [0, 1): fraction of each layer's filters that goes, to the nearest filter (half a filter
        stays). One for all layers, or one a layer.
    global_ratio : float
        In [0, 1): fraction of all filters that goes, by one threshold for all layers. Each layer's
        scores are divided by the mean of their magnitudes first: scores of wide kernels are larger
        only because they sum more weights. Each layer's best filter is safe from the threshold.
    groups : sequence of sequences of str
        Layers that lose the same filters, because their outputs are added. The group is ranked by
        the mean of its layers' scores, divided as above, and counts as often as it has layers.
        Where the next filter under the threshold would be a group's and exceed the ratio,
        `global_ratio` stops.
    threshold_ratio : float
        In [0, 1): network slimming's rule, for scores that mean the same in every layer
        (`criteria.COMPARABLE`): of the scores of all n filters as they are, sorted, number
        int(n * ratio) is the threshold, and what is strictly above it stays. That is one filter
        fewer than the ratio says, and as many fewer as have the threshold's own score. Of a layer
        with nothing above it the best filter stays; groups are ranked by the mean of their layers'
        scores.
    places : mapping of str to np.ndarray of int, (filters,)
        Layer -> the place of each of its filters, from 0 on, where several have one place and only
        go together, as around a grouped convolution (`graph.FilterGroup.filters`). Each place has
        as many filters as the others, is ranked by their mean score and counts as often. Layers
        not named have a place for each filter.
    round_to : int
        The number of filters that stay is a multiple of it in every layer that has as many: rounded
        up where the layer has enough, else the layer's largest multiple. Smaller layers keep what
        was asked for.

    Returns
    -------
    plan : PruningPlan
        Masks of shape (filters,).

    Raises
    ------
    ParameterError
        Scores of single weights, a count that the layer cannot keep, a ratio outside [0, 1), groups
        of layers that differ in places or in what was asked for them, places of unequal size.

    Examples
    --------
    >>> scores = {"a": np.array([3.0, 1.0, 2.0, 2.0]), "b": np.array([10.0, 90.0])}
    >>> plan_filterwise(scores, counts=[2, 1])["a"].tolist()
    [True, False, True, False]
    >>> plan_filterwise(scores, global_ratio=0.5)["b"].tolist()
    [False, True]
    >>> plan_filterwise(scores, threshold_ratio=0.5)["a"].tolist()
    [True, False, False, False]
    """
    wishes = {
        "counts": counts,
        "ratio": ratio,
        "global_ratio": global_ratio,
        "threshold_ratio": threshold_ratio,
    }
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise ParameterError(
            f"filterwise plans take exactly one of {', '.join(wishes)}; "
            f"given: {', '.join(given) or 'none'}"
        )
    if not is_integer(round_to) or round_to < 1:
        raise ParameterError(f"round_to={round_to!r} is not a whole number from 1 on")
    values = _filter_scores(scores, as_they_are=threshold_ratio is not None)
    at = _places(values, places or {})
    units = _units(values, groups or (), at)
    sizes = {layer: int(each.max()) + 1 for layer, each in at.items()}
    # Filters at each place.
    together = {layer: len(at[layer]) // size for layer, size in sizes.items()}
    weights = [sum(together[layer] for layer in unit) for unit in units]
    if global_ratio is not None:
        fraction = check_fraction(global_ratio, "global_ratio")
        kept = _kept_globally(list(units.values()), weights, fraction)
    elif threshold_ratio is not None:
        fraction = check_fraction(threshold_ratio, "threshold_ratio")
        kept = _kept_above_threshold(list(units.values()), weights, fraction)
    else:
        if counts is not None:
            each = _check_counts(counts, sizes, together)
        else:
            ratios = zip(sizes.items(), each_layer(ratio, sizes, "ratio", "ratios"), strict=True)
            each = {layer: filters_kept(size, fraction) for (layer, size), fraction in ratios}
        kept = [each[unit[0]] for unit in units]
        for unit in units:
            for layer in unit[1:]:
                if each[layer] != each[unit[0]]:
                    first, other = (each[name] * together[name] for name in (unit[0], layer))
                    raise ParameterError(
                        f"layers {unit[0]} and {layer} lose filters together, but {first} and "
                        f"{other} filters are to stay; ask for the same number"
                    )
    masks = {}
    for (unit, ranked), count in zip(units.items(), kept, strict=True):
        # So many places have a multiple of round_to filters in every layer.
        whole = math.lcm(*(round_to // math.gcd(round_to, together[layer]) for layer in unit))
        if len(ranked) >= whole:
            count = min(-(-count // whole), len(ranked) // whole) * whole
        mask = np.zeros(len(ranked), bool)
        mask[_best_first(ranked)[:count]] = True
        masks.update({layer: mask[at[layer]] for layer in unit})
    return PruningPlan({layer: masks[layer] for layer in scores})


def plan_sequential(
    weights: Mapping[str, ConvWeights], counts: Sequence[int], criterion: str = "l1"
) -> PruningPlan:
    """Remove whole filters of a chain, each layer scored without the channels it has lost.

    EdgeL3's own filterwise rule: weights that read a removed filter do not count any more when the
    next layer's filters are ranked.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
        A chain: each convolution reads all filters of the one before, and nothing else.
    counts : sequence of int
        How many filters of each layer stay, in the order of `weights`.
    criterion : str
        A registered criterion that scores filters.

    Returns
    -------
    plan : PruningPlan
        Masks of shape (filters,).

    Raises
    ------
    ParameterError
        As `plan_filterwise`; or the convolutions are no chain.

    Examples
    --------
    >>> first = ConvWeights(np.array([1.0, 2.0]).reshape(1, 1, 1, 2))
    >>> second = ConvWeights(np.array([[9.0, 0.0], [1.0, 2.0]])[None, None])
    >>> plan_sequential({"a": first, "b": second}, [1, 1])["b"].tolist()
    [False, True]
    """
    if not weights:
        raise ParameterError("there are no convolutions to prune")
    sizes = {name: layer.kernel.shape[3] for name, layer in weights.items()}
    each = _check_counts(counts, sizes, dict.fromkeys(sizes, 1))
    masks: dict[str, np.ndarray] = {}
    previous = None
    for name, layer in weights.items():
        if previous is not None:
            if layer.kernel.shape[2] != masks[previous].size:
                raise ParameterError(
                    f"layer {name} reads {layer.kernel.shape[2]} channels and {previous} has "
                    f"{masks[previous].size} filters, so they are no chain; use plan_filterwise"
                )
            layer = replace(layer, kernel=layer.kernel[:, :, masks[previous]])
        masks |= plan_filterwise(score({name: layer}, criterion, filters=True), counts=[each[name]])
        previous = name
    return PruningPlan(masks)


def plan_distinct(weights: Mapping[str, ConvWeights]) -> PruningPlan:
    """Remove filters that others resemble, as many as there are; see `criteria.distinct_filters`.

    Examples
    --------
    >>> alike = np.array([[1.0, 1.1, 0.0], [0.0, 0.0, 2.0]])
    >>> plan_distinct({"a": ConvWeights(alike[:, None, None])})["a"].tolist()
    [True, False, True]
    """
    return PruningPlan({name: distinct_filters(layer) for name, layer in weights.items()})


def filters_kept(size: int, ratio: float) -> int:
    """How many of a layer's filters stay when a fraction goes: the nearest number, at least one.

    Examples
    --------
    >>> filters_kept(64, 0.3), filters_kept(5, 0.5), filters_kept(4, 0.99)
    (45, 3, 1)
    """
    return max(1, _nearest(size * (1 - ratio)))


def coupled(sizes: Mapping[str, int], groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """All layers, those that lose filters together in one tuple, in the order of the first ones.

    Parameters
    ----------
    sizes : mapping of str to int
        Layer -> its filters.
    groups : sequence of sequences of str
        Layers that lose filters together.

    Raises
    ------
    ParameterError
        A layer is unknown or named twice, or sizes within a group differ.

    Examples
    --------
    >>> coupled({"a": 8, "b": 4, "c": 8}, [("a", "c")])
    [('a', 'c'), ('b',)]
    """
    unit_of: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in sizes}
    named: set[str] = set()
    for group in groups:
        for layer in group:
            if layer not in sizes:
                raise ParameterError(
                    f"group {' + '.join(group)}: there is no layer {layer}; "
                    f"known: {', '.join(sizes)}"
                )
            if layer in named:
                raise ParameterError(f"layer {layer} is named twice in groups; join its groups")
            if sizes[layer] != sizes[group[0]]:
                raise ParameterError(
                    f"layers {group[0]} and {layer} cannot lose filters together: they have "
                    f"{sizes[group[0]]} and {sizes[layer]}"
                )
            named.add(layer)
        unit_of.update(dict.fromkeys(group, tuple(group)))
    return list(dict.fromkeys(unit_of.values()))


def _filter_scores(
    scores: Mapping[str, np.ndarray], as_they_are: bool = False
) -> dict[str, np.ndarray]:
    """The scores, checked, and unless as they are, each layer's divided by their mean magnitude."""
    if not scores:
        raise ParameterError("there are no convolutions to prune")
    result = {}
    for layer, given in scores.items():
        values = np.asarray(given, np.float64)
        if values.ndim != 1 or not values.size:
            raise ParameterError(
                f"layer {layer}: scores of shape {values.shape} cannot rank whole filters, which "
                "need shape (filters,); take a criterion that scores filters, such as l1"
            )
        if not np.isfinite(values).all():
            raise ParameterError(f"layer {layer} has NaN or infinite scores; nothing was pruned")
        if as_they_are:
            result[layer] = values
            continue
        # Not the mean itself: scores from data can be negative, and it would turn their order.
        mean = np.abs(values).mean()
        result[layer] = values / mean if mean else values
    return result


def _places(
    scores: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The place of each filter of each layer."""
    result = {}
    for layer, values in scores.items():
        each = np.asarray(places.get(layer, np.arange(len(values))))
        if each.shape != values.shape or len(set(np.bincount(each.ravel()))) > 1:
            raise ParameterError(
                f"layer {layer}: its {len(values)} filters are at places {each.tolist()}; give "
                "a place for each filter, and as many filters to each place"
            )
        result[layer] = each
    return result


def _units(
    scores: Mapping[str, np.ndarray],
    groups: Sequence[Sequence[str]],
    places: Mapping[str, np.ndarray],
) -> dict[tuple[str, ...], np.ndarray]:
    """Layers that lose filters together -> the score of each of their places."""
    means = {
        layer: np.bincount(places[layer], values) / np.bincount(places[layer])
        for layer, values in scores.items()
    }
    units = coupled({layer: len(values) for layer, values in means.items()}, groups)
    return {unit: np.mean([means[layer] for layer in unit], axis=0) for unit in units}


def _check_counts(
    counts: Sequence[int], sizes: Mapping[str, int], together: Mapping[str, int]
) -> dict[str, int]:
    """How many places stay, from how many filters are to stay."""
    if len(counts) != len(sizes):
        raise ParameterError(
            f"{len(counts)} counts given for {len(sizes)} convolutions; "
            f"give {len(sizes)} (in the order {', '.join(sizes)})"
        )
    for (layer, size), count in zip(sizes.items(), counts, strict=True):
        filters = size * together[layer]
        if not is_integer(count) or not 1 <= count <= filters:
            raise ParameterError(
                f"layer {layer}: {count!r} filters cannot stay of {filters}; give 1 to {filters}"
            )
        if count % together[layer]:
            raise ParameterError(
                f"layer {layer}: {count} filters cannot stay: {together[layer]} at a time go "
                f"together, one of each group; give a multiple of {together[layer]}"
            )
    return {
        layer: int(count) // together[layer] for layer, count in zip(sizes, counts, strict=True)
    }


def _nearest(kept: float) -> int:
    # Half a filter stays, also where 1 - ratio has been rounded down.
    return math.floor(kept + 0.5 + 1e-9)


def _best_first(values: np.ndarray) -> np.ndarray:
    return np.argsort(-values, kind="stable")


def _kept_globally(units: Sequence[np.ndarray], weights: Sequence[int], ratio: float) -> list[int]:
    """How many places of each unit stay when the lowest scores of all go; a place of a unit has as
    many filters as its weight."""
    total = sum(weight * len(values) for weight, values in zip(weights, units, strict=True))
    goes = total - _nearest(total * (1 - ratio))
    candidates = sorted(
        # Of two that score alike the later layer's goes first; the best one of a unit does not go.
        (float(value), -number)
        for number, values in enumerate(units)
        for value in values[_best_first(values)[1:]]
    )
    kept = [len(values) for values in units]
    for _, number in candidates:
        goes -= weights[-number]
        if goes < 0:
            break
        kept[-number] -= 1
    return kept


def _kept_above_threshold(
    units: Sequence[np.ndarray], weights: Sequence[int], ratio: float
) -> list[int]:
    """How many places of each unit stay by network slimming's rule."""
    if ratio == 0:
        return [len(values) for values in units]
    every = np.sort(
        np.concatenate(
            [np.repeat(values, weight) for weight, values in zip(weights, units, strict=True)]
        )
    )
    if every[0] == every[-1]:
        raise ParameterError(
            f"all {len(every)} filters score {every[0]:g}, so that no threshold tells them apart; "
            "of scales of BatchNorm, train with a penalty on them first (--gamma-l1)"
        )
    # A product below its number by rounding counts as the number before, as in the authors' code.
    threshold = every[int(len(every) * ratio)]
    return [max(1, int((values > threshold).sum())) for values in units]
