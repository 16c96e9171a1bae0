"""From what a user wishes to a pruned network: which plan is made, and how it is carried out."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tf_keras as keras

from l3prune import budget as budgets
from l3prune import complexity, graph, surgery
from l3prune.activations import DATA_CRITERIA, Batches
from l3prune.allocation import ALLOCATIONS, check_choice, share_out
from l3prune.criteria import COMPARABLE, ConvWeights
from l3prune.curves import RECORD, TABLE, curves, read_rows
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import read_json
from l3prune.filterwise import plan_filterwise, plan_sequential
from l3prune.patterns import plan_blocks, plan_pattern
from l3prune.plan import PruningPlan, check_fraction, each_layer, plan_global, plan_layerwise, score
from l3prune.weights import fingerprint
from l3prune.zero_filters import plan_zero_filters

Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Wish:
    """How a network is to be pruned.

    Attributes
    ----------
    filterwise : bool
        Remove whole filters, by surgery; otherwise zero single weights, by masks.
    amount : float, sequence of float, or None
        In [0, 1): sparsity, or with `filterwise` the fraction of filters removed; one for all
        layers, or one each. Filterwise, one for all leaves alone the filters of the network's
        output, and layers that share only some of their filters with another (a concatenation that
        is added to something). Around grouped convolutions each group loses as many as the others.
    overall : float or None
        The same for all layers together, by one threshold. Filterwise by a criterion of
        `criteria.COMPARABLE`, as bn_gamma, by network slimming's rule, `plan_filterwise`'s
        `threshold_ratio`; layers without a BatchNorm of their own stay whole then.
    counts : sequence of int or None
        Filterwise: how many filters of each layer stay. A chain is ranked as EdgeL3 does it, each
        layer without the channels that it has lost.
    pattern : str or None
        "N:M": of every M input channels, N stay, at each place of each filter.
    block : str or None
        "IxO": weights go in blocks of I input channels and O filters, to the sparsity `amount`.
    layers : mapping of str to float, or None
        Filterwise: the fraction of filters, or of a dense layer's units, that goes of the layers
        named; all others stay whole.
    fresh : sequence of str
        Layers that get fresh weights, by their own initialisers, after the cut.
    zero : bool
        Filterwise: the filters that are zero with all that belongs to them, without which the
        output stays the same; see `zero_filters`.
    budget : str or None
        See `budget.parse_budget`.
    allocation : str
        How a budget is shared among the layers: one of `allocation.ALLOCATIONS`.
    curves : mapping, or None
        For the allocation "sensitivity"; see `measured_curves`.
    round_to : int
        Filterwise: layers keep multiples of it.
    criterion : str or None
        One of `criteria.CRITERIA`, or filterwise of `activations.DATA_CRITERIA`. None: magnitude,
        or l1 of filters.

    Raises
    ------
    ParameterError
        Nothing or too much is wished for, or options that do not go together.

    Examples
    --------
    >>> Wish(filterwise=True, counts=[64, 48]).criterion_name
    'l1'
    >>> Wish(pattern="2-4")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: pattern '2-4' is not N:M, such as 2:4
    """

    filterwise: bool = False
    amount: float | Sequence[float] | None = None
    overall: float | None = None
    counts: Sequence[int] | None = None
    layers: Mapping[str, float] | None = None
    fresh: Sequence[str] = ()
    zero: bool = False
    pattern: str | None = None
    block: str | None = None
    budget: str | None = None
    allocation: str = "uniform"
    curves: Curves | None = None
    round_to: int = 1
    criterion: str | None = None

    def __post_init__(self) -> None:
        ways = ("amount", "overall", "counts", "layers", "zero", "pattern", "budget")
        given = [way for way in ways if getattr(self, way) is not None and way != "zero"]
        given += ["zero"] if self.zero else []
        if len(given) != 1:
            raise ParameterError(
                f"give exactly one of {', '.join(ways)}; given: {', '.join(given) or 'none'}"
            )
        if self.counts is not None and not self.filterwise:
            raise ParameterError("counts of filters are for filterwise pruning")
        if (self.layers is not None or self.fresh or self.zero) and not self.filterwise:
            raise ParameterError("layers, fresh and zero are for filterwise pruning")
        for name, ratio in (self.layers or {}).items():
            check_fraction(ratio, f"layer {name}: ratio")
        if self.filterwise and (self.pattern or self.block):
            raise ParameterError("patterns and blocks are of single weights, so not filterwise")
        if self.round_to != 1 and not (
            self.filterwise
            and any(each is not None for each in (self.amount, self.overall, self.layers))
        ):
            raise ParameterError(
                "round_to is for ratios of filters: counts and budgets are met to the filter"
            )
        if self.block is not None and self.amount is None:
            raise ParameterError("blocks go to a sparsity of each layer; give amount")
        for name, text, form in (
            ("pattern", self.pattern, r"(\d+):(\d+)"),
            ("block", self.block, r"(\d+)x(\d+)"),
        ):
            if text is not None and not re.fullmatch(form, text):
                example = "N:M, such as 2:4" if name == "pattern" else "IxO, such as 4x4"
                raise ParameterError(f"{name} {text!r} is not {example}")
        check_choice("allocation", self.allocation, ALLOCATIONS)
        if (self.allocation == "sensitivity") != (self.curves is not None):
            raise ParameterError(
                "allocation='sensitivity' and measured curves go together; see measured_curves"
            )
        if self.budget is not None:
            budgets.parse_budget(self.budget)
        if self.criterion in DATA_CRITERIA and not self.filterwise:
            raise ParameterError(f"criterion {self.criterion} scores filters: prune filterwise")

    @property
    def criterion_name(self) -> str:
        """The criterion, the default if there is none."""
        return self.criterion or ("l1" if self.filterwise else "magnitude")

    @property
    def needs_data(self) -> bool:
        """Whether the criterion scores filters by what they do on data."""
        return self.criterion in DATA_CRITERIA


def measured_curves(
    folder: str | os.PathLike[str], network: keras.Model, mode: str, criterion: str
) -> dict[str, list[tuple[float, float]]]:
    """The curves that `python -m l3prune.sensitivity` measured in a folder, if of this network.

    Parameters
    ----------
    folder : str or path-like
    network : keras.Model
    mode : {"layerwise", "filterwise"}
    criterion : str

    Returns
    -------
    curves : dict of str to list of (amount, loss)
        See `curves.curves`.

    Raises
    ------
    L3PruneError
        There is no scan, or it is damaged.
    ParameterError
        It is of another network, mode or criterion.

    Examples
    --------
    >>> measured_curves("/nowhere", None, "layerwise", "magnitude")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere has no sensitivity.json; give the folder of a scan by ...
    """
    for name in (RECORD, TABLE):
        if not (Path(folder) / name).is_file():
            raise L3PruneError(
                f"{folder} has no {name}; give the folder of a scan by "
                "python -m l3prune.sensitivity"
            )
    record = read_json(Path(folder) / RECORD)
    wanted = {"network": fingerprint(network), "mode": mode, "criterion": criterion}
    for name, value in wanted.items():
        if not isinstance(record, dict) or record.get(name) != value:
            found = record.get(name) if isinstance(record, dict) else None
            raise ParameterError(
                f"the scan in {folder} is of another {name}: {found!r} there, {value!r} here"
            )
    layers = list(graph.convolutions(network))
    return curves(read_rows(Path(folder) / TABLE), layers, record.get("left_out") or ())


def prune(
    network: keras.Model, wish: Wish, batches: Batches | None = None
) -> tuple[keras.Model, PruningPlan]:
    """A pruned copy of a network, and the plan that made it.

    Parameters
    ----------
    network : keras.Model
        Functional.
    wish : Wish
    batches : iterator of (inputs, targets), or None
        For criteria that need data; see `activations`.

    Returns
    -------
    pruned : keras.Model
        With `MaskedConv2D` layers, or filterwise with fewer filters.
    plan : PruningPlan

    Raises
    ------
    ParameterError
        As the plans, `surgery.apply_masks` and `surgery.remove_filters`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> smaller, plan = prune(create_network("sea64"), Wish(filterwise=True, amount=0.5))
    >>> smaller.get_layer("conv_7").filters, smaller.output_shape
    (32, (None, 64))
    """
    plan = make_plan(network, wish, batches)
    if wish.filterwise:
        smaller = surgery.remove_filters(network, plan)
        return (surgery.renewed(smaller, wish.fresh) if wish.fresh else smaller), plan
    return surgery.apply_masks(network, plan), plan


def outcome(network: keras.Model, pruned: keras.Model, wish: Wish) -> budgets.Outcome | None:
    """How near a pruned network is to the budget that was wished for; None if there was none.

    Parameters
    ----------
    network : keras.Model
        As it was before.
    pruned : keras.Model
    wish : Wish

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network, wish = create_network("sea64"), Wish(budget="sparsity=90")
    >>> outcome(network, prune(network, wish)[0], wish).met
    True
    """
    if wish.budget is None:
        return None
    budget = budgets.parse_budget(wish.budget)
    costs = complexity.layer_costs(network)
    mode = "filterwise" if wish.filterwise else "layerwise"
    stay = what_stays(pruned, wish.filterwise)
    return budgets.outcome(budget, budgets.measure(budget.kind, costs, stay, mode), costs)


def what_stays(network: keras.Model, filterwise: bool) -> dict[str, int]:
    """The filters of each convolution, or its weights that are not zero, as budgets count them.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> what_stays(network, filterwise=True)["conv_1"]
    32
    """
    weights = graph.conv_weights(network)
    if filterwise:
        return {name: each.kernel.shape[-1] for name, each in weights.items()}
    return {name: int(np.count_nonzero(each.kernel)) for name, each in weights.items()}


def make_plan(network: keras.Model, wish: Wish, batches: Batches | None = None) -> PruningPlan:
    """The plan for a network; see `prune`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> plan = make_plan(create_network("sea64"), Wish(pattern="2:4"))
    >>> float(plan["conv_2"].mean())
    0.5
    """
    if wish.filterwise:
        return _plan_filters(network, wish, batches)
    weights = graph.conv_weights(network)
    if wish.pattern is not None:
        n, m = map(int, wish.pattern.split(":"))
        return plan_pattern(weights, n, m, wish.criterion_name)
    return rule(wish)(weights, sparsity(network, wish))


def rule(wish: Wish) -> Callable[..., PruningPlan]:
    """How weights are chosen once it is known how many go: (weights, sparsity) -> plan.

    Examples
    --------
    >>> rule(Wish(overall=0.9)).func.__name__
    'plan_global'
    """
    if wish.block is not None:
        rows, columns = map(int, wish.block.split("x"))
        return functools.partial(plan_blocks, block=(rows, columns), criterion=wish.criterion_name)
    chosen = plan_layerwise if wish.overall is None else plan_global
    return functools.partial(chosen, criterion=wish.criterion_name)


def sparsity(network: keras.Model, wish: Wish) -> float | list[float]:
    """What the `rule` of a wish for masks is to be given: one fraction a layer, or one for all.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> sparsity(create_network("sea64"), Wish(amount=0.5))
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """
    if wish.overall is not None:
        return wish.overall
    layers = graph.convolutions(network)
    if wish.budget is None:
        return each_layer(wish.amount, layers)
    budget = budgets.parse_budget(wish.budget)
    shared = share_out(wish.allocation, budget.kind, wish.curves)
    amounts = budgets.meet(budget, complexity.layer_costs(network), "layerwise", shared)
    return [amounts[name] for name in layers]


def _plan_filters(network: keras.Model, wish: Wish, batches: Batches | None) -> PruningPlan:
    if wish.layers is not None:
        return _plan_named(network, wish, wish.layers, batches)
    if wish.zero:
        return plan_zero_filters(network)
    weights = graph.conv_weights(network)
    groups = graph.filter_groups(network)
    chain = all(len(group.filters) == 1 and _alike(group) == [1] for group in groups)
    if wish.counts is not None and chain and not wish.needs_data:
        return plan_sequential(weights, wish.counts, wish.criterion_name)
    each = isinstance(wish.amount, Sequence) and len(wish.amount) > 1
    fixed = {
        name
        for group in groups
        if not group.removable.all()
        or (group.in_output and not each and wish.counts is None)
        or not group.filters.keys() <= weights.keys()
        or None in _alike(group)
        for name in group.filters
    }
    comparable = wish.criterion_name in COMPARABLE
    threshold = comparable and wish.overall is not None
    if threshold:
        bare = {name for name, each in weights.items() if each.gamma is None}
        fixed |= {name for group in groups if bare & group.filters.keys() for name in group.filters}
    candidates = {name: each for name, each in weights.items() if name not in fixed}
    scores: dict[str, np.ndarray] = {}
    if candidates:
        scored = _scored(network, wish, candidates if comparable else weights, batches)
        scores = {name: values for name, values in scored.items() if name in candidates}
    if not scores:
        raise ParameterError(
            "no layer can lose filters here: whole stay those of the output or that a softmax "
            "compares, those of which only some are shared with another layer, those shared "
            "with a layer that is no 2-D convolution, and by bn_gamma those without BatchNorm"
        )
    together = [
        tuple(name for name in group.filters if name in scores)
        for group in groups
        if sum(name in scores for name in group.filters) > 1
    ]
    places = {
        name: each for group in groups for name, each in group.filters.items() if name in scores
    }
    choose = functools.partial(
        plan_filterwise, scores, groups=together, places=places, round_to=wish.round_to
    )
    if wish.counts is not None:
        return choose(counts=wish.counts)
    if wish.overall is not None:
        if threshold:
            return choose(threshold_ratio=wish.overall)
        return choose(global_ratio=wish.overall)
    if wish.budget is None:
        return choose(ratio=wish.amount)
    costs = complexity.layer_costs(network)
    budget = budgets.parse_budget(wish.budget)
    measured = {name: curve for name, curve in (wish.curves or {}).items() if name in scores}
    shared = share_out(wish.allocation, budget.kind, measured)

    def leaving_the_fixed(layers, level):
        # What is not pruned counts all the same; what the others read of it does not change.
        pruned = [replace(c, previous=(), channels=()) for c in layers if c.name in scores]
        return {**dict.fromkeys(fixed, 0.0), **shared(pruned, level)}

    amounts = budgets.meet(budget, costs, "filterwise", leaving_the_fixed, groups=together)
    return choose(ratio=[amounts[name] for name in scores])


def _scored(
    network: keras.Model,
    wish: Wish,
    weights: Mapping[str, ConvWeights],
    batches: Batches | None,
) -> Mapping[str, np.ndarray]:
    """The scores of all filters, from weights or from data."""
    if not wish.needs_data:
        return score(weights, wish.criterion_name, filters=True)
    if batches is None:
        raise ParameterError(f"criterion {wish.criterion} scores filters on data: give batches")
    return DATA_CRITERIA[wish.criterion_name](network, batches)


def _plan_named(
    network: keras.Model, wish: Wish, layers: Mapping[str, float], batches: Batches | None
) -> PruningPlan:
    """The plan of some layers by name, dense ones among them."""
    weights = graph.filter_weights(network)
    for name in layers:
        if name not in weights:
            raise ParameterError(
                f"there is no layer {name!r} to take filters or units of; known: "
                f"{', '.join(weights)}"
            )
    together: list[list[str]] = []
    places: dict[str, np.ndarray] = {}
    for group in graph.filter_groups(network):
        named = [name for name in group.filters if name in layers]
        if not named:
            continue
        others = [name for name in group.filters if name not in layers]
        if others:
            raise ParameterError(
                f"layer {named[0]} only loses filters together with {', '.join(others)}; name "
                "these too, with the same ratio"
            )
        if group.in_output or not group.removable.all() or None in _alike(group):
            raise ParameterError(
                f"layer {named[0]} cannot lose filters: they are the network's output, or compared "
                "with each other, or only some are shared with another layer; leave it out"
            )
        together += [named] if len(named) > 1 else []
        places.update(group.filters)
        for name in named:
            if group.size * (1 - layers[name]) < 0.5:
                raise ParameterError(
                    f"layer {name}: {100 * layers[name]:g} % of {group.size} filters leaves none; "
                    f"give at most {100 * (1 - 1 / group.size):g} %"
                )
    scored = _scored(network, wish, {name: weights[name] for name in layers}, batches)
    if not layers.keys() <= scored.keys():
        missing = ", ".join(layers.keys() - scored.keys())
        raise ParameterError(f"criterion {wish.criterion} has no scores for {missing}; take l1")
    scores = {name: scored[name] for name in layers}
    return plan_filterwise(
        scores,
        ratio=list(layers.values()),
        groups=together,
        places=places,
        round_to=wish.round_to,
    )


def _alike(group: graph.FilterGroup) -> list[int | None]:
    """Of each layer of a group: how many of its filters are at each place; None if that differs."""
    counts = [np.bincount(each, minlength=group.size) for each in group.filters.values()]
    return [int(each[0]) if (each == each[0]).all() else None for each in counts]
